"""Predict the responses to new images with a saved run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from featpipe.errors import RecipeError, RequestError
from featpipe.extraction import Means, Order, Progress, request_again
from featpipe.features import arrays_of, parts_of
from featpipe.models import ModelRequest, resolve
from featpipe.recipes import tuner_of
from featpipe.rsa import RDMs
from featpipe.runs._folder import RunFolder
from featpipe.runs._tuned import ready
from featpipe.spec import FeatureSpec, LayerRequest
from featpipe.stimuli import StimulusManifest, StimulusSet
from featpipe.store import FeatureCache, MirroredURL, Root, mirrored


def predict(
    run: RunFolder,
    stimuli: StimulusSet,
    *,
    cache: Root | None = None,
    mirror: str | None = None,
    mirror_size: int | None = None,
    weights: str | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> np.ndarray | RDMs:
    """Predict the responses to images, or their RDM; features that the cache lacks are extracted.

    Parameters
    ----------
    run : RunFolder
    stimuli : StimulusSet
    cache : str, optional
        Instead of the run's; not for a tuned network, which reads the images themselves.
    mirror, mirror_size : str and int, optional
        Of the cache that is read, see `FeatureCache`.
    weights : str, optional
        Where the weights are now, if they are not where they were; their digest must be the same.
    means, progress
        See `featpipe.extraction.extract`.
    trust : bool
        See `RunFolder.load_pipeline`.

    Returns
    -------
    ndarray of shape (n_stimuli, n_targets), or RDMs with one RDM

    Raises
    ------
    RecipeError
        The network that can be loaded now does not give the features that the run was fitted on.
    """
    pipeline = run.load_pipeline(trust=trust)
    if tuner_of(pipeline) is None:
        how: dict[str, Any] = {"weights": weights, "means": means, "progress": progress, "trust": trust}
        where = mirrored(cache or run.read_json("run.json")["cache"], mirror, mirror_size)
        _read_cache(pipeline, run, stimuli, where, **how)
    else:
        _refuse_cache(run, cache or mirror)
        device = (means or Means()).device
        ready(pipeline, run, stimuli, weights=weights, device=device, trust=trust)
    predicted = pipeline.predict(np.asarray(stimuli.ids))
    return predicted if isinstance(predicted, RDMs) else np.asarray(predicted)


def _refuse_cache(run: RunFolder, cache: Root | None) -> None:
    if cache is not None:
        raise RecipeError(
            f"{run.path} has a tuned network, which reads the images themselves and no cache. Leave --cache (and "
            "--mirror) out."
        )


def _read_cache(pipeline: Pipeline, run: RunFolder, stimuli: StimulusSet, where: Root, **how: Any) -> None:
    """Let a saved pipeline read the features of some images; what the cache lacks is extracted."""
    record = run.read_json("run.json")
    specs = [FeatureSpec.from_json(feature["spec"]) for feature in record["features"]]
    known = set_that_holds(specs, stimuli, where)
    if known is None:
        _require_writable(run, stimuli, where)
        for features in _by_part(record["features"], how["weights"]):
            ensure_features(features, stimuli, where, **how)
    pipeline.set_params(**places(where), features__stimuli=known or stimuli.digest)


def _require_writable(run: RunFolder, stimuli: StimulusSet, where: Root) -> None:
    location = FeatureCache(where).location
    try:
        location.require_writable()
    except RequestError as error:
        raise RequestError(
            f"{location.url}, the cache of {run.path}, lacks features of {stimuli.name!r} and can only be read, so "
            "they cannot be extracted into it. Name a cache to write to with --cache, such as a new folder."
        ) from error


def places(cache: Root) -> dict[str, Any]:
    """Return the parameters of a pipeline's features that say where the cache and its mirror are."""
    if not isinstance(cache, MirroredURL):
        return {"features__cache": str(cache), "features__mirror": None, "features__mirror_size": None}
    return {
        "features__cache": cache.url,
        "features__mirror": cache.mirror,
        "features__mirror_size": cache.size,
    }


