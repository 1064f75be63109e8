"""`FeatureRDM`: the RDM of fixed features as a prediction, with nothing fitted."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa._distances import METRICS, NOISE_METRICS, adopt, finisher, rdm
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._streamed import feature_rdms

_UNRELATED = 1.0  # 1 − r and 1 − cosine of what has no direction: r = 0


class FeatureRDM(BaseEstimator):
    """Predict dissimilarities by those of the features themselves: the baseline that every fit must beat.

    With the defaults this is the baseline of the Algonauts 2019 challenge, 1 − Pearson r of the flattened
    activations. Nothing is learned from `y`, so that no stimulus is a training stimulus.

    Parameters
    ----------
    metric : {"correlation", "cosine", "euclidean", "sqeuclidean"}
        As in `rdm`.
    layers : str or sequence of str, optional
        Labels or globs of the layers of `LayerBlocks` to use, in the order of the blocks; all by default.
    combine : {"concatenate", "mean"}
        One RDM of all layers side by side, in which a layer counts by its number of features; or the mean of
        the layers' RDMs, each standardised over the pairs within each stimulus set, and over those across
        sets.

    Attributes
    ----------
    n_features_in_ : int
    layers_ : tuple of str or None
        Labels of the layers that are used; None for a matrix.
    training_ids_ : ndarray of str, shape (0,)
        None: no stimulus was learned from.
    """

    def __init__(self, metric="correlation", layers=None, combine="concatenate"):
        self.metric = metric
        self.layers = layers
        self.combine = combine

    def fit(self, X, y=None):
        """Check the parameters against what `X` holds; learn nothing.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)
        y : ignored

        Returns
        -------
        self
        """
        if self.metric in NOISE_METRICS or self.metric not in METRICS:
            raise RequestError(f"metric is {self.metric!r}; it must be one of {', '.join(METRICS)}.")
        if self.combine not in ("concatenate", "mean"):
            raise RequestError(f"combine is {self.combine!r}; it must be 'concatenate' or 'mean'.")
        self.layers_ = _layers_of(X, self.layers)
        self.n_features_in_ = _shape(X)[1]
        self.training_ids_ = np.array([], dtype=str)
        return self

    def predict(self, X) -> RDMs:
        """Compute the RDM of some stimuli.

        Parameters
        ----------
        X : LayerBlocks, or array of shape (n_stimuli, n_features)

        Returns
        -------
        RDMs
            One RDM over all pairs, also those across stimulus sets; ids of the blocks, or row numbers. A
            stimulus whose features have no direction (they are all equal) is unrelated to all others, at
            distance 1, and a warning says how many there are.
        """
        check_is_fitted(self, "training_ids_")
        if _shape(X)[1] != self.n_features_in_ or _layers_of(X, self.layers) != self.layers_:
            raise RequestError(
                f"X has {_shape(X)[1]} features, but FeatureRDM was fitted to {self.n_features_in_} features of "
                f"{'a matrix' if self.layers_ is None else ', '.join(self.layers_)}. Give the same layers."
            )
        finisher(self.metric, _shape(X))
        if self.layers_ is None:
            found = rdm(X, self.metric)
        else:
            joint = self.combine == "concatenate"
            found = feature_rdms(X.select(self.layers_), self.metric, joint=joint)
        found = _related(found)
        return _mean_of_standardised(found) if found.n_rdms > 1 else found

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.no_validation = True  # X may be LayerBlocks
        return tags


def _shape(X) -> tuple[int, int]:
    shape = X.shape if isinstance(X, LayerBlocks) else np.shape(X)
    if len(shape) != 2:
        raise RequestError(f"X has shape {shape}; FeatureRDM takes LayerBlocks or (n_stimuli, n_features).")
    return shape[0], shape[1]


def _layers_of(X, wanted) -> tuple[str, ...] | None:
    """Return the labels that `wanted` names, None for a matrix."""
    if not isinstance(X, LayerBlocks):
        if wanted is not None:
            raise RequestError(
                f"layers={wanted!r} chooses among LayerBlocks, but X is a matrix. Set output='blocks' in "
                "CachedFeatures, or choose layers there."
            )
        return None
    return X.names if wanted is None else X.select(wanted).names


def _related(found: RDMs) -> RDMs:
    """Put stimuli without a direction at distance 1; pairs of one stimulus with itself stay NaN."""
    undefined = np.isnan(found.values)
    if not undefined.any():
        return found
    others = found.ids[:, None] != found.ids
    undefined &= others
    alone = ((undefined == others).all(axis=2) & others.any(axis=1)).any(axis=0)
    if not alone.any():
        return found
    warnings.warn(
        f"{int(alone.sum())} of {len(found)} stimuli have equal features throughout and are taken to "
        "be unrelated to all others (distance 1).",
        stacklevel=3,
    )
    values = np.where(undefined, found.values.dtype.type(_UNRELATED), found.values)
    return adopt(values, found.ids, found.subjects)


def _mean_of_standardised(found: RDMs) -> RDMs:
    """Return the mean of RDMs that were standardised within each set, and over the pairs across sets."""
    vectors = found.zscore().upper()
    first, second = np.triu_indices(len(found), 1)
    across = found.sets[first] != found.sets[second]
    if across.any():
        some = vectors[:, across]
        spread = np.nanstd(some, axis=1, keepdims=True)
        vectors[:, across] = (some - np.nanmean(some, axis=1, keepdims=True)) / np.where(
            spread > 0, spread, 1
        )
    return RDMs.from_upper(vectors.mean(axis=0), found.ids, subjects=["+".join(found.subjects)])
