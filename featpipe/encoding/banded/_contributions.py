"""What each band explains of held-out responses: its share of R², and what only it explains."""

from __future__ import annotations

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.encoding._layers import layer_names, layer_widths
from featpipe.errors import RequestError
from featpipe.metrics import r2


def band_contributions(model, X, y, *, sample_weight=None) -> np.ndarray:
    """Split R² on held-out stimuli into what the bands contribute: the product measure.

    With responses y and predictions f about the mean response, and f_l the part of band l in the prediction,
    ``R² = Σ_i f_i (2 y_i - f_i) / Σ_i y_i²`` is linear in one f, so that band l has
    ``Σ_i f_li (2 y_i - f_i) / Σ_i y_i²``. What several bands predict together is shared by their part in the
    prediction; a contribution is negative where a band makes the prediction worse. An error of the mean prediction
    is shared equally.

    Parameters
    ----------
    model : BandedRidge
        Fitted on other stimuli.
    X : LayerBlocks, or array of shape (n_stimuli, n_features)
    y : array of shape (n_stimuli, n_targets) or (n_stimuli,)
        Responses; a stimulus whose response is NaN is left out of that target.
    sample_weight : array of shape (n_stimuli,), optional

    Returns
    -------
    contributions : ndarray of shape (n_bands, n_targets), float64
        Columns add up to R²; 0 for a constant target, whose R² is taken as 0.

    References
    ----------
    Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant (2022), Feature-space selection with banded ridge
    regression, NeuroImage 264, section 2.5. Pratt (1987), Dividing the indivisible.
    """
    check_is_fitted(model)
    response = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    parts = np.asarray(model.predict(X, by_band=True), dtype=np.float64).reshape(-1, *response.shape)
    weight = _weights(sample_weight, response)
    total = parts.sum(axis=0) + model.intercept_
    explained = r2(response, total, sample_weight=sample_weight)
    response = np.where(np.isnan(response), 0.0, response)
    mean = (weight * response).sum(axis=0)
    bias = (weight * total).sum(axis=0) - mean
    parts = parts - np.einsum("nt,bnt->bt", weight, parts)[:, None] + bias / len(parts)
    response, total = response - mean, total - mean
    scatter = (weight * response**2).sum(axis=0)
    found = np.einsum("nt,bnt->bt", weight * (2 * response - total), parts)
    found = np.divide(found, scatter, out=np.zeros_like(found), where=scatter > 0)
    return np.where(explained == 0, 0.0, found)


def unique_contributions(
    model, X_train, y_train, X, y, *, sample_weight=None, score_weight=None, groups=None
) -> np.ndarray:
    """Return what R² on held-out stimuli loses when a band is taken from the model, penalties chosen anew.

    Parameters
    ----------
    model : BandedRidge
        Fitted on `X_train` or not; it stays as it is.
    X_train, y_train : stimuli to fit
    X, y : other stimuli, to score
    sample_weight, groups : arrays of shape (n_train,), optional
        For `fit`.
    score_weight : array of shape (n_stimuli,), optional

    Returns
    -------
    unique : ndarray of shape (n_bands, n_targets), float64
        R² of all bands less R² of all but one. About 0 for a band whose information others have.

    Raises
    ------
    RequestError
        There is one band only, or penalties or mixtures were given for a number of bands.

    References
    ----------
    Lescroart, Stansbury & Gallant (2015), Fourier power, subjective distance, and object categories all provide
    plausible models of BOLD responses in scene-selective visual areas, Front. Comput. Neurosci. 9, on variance
    partitioning.
    """
    if len(layer_names(X, model.widths)) < 2:
        raise RequestError("A single band is all there is; unique contributions need two or more.")
    if model.deltas is not None or np.ndim(model.n_iter):
        raise RequestError(
            "deltas or mixtures given for all bands do not fit a model with one band less. Set n_iter to a number."
        )
    given = {"sample_weight": sample_weight, "groups": groups}

    def score(left_out: int | None) -> np.ndarray:
        taken = clone(model)
        fitted, widths = _without(X_train, model.widths, left_out)
        taken.set_params(widths=widths).fit(fitted, y_train, **given)
        return r2(y, taken.predict(_without(X, model.widths, left_out)[0]), sample_weight=score_weight)

    everything = score(None)
    return np.stack([everything - score(band) for band in range(len(layer_names(X, model.widths)))])


def _without(X, widths, left_out: int | None):
    """Return X and its widths without one band."""
    if left_out is None:
        return X, widths
    if isinstance(X, LayerBlocks):
        names = [name for number, name in enumerate(X.names) if number != left_out]
        return X.select(names), None
    kept = [width for number, width in enumerate(widths) if number != left_out]
    stops = np.cumsum(layer_widths(X, widths))
    start = int(stops[left_out]) - widths[left_out]
    return np.delete(X, np.s_[start : int(stops[left_out])], axis=1), kept


def _weights(sample_weight, response: np.ndarray) -> np.ndarray:
    """Return weights per stimulus and target, 0 where a response is missing, that add up to 1 per target."""
    weight = np.ones(len(response)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    seen = np.where(np.isnan(response), 0.0, weight[:, None])
    total = seen.sum(axis=0)
    return seen / np.where(total > 0, total, 1.0)
