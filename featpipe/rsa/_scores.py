"""Scores of a predicted RDM: Spearman's rho with each subject's RDM, within stimulus sets, and ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._main_effects import remove_main_effects
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._similarity import known_pairs, similarity


@dataclass(frozen=True, eq=False)
class Unit:
    """Pairs that are scored together: those of one stimulus set, and of one fold where there are folds.

    Parameters
    ----------
    block : int
        The fold, 0 where there is none.
    n_stimuli : int
    true : ndarray of shape (n_rdms, n_pairs)
    pred : ndarray of shape (n_pairs,)
    """

    block: int
    n_stimuli: int
    true: np.ndarray
    pred: np.ndarray


def measured_labels(y: RDMs) -> list[tuple[str, str]]:
    """Return the (target, subject) of each score, in the order of first appearance."""
    return list(dict.fromkeys(zip(y.targets, y.subjects, strict=True)))


def rdm_rho(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return Spearman's rho of a predicted RDM with every measured RDM.

    Ranks and correlates within each stimulus set, on the pairs that are measured and predicted, and takes the
    mean over sets. With a time axis, the mean over times.

    Parameters
    ----------
    y_true : RDMs
        One RDM per target, subject and time.
    y_pred : RDMs with one RDM
        Must hold the stimuli of `y_true`, in any order.

    Returns
    -------
    rho : ndarray of shape (n_measured,)
        One per (target, subject), see `measured_labels`. 0 where the prediction is constant, NaN where no set
        has three pairs.

    Raises
    ------
    RequestError
        More than one predicted RDM, or a stimulus without prediction.
    """
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_rhos(units, y_true))


def rdm_r2(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return rho², squared within each stimulus set after the mean over times, then averaged over sets.

    Parameters, shape and errors are those of `rdm_rho`. The mean over subjects of a target is the score of the
    Algonauts 2019 challenge. It rewards the wrong sign; look at `rdm_rho` as well.
    """
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_rhos(units, y_true) ** 2)


def rdm_rho_centred(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return `rdm_rho` after additive main effects of stimuli were removed from both RDMs in each set."""
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_rhos(units, y_true, centred=True))


def rdm_r2_centred(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return `rdm_r2` after additive main effects of stimuli were removed from both RDMs in each set."""
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_rhos(units, y_true, centred=True) ** 2)


def rdm_ceiling(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return the upper noise ceiling of `rdm_r2`, on the same pairs.

    ``Spearman(d_s, mean over all subjects of d)²``, the mean taken over raw dissimilarities of the subject's
    target; with a time axis within each time, and the square after the mean over times. This is the ceiling
    of the Algonauts 2019 challenge. Parameters, shape and errors are those of `rdm_rho`.
    """
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_ceilings(units, y_true))