def _by_part(features: Sequence[Mapping[str, Any]], weights: str | None) -> list[list[Mapping[str, Any]]]:
    """Return a run's features by network; new weights for one of several would not say for which."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for feature in features:
        parts.setdefault(str(feature.get("part", "")), []).append(feature)
    if weights is not None and len(parts) > 1:
        raise RecipeError(
            f"The run has features of several networks, {', '.join(parts)}, and --weights names one file. Extract the "
            "features of each with `featpipe extract`, then predict."
        )
    return list(parts.values())


def set_that_holds(specs: Sequence[FeatureSpec], stimuli: StimulusSet, cache: Root) -> str | None:
    """Return the digest of a cached set with rows of all these images under all specs, None if there is none.

    Part of a cached set, such as a dataset's test split, is then read without the network and its weights.
    """
    pools = [arrays_of(cache, spec, None) for spec in specs]
    complete = [{array.stimuli_digest: array for array in pool if array.complete} for pool in pools]
    for digest, array in complete[0].items():
        if all(digest in arrays for arrays in complete) and _has_images(array.manifest, stimuli):
            return digest
    return None


def named_as_cached(pipeline: Pipeline, *, trust: bool = False) -> dict[str, str]:
    """Return parameters that name the networks of checkpoints as keys do: architecture, and digest of the weights.

    The features of a checkpoint are then found wherever it lay when they were cached, and never those of weights
    that it held before. One that is gone is known by its path alone.
    """
    params: dict[str, str] = {}
    for part, features in parts_of(pipeline.named_steps["features"]):
        asked = str(features.model)
        if asked.startswith("local:") and features.weights is None and Path(asked.partition(":")[2]).exists():
            args = tuple((features.model_args or {}).items())
            card = resolve(ModelRequest(asked, model_args=args, trust=trust))
            prefix = f"features__{part}__" if part else "features__"
            params |= {f"{prefix}model": card.architecture, f"{prefix}weights": card.weights}
    return params


def set_to_read(stimuli: StimulusSet, cache: Root) -> str:
    """Return the digest of the cached stimulus set to read these images from: their own, or one that has them all.

    Responses to some of the images of a folder need not be extracted apart from the folder.
    """
    store = FeatureCache(cache)
    if stimuli.digest in store.stimuli_digests():
        return stimuli.digest
    sets = {array.stimuli_digest: array.manifest for array in store.arrays()}
    return next((digest for digest in sets if _has_images(sets[digest], stimuli)), stimuli.digest)


def _has_images(manifest: StimulusManifest, stimuli: StimulusSet) -> bool:
    """Whether a set has all these images under these ids."""
    sha256 = dict(zip(manifest.ids, manifest.sha256, strict=True))
    return all(sha256.get(i) == sha for i, sha in zip(stimuli.ids, stimuli.sha256, strict=True))


def ensure_features(
    features: Sequence[Mapping[str, Any]],
    stimuli: StimulusSet,
    cache: Root,
    *,
    weights: str | None,
    means: Means | None,
    progress: Progress | None,
    trust: bool,
) -> None:
    """Extract whatever of a run's features the cache lacks for a stimulus set."""
    store = FeatureCache(cache)
    specs = [FeatureSpec.from_json(feature["spec"]) for feature in features]
    if specs[0].preprocessing is None:
        _check_imported(specs, stimuli, cache)
        return
    keys = [spec.key(stimuli.digest) for spec in specs]
    there = set(store.keys())
    if all(key in there and store.array(key).complete for key in keys):
        return
    asked = str(features[0].get("model_asked") or specs[0].model)
    if weights is not None and asked.startswith("local:"):
        asked = specs[0].model  # the checkpoint may be gone, and its weights elsewhere
    order = order_again(specs, asked, str(weights or features[0]["weights_asked"]), trust=trust)
    from featpipe.extraction import extract  # torch, only where something is extracted

    done = extract(order, stimuli, store, means=means, progress=progress)
    if not set(keys) <= set(done.keys):
        raise RecipeError(_difference(specs, [target.spec for target in done.targets]))


def _check_imported(specs: Sequence[FeatureSpec], stimuli: StimulusSet, cache: Root) -> None:
    for spec in specs:
        held = {name for array in arrays_of(cache, spec, None) for name in array.manifest.ids}
        missing = [name for name in stimuli.ids if name not in held]
        if missing:
            raise RecipeError(
                f"{spec.model} was imported without {len(missing)} of these {len(stimuli)} stimuli, first "
                f"{missing[0]!r}, and cannot be computed for them. Import one array with the rows of all images "
                "(featpipe cache import) and fit on that."
            )


def order_again(specs: Sequence[FeatureSpec], asked: str, weights: str, *, trust: bool = False) -> Order:
    """Return the order that makes these features again, of the model by the name that was asked for."""
    spec = specs[0]
    model = request_again(spec, asked, weights, trust=trust)
    layers = tuple(LayerRequest(s.layer_label, s.reduction) for s in specs)
    return Order(model, layers, store_dtype=spec.store_dtype, precision=spec.precision)


def _difference(wanted: Sequence[FeatureSpec], got: Sequence[FeatureSpec]) -> str:
    ours, theirs = wanted[0].to_json(), got[0].to_json()
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return (
        f"The network that can be loaded now differs from the run's in {', '.join(differing)}: "
        f"{ {n: theirs.get(n) for n in differing} } instead of { {n: ours.get(n) for n in differing} }. "
        "Give the weights that the run was made with (--weights FILE)."
    )
