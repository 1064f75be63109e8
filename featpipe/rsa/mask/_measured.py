"""The measured side of a channel mask: pairs, their weights, and times to draw from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs


@dataclass(frozen=True, eq=False)
class Batch:
    """Some measured dissimilarities, ready for a loss.

    Parameters
    ----------
    values : ndarray of shape (n_rdms, n_pairs)
        0 where a pair was not measured.
    weights : ndarray of shape (n_rdms, n_pairs)
        Not negative, 0 where a pair was not measured; their sum is 1.
    target : ndarray of int, shape (n_rdms,)
    stimulus_set : ndarray of int, shape (n_pairs,)
    """

    values: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    stimulus_set: np.ndarray


@dataclass(frozen=True, eq=False)
class Measured:
    """Dissimilarities of the pairs that a mask is fitted to.

    Parameters
    ----------
    values : ndarray of shape (n_rdms, n_pairs)
        NaN where a pair was not measured.
    pair_weights : ndarray of shape (n_targets, n_pairs)
        Reliability, mean 1 per target.
    rdm_weights : ndarray of shape (n_rdms,)
        Sum 1 per subject and target: probabilities of its times.
    target : ndarray of int, shape (n_rdms,)
    stimulus_set : ndarray of int, shape (n_pairs,)
    series : tuple of ndarray of int, shape (n_subjects, n_times), optional
        Rows of `values` per target, where times are drawn.
    """

    values: np.ndarray
    pair_weights: np.ndarray
    rdm_weights: np.ndarray
    target: np.ndarray
    stimulus_set: np.ndarray
    series: tuple[np.ndarray, ...] | None = None

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return int(self.values.shape[1])

    def take(self, pairs: np.ndarray) -> Measured:
        """Select pairs, with the weights that they have."""
        return Measured(
            self.values[:, pairs],
            self.pair_weights[:, pairs],
            self.rdm_weights,
            self.target,
            self.stimulus_set[pairs],
            self.series,
        )

    def all(self) -> Batch:
        """Return every pair, the expectation over times."""
        weights = self.rdm_weights[:, None] * self.pair_weights[self.target]
        return _batch(self.values, weights, self.target, self.stimulus_set)

    def draw(self, pairs: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return some pairs, with one time drawn for each pair and target where there are times to draw."""
        if self.series is None:
            return self.take(pairs).all()
        values, target = [], []
        for position, rows in enumerate(self.series):
            chance = self.rdm_weights[rows[0]]
            time = rng.choice(rows.shape[1], size=len(pairs), p=chance)
            values.append(self.values[rows[:, time], pairs])  # (n_subjects, n_pairs)
            target += [position] * len(rows)
        weights = self.pair_weights[:, pairs][target]
        return _batch(np.concatenate(values), weights, np.array(target), self.stimulus_set[pairs])


def _batch(values: np.ndarray, weights: np.ndarray, target: np.ndarray, stimulus_set: np.ndarray) -> Batch:
    known = ~np.isnan(values)
    weights = np.where(known, weights, 0.0)
    total = weights.sum()
    return Batch(np.where(known, values, 0.0), weights / (total or 1.0), target, stimulus_set)


