"""The official scores of the Algonauts 2019 challenge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._challenge import TRACKS
from featpipe.rsa._nulls import permutation_null, t_test_of_zero
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._scores import check_is_rdms, known_mean, rdm_ceiling, rdm_r2, rdm_rho

# Upper ceilings of R² that the organisers published, by number of stimuli of the set
OFFICIAL_CEILINGS = {
    92: {"EVC": 0.1589, "IT": 0.3075, "MEG-early": 0.4634, "MEG-late": 0.2275},
    118: {"EVC": 0.1048, "IT": 0.0728, "MEG-early": 0.3468, "MEG-late": 0.2265},
    78: {"EVC": 0.0640, "IT": 0.0647, "MEG-early": 0.3562, "MEG-late": 0.4452},
}


def algonauts2019_scores(
    y_true: RDMs, y_pred_by_target: Mapping[str, RDMs], *, n: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score predicted RDMs as the Algonauts 2019 challenge does, one stimulus set at a time.

    A target's score is ``R² = mean_s ρ_s²`` with Spearman's ρ between the prediction and the RDM of subject s; of
    MEG with a time axis, ``mean_s (mean_t ρ_st)²``. Its percent is ``100 R² / ceiling``; a track's percent is
    ``100 mean(R²) / mean(ceiling)`` over its two targets.

    Parameters
    ----------
    y_true : RDMs
        With targets EVC, IT, MEG-early and MEG-late, or some of them.
    y_pred_by_target : mapping of target to RDMs with one RDM
    n : int
        Permutations of stimuli for the p beside the official one.
    seed : int

    Returns
    -------
    dict
        ``{"sets": {SET: {"n_stimuli": …, "targets": {TARGET: …}, "tracks": {"fmri": …, "meg": …}}}}``. A target
        has ``r2``, ``rho`` (signed, mean over subjects), ``ceiling`` and ``percent`` (ceiling computed from the
        data), ``official_ceiling`` and ``official_percent`` (the published constant; None unless the set has 92,
        118 or 78 stimuli, and for MEG that lost its time axis), ``t_test_p`` (official: ρ² against 0, which is
        never true) and ``permutation_p``. A track has ``percent`` and ``official_percent``, None unless both of
        its targets are predicted.

    Raises
    ------
    RequestError
        A prediction for a target that was not measured, or none at all; as `rdm_rho`.

    References
    ----------
    Cichy et al. (2019), "The Algonauts Project: a platform for communication between the sciences of biological
    and artificial intelligence", section "Evaluation procedure".
    """
    check_is_rdms(y_true)
    _check_targets(y_true, y_pred_by_target)
    sets = {}
    for name, part in y_true.split_sets():
        targets = {
            target: _target_scores(part.select(targets=[target]), pred, n, seed)
            for target, pred in y_pred_by_target.items()
        }
        tracks = {track: _track_scores([targets.get(t) for t in names]) for track, names in TRACKS.items()}
        sets[name] = {"n_stimuli": len(part), "targets": targets, "tracks": tracks}
    return {"sets": sets}


def official_ceiling(target: str, n_stimuli: int) -> float | None:
    """Return the ceiling of R² that the challenge published for a whole image set, None for any other."""
    return OFFICIAL_CEILINGS.get(n_stimuli, {}).get(target)


def _target_scores(y_true: RDMs, y_pred: RDMs, n: int, seed: int) -> dict[str, Any]:
    r2 = rdm_r2(y_true, y_pred)
    score, ceiling, rho = (
        _number(known_mean(values, axis=0))
        for values in (r2, rdm_ceiling(y_true, y_pred), rdm_rho(y_true, y_pred))
    )
    timed = y_true.times is not None and len(set(y_true.times)) > 1
    fits = timed or y_true.targets[0] not in TRACKS["meg"]  # the constants of MEG are those of single times
    published = official_ceiling(y_true.targets[0], len(y_true)) if fits else None
    return {
        "r2": score,
        "rho": rho,
        "ceiling": ceiling,
        "percent": _percent([score], [ceiling]),
        "official_ceiling": published,
        "official_percent": _percent([score], [published]),
        "t_test_p": _number(t_test_of_zero(r2)),
        "permutation_p": _number(permutation_null(y_true, y_pred, n=n, seed=seed).p[0]),
    }


def _track_scores(targets: list[dict[str, Any] | None]) -> dict[str, Any]:
    found = [scores for scores in targets if scores is not None]
    if len(found) < len(targets):
        return {"percent": None, "official_percent": None}
    scores = [target["r2"] for target in found]
    return {
        "percent": _percent(scores, [target["ceiling"] for target in found]),
        "official_percent": _percent(scores, [target["official_ceiling"] for target in found]),
    }


def _percent(scores: list[float | None], ceilings: list[float | None]) -> float | None:
    """Return 100 times the ratio of means, None where a number is missing."""
    known_scores = [value for value in scores if value is not None]
    known = [value for value in ceilings if value is not None]
    if len(known_scores) < len(scores) or len(known) < len(ceilings) or not sum(known):
        return None
    return 100 * sum(known_scores) / sum(known)


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _check_targets(y_true: RDMs, y_pred_by_target: Mapping[str, RDMs]) -> None:
    if not y_pred_by_target:
        raise RequestError("There is no prediction to score; give a mapping of targets to RDMs.")
    if unknown := [target for target in y_pred_by_target if target not in y_true.targets]:
        raise RequestError(
            f"There is a prediction for {unknown[0]!r}, but measured are {', '.join(y_true.target_names)}."
        )
