"""What tuning costs a network at telling classes of images apart, on its features before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from featpipe.encoding import LayerScaler
from featpipe.errors import RecipeError, RequestError
from featpipe.extraction import Means, Order, Progress
from featpipe.features import CachedFeatures
from featpipe.models import ModelRequest
from featpipe.runs._folder import RunFolder
from featpipe.runs._tuned import WEIGHTS, network_request, refuse_other_network, tuned_of
from featpipe.spec import FeatureSpec, LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache, Root

_INNER = 3  # folds that choose C
_PENALTIES = tuple(10.0**power for power in range(-5, 1))


@dataclass(frozen=True)
class Retention:
    """Accuracies of the same classification from the features of a network before and after tuning.

    Parameters
    ----------
    layers : tuple of str
    n_images, n_classes, n_folds : int
    untuned, tuned : float
        Share of the held-out images that are put into their class.
    difference : float
        Tuned minus untuned.
    interval : (float, float)
        Of the difference, 95 %, over images.
    chance : float
        Share of the largest class.
    """

    layers: tuple[str, ...]
    n_images: int
    n_classes: int
    n_folds: int
    untuned: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    chance: float


def retention(
    run: RunFolder,
    stimuli: StimulusSet,
    *,
    layers: Sequence[str] = (),
    cache: Root = "cache",
    weights: str | None = None,
    n_folds: int = 5,
    n_draws: int = 1000,
    seed: int = 0,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> Retention:
    """Classify images from the tuned network's features and from those of the network as it came.

    Logistic regression on standardised features, its penalty chosen inside each training set, both networks on
    the same stratified folds; images of equal bytes are never divided.

    Parameters
    ----------
    run : RunFolder
        Of a tuner.
    stimuli : StimulusSet
        Ids ``CLASS/NAME``: a folder with a subfolder for each class.
    layers : sequence of str, optional
        ``LAYER[:REDUCE]``; by default those that the tuner gives.
    cache : str
        Features of both networks are extracted into it, as far as it lacks them.
    weights : str, optional
        Where the weights of the network as it came are now.
    n_folds, n_draws, seed : int
    means, progress, trust
        See `predict`.

    Returns
    -------
    Retention

    Raises
    ------
    RequestError
        The run has no tuner, or its network cannot be named in a checkpoint; one class; a class with fewer images
        than folds.

    References
    ----------
    Mulrooney & Brockmeier (2023), "Image Classification Tasks".
    """
    given = _layers_of(run)
    labels = classes_of(stimuli, n_folds)
    before, after = _networks(run, weights=weights, trust=trust)
    wanted = tuple(LayerRequest.parse(text) for text in layers or given)
    shared: dict[str, Any] = {"means": means, "progress": progress}
    features = [_features(Order(model, wanted), stimuli, cache, **shared) for model in (before, after)]
    folds = _folds(labels, stimuli, n_folds, seed)
    right = np.array([_classified(X, labels, folds, seed) == labels for X in features])
    return Retention(
        layers=tuple(map(str, wanted)),
        n_images=len(labels),
        n_classes=len(np.unique(labels)),
        n_folds=n_folds,
        untuned=float(right[0].mean()),
        tuned=float(right[1].mean()),
        difference=float(right[1].mean() - right[0].mean()),
        interval=_interval(right[1].astype(float) - right[0], n_draws, seed),
        chance=max(Counter(labels.tolist()).values()) / len(labels),
    )


def classes_of(stimuli: StimulusSet, n_folds: int) -> np.ndarray:
    """Return the class of each image, the first folder in its id: ndarray of str, shape (n_images,).

    Raises
    ------
    RequestError
        Images outside of classes, one class, or a class with fewer images than folds.
    """
    classes = [name.partition("/")[0] if "/" in name else "" for name in stimuli.ids]
    counts = Counter(classes)
    if "" in counts or len(counts) < 2:
        came = f"{counts['']} images lie in none" if "" in counts else f"there is one, {classes[0]!r}"
        raise RequestError(
            f"{stimuli.name!r} must have a subfolder for each of two or more classes; {came}. Give the folder above "
            "them, such as FOLDER/cat/1.png and FOLDER/dog/1.png."
        )
    if n_folds < 2:
        raise RequestError(f"--folds is {n_folds}; at least 2 are needed.")
    few = min(counts, key=lambda name: counts[name])
    if counts[few] < n_folds:
        out = f"leave it out, or say --folds {counts[few]}" if counts[few] > 1 else "or leave it out"
        raise RequestError(
            f"Class {few!r} has {counts[few]} images, fewer than the {n_folds} folds. Give more, {out}."
        )
    return np.array(classes)


def _layers_of(run: RunFolder) -> list[str]:
    """Return the layers that a run's tuner gives; raises where it has none that can be extracted."""
    record = tuned_of(run)
    if record is None:
        raise RequestError(
            f"{run.path} has no tuned network; its features are those of the network as it came. Give a run of a "
            "recipe with a tuner."
        )
    if record["checkpoint"] is None:
        raise RecipeError(
            f"{run.path} tuned a network of a Python file, which no checkpoint can name, so that nothing can be "
            "extracted from it."
        )
    return list(record["transform_layers"])