def rdm_ceiling_lower(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return `rdm_ceiling` with the subject left out of the mean; NaN where a target has one subject."""
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_ceilings(units, y_true, leave_out=True))


def rdm_percent(y_true: RDMs, y_pred: RDMs) -> np.ndarray:
    """Return `rdm_r2` in percent of the target's ceiling, divided within each set, then averaged over sets.

    The ceiling is the mean over subjects of `rdm_ceiling`, so that the mean over the subjects of a target is
    the noise-normalised percent of the Algonauts 2019 challenge, a ratio of means. NaN where the ceiling is 0.
    """
    units = scoring_units(y_true, y_pred)
    return over_units(units, unit_percents(units, y_true, unit_rhos(units, y_true)))


RDM_METRICS: dict[str, Callable[[RDMs, RDMs], np.ndarray]] = {
    function.__name__: function
    for function in (
        rdm_rho,
        rdm_r2,
        rdm_ceiling,
        rdm_ceiling_lower,
        rdm_percent,
        rdm_rho_centred,
        rdm_r2_centred,
    )
}


# What the scores and their chance levels share


def scoring_units(y_true: RDMs, y_pred: RDMs, blocks: np.ndarray | None = None) -> list[Unit]:
    """Split measured and predicted RDMs into the pairs that are scored together.

    Parameters
    ----------
    y_true : RDMs
    y_pred : RDMs with one RDM
    blocks : array of int, shape (n_stimuli,), optional
        Fold of each stimulus of `y_true`; -1 where it is not scored.
    """
    y_pred = aligned(y_true, y_pred)
    labels = np.zeros(len(y_true), dtype=int) if blocks is None else _checked_blocks(blocks, len(y_true))
    if not (labels >= 0).any():
        raise RequestError("No stimulus is scored: there is none, or every block is -1.")
    units = []
    sets = y_true.sets
    for block in np.unique(labels[labels >= 0]).tolist():
        for name in dict.fromkeys(sets.tolist()):
            rows = np.flatnonzero((labels == block) & (sets == name))
            pred = y_pred[rows].upper()[0]
            units.append(Unit(block, len(rows), y_true[rows].upper(), pred))
    return units


def aligned(y_true: RDMs, y_pred: RDMs) -> RDMs:
    """Return the predicted RDM with the stimuli of the measured ones, in their order."""
    for given in (y_true, y_pred):
        check_is_rdms(given)
    if y_pred.n_rdms != 1:
        raise RequestError(
            f"A prediction is one RDM, but got {y_pred.n_rdms}. Score them one by one (RDMs.rows), or use compare."
        )
    return y_pred if np.array_equal(y_true.ids, y_pred.ids) else y_pred.take(y_true.ids)


def check_is_rdms(given: object) -> None:
    """Refuse what is no `RDMs`."""
    if not isinstance(given, RDMs):
        raise RequestError(
            f"RDM scores compare RDMs, but got {type(given).__name__}. Wrap matrices in RDMs(values, ids)."
        )


def unit_rhos(units: list[Unit], y: RDMs, *, centred: bool = False) -> np.ndarray:
    """Return rho per unit, mean over times: ndarray of shape (n_units, n_measured)."""
    rho = [_centred_rhos(unit) if centred else similarity(unit.pred[None], unit.true)[0] for unit in units]
    return over_times(np.array(rho).reshape(len(units), y.n_rdms), y)


def unit_ceilings(units: list[Unit], y: RDMs, *, leave_out: bool = False) -> np.ndarray:
    """Return the ceiling of r² per unit and (target, subject): ndarray of shape (n_units, n_measured)."""
    rho = [_ceiling_rhos(unit, y, leave_out) for unit in units]
    return over_times(np.array(rho).reshape(len(units), y.n_rdms), y) ** 2


def unit_percents(units: list[Unit], y: RDMs, rho: np.ndarray) -> np.ndarray:
    """Turn rho of shape (..., n_units, n_measured) into r² in percent of the target's ceiling there."""
    mean = np.empty((len(units), rho.shape[-1]))
    ceilings = unit_ceilings(units, y)
    for columns in target_columns(y).values():
        mean[:, columns] = known_mean(ceilings[:, columns], axis=1)[:, None]
    return np.divide(100 * rho**2, mean, out=np.full(rho.shape, np.nan), where=mean > 0)


def over_times(values: np.ndarray, y: RDMs) -> np.ndarray:
    """Average the last axis, one entry an RDM, over the times of each (target, subject)."""
    place: dict[tuple[str, str], list[int]] = {}
    for row, label in enumerate(zip(y.targets, y.subjects, strict=True)):
        place.setdefault(label, []).append(row)
    return np.stack([known_mean(values[..., rows], axis=-1) for rows in place.values()], axis=-1)


def over_units(units: list[Unit], values: np.ndarray) -> np.ndarray:
    """Average (..., n_units, n_measured) over the sets of each fold, then over folds."""
    blocks = np.array([unit.block for unit in units], dtype=int)
    folds = [known_mean(values[..., blocks == block, :], axis=-2) for block in np.unique(blocks)]
    return known_mean(np.stack(folds, axis=-2), axis=-2)


def target_columns(y: RDMs) -> dict[str, np.ndarray]:
    """Return the positions of each target among `measured_labels`."""
    labels = measured_labels(y)
    return {
        target: np.array([place for place, (name, _) in enumerate(labels) if name == target])
        for target in y.target_names
    }


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Average what is not NaN along an axis; NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _checked_blocks(blocks: np.ndarray, n_stimuli: int) -> np.ndarray:
    blocks = np.asarray(blocks)
    if blocks.shape != (n_stimuli,) or blocks.dtype.kind not in "iu":
        raise RequestError(
            f"blocks has shape {blocks.shape} and dtype {blocks.dtype}; give one integer for each of {n_stimuli} "
            "stimuli, the number of its fold, or -1 where it is not scored."
        )
    return blocks


def _centred_rhos(unit: Unit) -> np.ndarray:
    """Return rho of what main effects leave, fitted to the pairs that both sides have."""
    rho = np.full(len(unit.true), np.nan)
    for rows, known in known_pairs(np.where(np.isnan(unit.pred), np.nan, unit.true)):
        both = [np.where(known, vectors, np.nan) for vectors in (unit.pred[None], unit.true[rows])]
        pred, true = (remove_main_effects(vectors, unit.n_stimuli) for vectors in both)
        rho[rows] = similarity(pred, true)[0]
    return rho


def _ceiling_rhos(unit: Unit, y: RDMs, leave_out: bool) -> np.ndarray:
    """Return rho of each RDM with the mean over the subjects of its target and time."""
    true = np.where(np.isnan(unit.pred), np.nan, unit.true.astype(np.float64))
    rho = np.full(y.n_rdms, np.nan)
    for rows, others in _ceiling_groups(y, leave_out):
        rho[rows] = similarity(known_mean(true[others], axis=0)[None], true[rows])[0]
    return rho


def _ceiling_groups(y: RDMs, leave_out: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the RDMs that are compared with a mean and those that the mean is taken over."""
    targets, subjects, times = np.array(y.targets), np.array(y.subjects), np.array(y.times or [0] * y.n_rdms)
    for target, time in dict.fromkeys(zip(y.targets, times.tolist(), strict=True)):
        rows = np.flatnonzero((targets == target) & (times == time))
        if not leave_out:
            yield rows, rows
            continue
        for subject in np.unique(subjects[rows]):
            own = subjects[rows] == subject
            yield rows[own], rows[~own]