def measured_pairs(
    rdms: RDMs,
    first: np.ndarray,
    second: np.ndarray,
    *,
    reliability: tuple[float, float] | None = None,
    time_sampling: str | None = None,
) -> Measured:
    """Collect the dissimilarities of pairs within stimulus sets.

    Parameters
    ----------
    rdms : RDMs
    first, second : ndarray of int, shape (n_pairs,)
        Rows of the two stimuli.
    reliability : (alpha, beta), optional
        Of `reliability_weights`; equal weights by default.
    time_sampling : {None, "mean", "gaussian"}
        All times alike, their mean, or drawn (and in `Measured.all` weighed) by a Gaussian.

    Raises
    ------
    RequestError
        "gaussian" without a time axis.
    """
    if time_sampling == "gaussian" and rdms.times is None:
        raise RequestError(
            "time_sampling='gaussian' draws from the times of MEG, and these RDMs have no time axis. Set "
            "time_sampling='mean' (--set STEP__time_sampling=mean), or give RDMs with times."
        )
    rdms = rdms.average_times() if time_sampling == "mean" else rdms
    names = rdms.target_names
    target = np.array([names.index(name) for name in rdms.targets])
    values = rdms.values[:, first, second].astype(np.float64)
    sets = list(dict.fromkeys(rdms.sets.tolist()))
    weights = _time_weights(rdms, time_sampling)
    return Measured(
        values=values,
        pair_weights=np.stack(
            [
                reliability_weights(_subject_means(rdms, values, weights, position), reliability)
                for position in range(len(names))
            ]
        ),
        rdm_weights=weights,
        target=target,
        stimulus_set=np.array([sets.index(name) for name in rdms.sets[first].tolist()], dtype=int),
        series=_series(rdms) if time_sampling == "gaussian" else None,
    )


def reliability_weights(values: np.ndarray, parameters: tuple[float, float] | None) -> np.ndarray:
    """Weigh pairs by how well subjects agree: ``w = (1 / (N + alpha mean(N)))**beta``.

    Parameters
    ----------
    values : ndarray of shape (n_subjects, n_pairs)
        NaN where a pair was not measured.
    parameters : (alpha, beta) or None
        None weighs all alike.

    Returns
    -------
    weights : ndarray of shape (n_pairs,)
        Scaled to mean 1. N is the standard deviation over subjects; where it is 0 throughout, as with one
        subject, weights are 1.

    References
    ----------
    Gaziv (2019), equation 1.
    """
    n_pairs = values.shape[1]
    if parameters is None:
        return np.ones(n_pairs)
    alpha, beta = parameters
    known = ~np.isnan(values)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / counts
    noise = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(axis=0) / counts)
    measured = known.any(axis=0)
    typical = noise[measured].mean() if measured.any() else 0.0
    floor = np.finfo(float).eps * max(np.abs(mean).max(initial=0.0), np.finfo(float).tiny)
    if typical <= floor:
        return np.ones(n_pairs)
    weights = (1 / np.maximum(noise + alpha * typical, floor)) ** beta
    return np.where(measured, weights / weights[measured].mean(), 0.0)


def gaussian_times(n_times: int) -> np.ndarray:
    """Return the chance of each time: largest in the middle, three deviations to either end."""
    place = np.arange(n_times) - (n_times - 1) / 2
    chance = np.exp(-0.5 * (place / (n_times / 6)) ** 2)
    return chance / chance.sum()


def _time_weights(rdms: RDMs, time_sampling: str | None) -> np.ndarray:
    weights = np.empty(rdms.n_rdms)
    for rows in _rows_of_subjects(rdms):
        weights[rows] = gaussian_times(len(rows)) if time_sampling == "gaussian" else 1 / len(rows)
    return weights


def _rows_of_subjects(rdms: RDMs, target: str | None = None) -> list[np.ndarray]:
    """Return the rows of each subject and target, by time."""
    times = rdms.times or tuple(range(rdms.n_rdms))
    groups: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(times, kind="stable").tolist():
        if target in (None, rdms.targets[row]):
            groups.setdefault((rdms.targets[row], rdms.subjects[row]), []).append(row)
    return [np.array(rows) for rows in groups.values()]


def _series(rdms: RDMs) -> tuple[np.ndarray, ...]:
    found = []
    for name in rdms.target_names:
        rows = _rows_of_subjects(rdms, name)
        if len({len(times) for times in rows}) > 1:
            raise RequestError(
                f"Subjects of target {name!r} have different numbers of times; give all the same."
            )
        found.append(np.stack(rows))
    return tuple(found)


def _subject_means(rdms: RDMs, values: np.ndarray, weights: np.ndarray, position: int) -> np.ndarray:
    rows = _rows_of_subjects(rdms, rdms.target_names[position])
    return np.stack([weights[own] @ values[own] for own in rows])