def _networks(run: RunFolder, *, weights: str | None, trust: bool) -> tuple[ModelRequest, ModelRequest]:
    """Return the network as it came, and the tuned one under the same preprocessing."""
    before = replace(network_request(run.load_pipeline(trust=trust)[0]), trust=trust)
    before = before if weights is None else replace(before, weights=weights)
    refuse_other_network(run, before)
    after = replace(before, model=f"local:{run.path / WEIGHTS}", weights="default", model_args=())
    return before, after


def _features(order: Order, stimuli: StimulusSet, cache: Root, **how: Any) -> np.ndarray:
    """Return the layers of a network side by side, (n_images, n_features), extracting what the cache lacks."""
    from featpipe.extraction import extract  # torch, only where something is extracted

    done = extract(order, stimuli, FeatureCache(cache), **how)
    ids = np.array(stimuli.ids)
    return np.concatenate(
        [_reader(target.spec, cache, stimuli).fit(ids).transform(ids) for target in done.targets], axis=1
    )


def _reader(spec: FeatureSpec, cache: Root, stimuli: StimulusSet) -> CachedFeatures:
    """Return what reads exactly these features."""
    assert spec.preprocessing is not None, "they were extracted"
    return CachedFeatures(
        cache,
        spec.model,
        [spec.layer_label],
        str(spec.reduction),
        weights=spec.weights,
        preprocess=spec.preprocessing.to_json(),
        precision=spec.precision,
        store_dtype=spec.store_dtype,
        model_args=dict(spec.model_args),
        stimuli=stimuli.digest,
    )


def _folds(
    labels: np.ndarray, stimuli: StimulusSet, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return stratified folds over images, those of equal bytes together."""
    if len(set(stimuli.sha256)) == len(labels):
        return list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return list(folds.split(labels, labels, groups=np.array(stimuli.sha256)))


def _classified(
    X: np.ndarray, labels: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], seed: int
) -> np.ndarray:
    return np.asarray(
        cross_val_predict(classifier(min(Counter(labels.tolist()).values()), seed), X, labels, cv=folds)
    )


def classifier(fewest: int, seed: int) -> BaseEstimator:
    """Return standardised logistic regression whose penalty is chosen on held-out training images.

    Parameters
    ----------
    fewest : int
        Images of the smallest class.
    seed : int
    """
    inner = StratifiedKFold(max(2, min(_INNER, fewest // 2)), shuffle=True, random_state=seed)
    regression = LogisticRegression(max_iter=5000, tol=1e-3)
    search = GridSearchCV(regression, {"C": _PENALTIES}, cv=inner)
    # all components: a rotation, under which an L2 penalty stays what it is, to as many columns as there are images
    return make_pipeline(LayerScaler(), PCA(svd_solver="full"), search)


def _interval(difference: np.ndarray, n_draws: int, seed: int) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of a mean over images."""
    rng = np.random.default_rng(seed)
    n = len(difference)
    draws = [difference[rng.integers(n, size=n)].mean() for _ in range(n_draws)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
