"""Compare the layers of networks with measured RDMs, and with one another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.datasets import RDMDataset, load_dataset
from featpipe.errors import FeatpipeError, FeaturesNotCached, RequestError, SpecError
from featpipe.features import CachedFeatures
from featpipe.rsa import (
    CORRECTIONS,
    METHODS,
    METRICS,
    OVER,
    RDMs,
    compare_models,
    correct_p,
    feature_rdms,
    measured_labels,
    noise_ceilings,
    permuted_p,
    second_order,
)
from featpipe.runs._comparison import LayerComparison
from featpipe.runs._predict import set_to_read
from featpipe.store import Root

# What else may choose among cached features, as `fit --set` names it
SETTINGS = ("preprocess", "precision", "store_dtype", "model_args")


@dataclass(frozen=True)
class CompareRequest:
    """What `compare_layers` is asked for.

    Parameters
    ----------
    data : str
        DATA with RDMs, such as ``algonauts2019:DIR``.
    cache : str or MirroredURL
    targets : sequence of str
        All by default.
    models : sequence of str
        ``ZOO:NAME`` each; by default the only one that is cached.
    weights : sequence of str
        None, one for all models, or one for each.
    layers : sequence of str
        Names or globs; each must match in one of the models, and every model must have one that matches.
    reduce : str, optional
    settings : mapping
        Further parameters of `CachedFeatures`: those of `SETTINGS`.
    subject, split : str, optional
        Of the data.
    metric, method, over, correction : str
        As in `feature_rdms`, `compare` and `compare_models`.
    n : int
        Bootstrap draws and permutations.
    seed : int
    layer_by_layer : bool
        Also compare layers with layers.

    Raises
    ------
    RequestError
        An option that is none of those offered, or as many weights as there are neither one nor models.
    """

    data: str
    cache: Root = "cache"
    targets: Sequence[str] = ()
    models: Sequence[str] = ()
    weights: Sequence[str] = ()
    layers: Sequence[str] = ("**",)
    reduce: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    subject: str | None = None
    split: str | None = None
    metric: str = "correlation"
    method: str = "spearman"
    over: str = "subjects"
    correction: str = "fdr"
    n: int = 1000
    seed: int = 0
    layer_by_layer: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (given := getattr(self, name)) not in choices:
                raise RequestError(f"--{name} is {given!r}; choose from {', '.join(choices)}.")
        if len(self.weights) > 1 and len(self.weights) != len(self.models):
            raise RequestError(
                f"--weights is given {len(self.weights)} times and --model {len(self.models)} times; give it once for "
                "all models, or once for each, in their order."
            )
        if unknown := [name for name in self.settings if name not in SETTINGS]:
            raise RequestError(
                f"--set {unknown[0]} does not choose among cached features; only {', '.join(SETTINGS)} do."
            )
        for name in ("precision", "store_dtype"):
            _check_kind(name, self.settings.get(name, ""), str, "a text, such as precision=fp32")
        _check_kind(
            "preprocess", self.settings.get("preprocess", ""), (str, Mapping), "model, whole or fields of it"
        )
        _check_kind(
            "model_args", self.settings.get("model_args", {}), Mapping, "a dict, such as '{\"depth\": 3}'"
        )
        if reducing := [name for name in self.layers if _REDUCTION.search(name)]:
            raise SpecError(
                f"--layers {reducing[0]!r} names a reduction, which is the same for all layers here: write "
                f"--reduce {reducing[0].partition(':')[2]}."
            )


def _check_kind(name: str, given: Any, kind: Any, wanted: str) -> None:
    if not isinstance(given, kind):
        raise RequestError(f"--set {name} is {given!r}; give {wanted}.")


_CHOICES = {"metric": tuple(METRICS), "method": tuple(METHODS), "over": OVER, "correction": CORRECTIONS}
_REDUCTION = re.compile(r":(none|mean|max|cls|grid|srp)\b")


def compare_layers(request: CompareRequest) -> LayerComparison:
    """Compute the RDM of every layer and compare it with every measured one.

    Parameters
    ----------
    request : CompareRequest

    Returns
    -------
    LayerComparison

    Raises
    ------
    RequestError
        Data without RDMs, fewer than two layers, features that the cache lacks or that are not told apart,
        and subjects that are to be drawn where there is one.
    """
    dataset = _dataset(request)
    parts = _networks(request, dataset)
    names = [(network, layer) for network, blocks in parts for layer in blocks.names]
    if len(names) < 2:
        raise RequestError(
            f"There is one layer, {names[0][1]!r}, and nothing to compare it with: name more in --layers or --model. "
            "`featpipe fit baseline_algonauts2019` scores one layer."
        )
    labels = [layer if len(parts) == 1 else f"{network}:{layer}" for network, layer in names]
    models = _rdms(parts, labels, request.metric)
    options: dict[str, Any] = {"method": request.method, "n": request.n, "seed": request.seed}
    tests = compare_models(models, dataset.rdms, over=request.over, correction=request.correction, **options)
    p = permuted_p(models, dataset.rdms, **options)
    return LayerComparison(
        data=request.data,
        sets=tuple(dict.fromkeys(dataset.rdms.sets.tolist())),
        n_stimuli=dataset.n_stimuli,
        n_subjects=_n_subjects(dataset.rdms),
        metric=request.metric,
        seed=request.seed,
        networks=tuple(network for network, _ in names),
        layers=tuple(layer for _, layer in names),
        tests=tests,
        p=p,
        p_corrected=correct_p(p, request.correction),
        ceilings=np.array(noise_ceilings(dataset.rdms, request.method)),
        between=second_order(models, models, request.method) if request.layer_by_layer else None,
    )


def _dataset(request: CompareRequest) -> RDMDataset:
    dataset = load_dataset(request.data, subject=request.subject, split=request.split)
    if not isinstance(dataset, RDMDataset):
        raise RequestError(
            f"{request.data!r} holds responses; layers are compared with RDMs, such as algonauts2019:DIR or a table "
            "with rdms. `featpipe fit` predicts responses."
        )
    if request.targets:
        dataset = dataset.select_targets(list(dict.fromkeys(request.targets)))
    alone = [name for name, count in _n_subjects(dataset.rdms).items() if count < 2]
    if alone and request.over != "stimuli":
        raise RequestError(
            f"{alone[0] or dataset.name} has one subject, which says nothing about other subjects: write "
            "--over stimuli."
        )
    return dataset


def _n_subjects(rdms: RDMs) -> dict[str, int]:
    return dict(Counter(target for target, _ in measured_labels(rdms)))


# Which layers are meant


def _networks(request: CompareRequest, dataset: RDMDataset) -> list[tuple[str, LayerBlocks]]:
    """Return the layers of each network that was asked for, under a name of its own."""
    models: list[str | None] = [*request.models] or [None]
    weights: list[str | None] = [*request.weights] or [None]
    asked = list(zip(models, weights * (len(models) if len(weights) == 1 else 1), strict=True))
    stimuli = set_to_read(dataset.stimuli, request.cache)
    shared = {"cache": request.cache, "reduce": request.reduce, "stimuli": stimuli, **request.settings}
    features = [
        CachedFeatures(model=model, weights=weight, output="blocks", **shared) for model, weight in asked
    ]
    fitted = _fitted(features, list(request.layers), dataset.ids)
    names = network_names(
        [(model or one.specs_[0].model, weight) for (model, weight), one in zip(asked, fitted, strict=True)]
    )
    return [(name, one.transform(dataset.ids)) for name, one in zip(names, fitted, strict=True)]


def network_names(asked: Sequence[tuple[str, str | None]]) -> list[str]:
    """Name networks as shortly as tells them apart: the model's own name, with weights, with its zoo.

    Raises
    ------
    RequestError
        The same network twice.
    """
    short = [model.partition(":")[2] or model for model, _ in asked]
    with_weights = [
        f"{name} {weights or ''}".strip() for name, (_, weights) in zip(short, asked, strict=True)
    ]
    whole = [f"{model} {weights or ''}".strip() for model, weights in asked]
    for names in (short, with_weights, whole):
        if len(set(names)) == len(names):
            return names
    twice = next(name for name, count in Counter(whole).items() if count > 1)
    raise RequestError(
        f"--model {twice} is given twice; tell the networks apart by --weights, or leave one out."
    )


def _fitted(features: list[CachedFeatures], layers: list[str], ids: np.ndarray) -> list[CachedFeatures]:
    """Settle each network's layers; a pattern need not match in all of several networks."""
    if len(features) == 1:
        return [_settled(features[0].set_params(layers=layers), ids)]
    here = [[pattern for pattern in layers if _is_cached(one, pattern, ids)] for one in features]
    if nowhere := [pattern for pattern in layers if not any(pattern in matched for matched in here)]:
        raise FeaturesNotCached(
            f"No cached layer of any of the {len(features)} models matches --layers {nowhere[0]!r}. "
            "`featpipe cache ls` lists what is cached."
        )
    return [
        _settled(one.set_params(layers=matched or layers), ids)
        for one, matched in zip(features, here, strict=True)
    ]


def _is_cached(features: CachedFeatures, pattern: str, ids: np.ndarray) -> bool:
    try:
        _settled(features.set_params(layers=[pattern]), ids)
    except FeaturesNotCached:
        return False
    return True


def _settled(features: CachedFeatures, ids: np.ndarray) -> CachedFeatures:
    """Fit; errors then call parameters as the command line does, and say of which model they are."""
    try:
        return features.fit(ids)
    except FeatpipeError as error:
        said = re.sub(r"features__(model|weights|reduce|layers)\b", r"--\1", str(error))
        said = re.sub(r"features__(\w+)", r"--set \1=…", said).replace(
            "Choose one: set ", "Choose one: give "
        )
        of = f"{features.model}: " if features.model else ""
        raise type(error)(of + said) from error


# Numbers


def _rdms(parts: Sequence[tuple[str, LayerBlocks]], labels: Sequence[str], metric: str) -> RDMs:
    """Return one RDM per layer, named by the labels as targets."""
    blocks = parts[0][1] if len(parts) == 1 else LayerBlocks.join(parts)
    found = feature_rdms(blocks, metric)
    return RDMs(found.values, found.ids, targets=labels, subjects=["model"] * len(labels))
