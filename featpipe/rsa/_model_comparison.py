"""Which of several models of measured RDMs is better: scores, intervals and tests of all differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from featpipe.errors import RequestError
from featpipe.rsa._compare import compare, with_stimuli_of
from featpipe.rsa._inference import CORRECTIONS, check_choice, correct_p
from featpipe.rsa._nulls import central_interval, check_draws, t_test_of_zero
from featpipe.rsa._rdms import RDMs
from featpipe.rsa._resampling import pair_weights, weighted_similarity
from featpipe.rsa._scores import check_is_rdms, known_mean, over_times, target_columns

TESTS = ("bootstrap", "sign-flip", "t")
OVER = ("subjects", "stimuli", "both")


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Scores of models in each target and tests of all differences between them.

    Parameters
    ----------
    models, targets : tuple of str
    method, test, correction, over : str
        As they were asked for.
    n : int
        Draws of the test.
    scores : ndarray of shape (n_models, n_targets)
        Mean over subjects of `compare`.
    intervals : ndarray of shape (n_models, n_targets, 2)
        95 % interval of each score by bootstrap.
    pairs : tuple of (int, int)
        Positions of the models that are compared.
    differences, p, p_corrected : ndarray of shape (n_pairs, n_targets)
        First model less the second; two-sided p before and after the correction, which is made over all
        pairs and targets.
    """

    models: tuple[str, ...]
    targets: tuple[str, ...]
    method: str
    test: str
    correction: str
    over: str
    n: int
    scores: np.ndarray
    intervals: np.ndarray
    pairs: tuple[tuple[int, int], ...]
    differences: np.ndarray
    p: np.ndarray
    p_corrected: np.ndarray

    def to_frame(self) -> pd.DataFrame:
        """Return a tidy table of differences: target, first, second, difference, p, p_corrected."""
        rows = [
            {
                "target": target,
                "first": self.models[first],
                "second": self.models[second],
                "difference": self.differences[row, column],
                "p": self.p[row, column],
                "p_corrected": self.p_corrected[row, column],
            }
            for column, target in enumerate(self.targets)
            for row, (first, second) in enumerate(self.pairs)
        ]
        return pd.DataFrame(rows, columns=["target", "first", "second", "difference", "p", "p_corrected"])

    def scores_frame(self) -> pd.DataFrame:
        """Return a tidy table of scores: model, target, score, low, high."""
        rows = [
            {"model": model, "target": target, "score": score, "low": low, "high": high}
            for model, scores, intervals in zip(self.models, self.scores, self.intervals, strict=True)
            for target, score, (low, high) in zip(self.targets, scores, intervals, strict=True)
        ]
        return pd.DataFrame(rows, columns=["model", "target", "score", "low", "high"])


def compare_models(
    models: RDMs,
    data: RDMs,
    *,
    method: str = "spearman",
    test: str = "bootstrap",
    over: str = "subjects",
    correction: str = "fdr",
    n: int = 1000,
    seed: int = 0,
) -> ModelComparison:
    """Score models and test every difference between two of them, target by target.

    Parameters
    ----------
    models : RDMs
        One RDM per model, named by `targets`.
    data : RDMs
        One RDM per target, subject and time; times are averaged.
    method : as in `compare`
    test : {"bootstrap", "sign-flip", "t"}
        ``"sign-flip"`` exchanges two models at random in each subject, ``"t"`` is the paired t-test over subjects.
        The bootstrap draws what `over` says.
    over : {"subjects", "stimuli", "both"}
        What a result should hold for. Stimuli are drawn within each set, without pairs of a stimulus with
        itself. ``"both"`` combines three bootstraps, because drawing both at once counts the noise of a measurement
        twice: ``var = 2 (var_subjects + var_stimuli) - var_both``, never below either nor above ``var_both``, and p
        from Student's t with n_subjects - 1 degrees of freedom.
    correction : {"fdr", "holm", "bonferroni", "none"}
        Over all pairs and targets; ``"fdr"`` is Benjamini and Hochberg's.
    n : int
        Draws.
    seed : int

    Raises
    ------
    RequestError
        Fewer than two models, a name twice, fewer than two subjects where they are drawn, unknown options.

    References
    ----------
    Schütt et al. (2023), "Statistical inference on representational geometries", section on the two-factor bootstrap.
    """
    _check_request(models, data, test, over, correction, n)
    models = with_stimuli_of(data, models)
    values = over_times(compare(models, data, method), data)  # (n_models, n_measured)
    drawn = _draws(models, data, values, method, over, n, np.random.default_rng(seed))
    pairs = tuple(combinations(range(models.n_rdms), 2))
    columns = list(target_columns(data).values())
    scores = _by_target(values, columns)
    first, second = np.array(pairs).T
    differences = scores[first] - scores[second]
    if test == "bootstrap":
        spread = {name: draws[:, first] - draws[:, second] for name, draws in drawn.items()}
        p = _bootstrap_p(differences, spread, over, [len(c) for c in columns])
    else:
        per_subject = values[first] - values[second]
        of_subjects = _subject_test(test, n, seed)
        p = np.stack([of_subjects(per_subject[:, c]) for c in columns], axis=1)
    return ModelComparison(
        models=models.targets,
        targets=data.target_names,
        method=method,
        test=test,
        correction=correction,
        over=over,
        n=n,
        scores=scores,
        intervals=_intervals(scores, drawn, over, [len(c) for c in columns]),
        pairs=pairs,
        differences=differences,
        p=p,
        p_corrected=correct_p(p, correction),
    )


def _by_target(values: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """Average the last axis, one entry a subject, within targets."""
    return np.stack([known_mean(values[..., c], axis=-1) for c in columns], axis=-1)


def _draws(
    models: RDMs, data: RDMs, values: np.ndarray, method: str, over: str, n: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return bootstrapped scores by what was drawn: ndarrays of shape (n, n_models, n_targets)."""
    columns = list(target_columns(data).values())
    subjects = [rng.integers(len(c), size=(n, 1, len(c))) for c in columns]
    drawn = {}
    if over != "stimuli":
        drawn["subjects"] = _drawn_subjects(np.broadcast_to(values, (n, *values.shape)), columns, subjects)
    if over != "subjects":
        redone = _drawn_stimuli(models, data, method, n, rng)
        drawn["stimuli"] = _by_target(redone, columns)
        if over == "both":
            drawn["both"] = _drawn_subjects(redone, columns, subjects)
    return drawn


def _drawn_subjects(values: np.ndarray, columns: list[np.ndarray], subjects: list[np.ndarray]) -> np.ndarray:
    means = [
        known_mean(np.take_along_axis(values[..., c], chosen, axis=-1), axis=-1)
        for c, chosen in zip(columns, subjects, strict=True)
    ]
    return np.stack(means, axis=-1)


def _drawn_stimuli(models: RDMs, data: RDMs, method: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Compare on stimuli drawn with replacement in each set: ndarray of shape (n, n_models, n_measured)."""
    parts = []
    for (_, part), (_, of_models) in zip(data.split_sets(), models.split_sets(), strict=True):
        weights = pair_weights(len(part), n, rng)
        parts.append(weighted_similarity(of_models.upper(), part.upper(), weights, method))
    return over_times(known_mean(np.array(parts), axis=0), data)


def _variance(drawn: dict[str, np.ndarray], over: str) -> np.ndarray:
    """Return the variance of scores or differences, over draws on the first axis."""
    alone = {name: _known_variance(draws) for name, draws in drawn.items()}
    if over != "both":
        return alone[over]
    combined = 2 * (alone["subjects"] + alone["stimuli"]) - alone["both"]
    at_least = np.maximum(alone["subjects"], alone["stimuli"])
    return np.minimum(np.maximum(combined, at_least), alone["both"])


def _known_variance(draws: np.ndarray) -> np.ndarray:
    deviations = draws - known_mean(draws, axis=0)
    return known_mean(deviations**2, axis=0) * len(draws) / max(1, len(draws) - 1)


def _bootstrap_p(
    differences: np.ndarray, spread: dict[str, np.ndarray], over: str, n_subjects: list[int]
) -> np.ndarray:
    """Return two-sided p: the share of draws beyond 0, or Student's t where two factors were drawn."""
    from scipy.stats import t  # slow to import

    if over != "both":
        draws = spread[over]
        below, above = (draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0)
        p = np.minimum(1, 2 * (1 + np.minimum(below, above)) / (1 + len(draws)))
        return np.where(np.isnan(differences), np.nan, p)
    error = np.sqrt(_variance(spread, over))
    ratio = np.divide(differences, error, out=0 * differences, where=error > 0)  # NaN stays
    return 2 * t.sf(np.abs(ratio), np.array(n_subjects) - 1)


def _intervals(
    scores: np.ndarray, drawn: dict[str, np.ndarray], over: str, n_subjects: list[int]
) -> np.ndarray:
    """Return 95 % intervals of scores: ndarray of shape (n_models, n_targets, 2)."""
    from scipy.stats import t  # slow to import

    if over != "both":
        return np.moveaxis(central_interval(drawn[over]), 0, -1)
    half = t.ppf(0.975, np.array(n_subjects) - 1) * np.sqrt(_variance(drawn, over))
    return np.stack([scores - half, scores + half], axis=-1)


def _subject_test(test: str, n: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from differences per subject, (n_pairs, n_subjects), to two-sided p, (n_pairs,)."""
    if test == "t":
        return _paired_t
    return lambda differences: _sign_flips(differences, n, np.random.default_rng(seed))


def _paired_t(differences: np.ndarray) -> np.ndarray:
    return np.array([t_test_of_zero(row) for row in differences])


def _sign_flips(differences: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``(1 + #{|flipped mean| >= |mean|}) / (1 + n)``."""
    known = np.where(np.isnan(differences), 0, differences)  # adds nothing to either sum
    signs = rng.choice([-1.0, 1.0], size=(n, differences.shape[1]))
    flipped, observed = np.abs(signs @ known.T), np.abs(known.sum(axis=1))
    reached = (flipped >= observed * (1 - 1e-12)).sum(axis=0)
    return np.where(np.isnan(differences).all(axis=1), np.nan, (1 + reached) / (1 + n))


def _check_request(models: RDMs, data: RDMs, test: str, over: str, correction: str, n: int) -> None:
    check_choice("test", test, TESTS)
    check_choice("over", over, OVER)
    check_choice("correction", correction, CORRECTIONS)
    check_draws(n)
    for given in (models, data):
        check_is_rdms(given)
    if models.n_rdms < 2 or len(models.target_names) < models.n_rdms:
        raise RequestError(
            f"Models are told apart by their targets, but the {models.n_rdms} models have "
            f"{len(models.target_names)} different ones; give at least two models and a name to each."
        )
    fewest = min(len(columns) for columns in target_columns(data).values())
    if fewest < 2 and (over != "stimuli" or test != "bootstrap"):
        raise RequestError(
            "A target with one subject says nothing about other subjects; use test='bootstrap' with over='stimuli'."
        )
