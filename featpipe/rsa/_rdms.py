"""`RDMs`: representational dissimilarity matrices as a target that scikit-learn can split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from featpipe.errors import RequestError

_ASYMMETRY = 1e-4  # of the largest dissimilarity: what float32 files may show


class RDMs:
    """Dissimilarities between stimuli, one matrix a subject, that present one sample axis.

    ``len(rdms) == n_stimuli`` and ``rdms.shape == (n_stimuli,)``; indexing selects stimuli and slices both
    axes of every matrix, so that `KFold`, `cross_validate` and `GridSearchCV` split stimuli and never pairs.
    Values do not change after construction. There is no ``__array__``: an RDM is no column of numbers, and so
    `cross_val_predict`, which puts the predictions of folds under one another, does not take RDMs;
    `featpipe.evaluate` with ``return_predictions=True`` does.

    Parameters
    ----------
    values : array of shape (n_rdms, n_stimuli, n_stimuli) or (n_stimuli, n_stimuli)
        Symmetric; NaN where a pair was never measured. The diagonal is not looked at and becomes 0. Pairs
        of one stimulus with itself, as after a bootstrap of stimuli, become NaN. float32 is kept, all else
        becomes float64.
    ids : sequence of str, length n_stimuli, optional
        Stimulus ids, ``SET/NAME`` where stimulus sets are joined; ``"0"``, ``"1"``, … by default.
    subjects : sequence of str, length n_rdms, optional
        Whose RDM it is; ``"0"``, ``"1"``, … by default.
    targets : sequence of str, length n_rdms, optional
        Region or time window, such as ``"EVC"``; empty by default.
    times : sequence of int, length n_rdms, optional
        Position on the time axis of MEG. Several RDMs of one subject and target differ in it.

    Raises
    ------
    RequestError
        Shapes that do not fit, infinite or asymmetric values.
    """

    def __init__(
        self,
        values: Any,
        ids: Sequence[str] | np.ndarray | None = None,
        *,
        subjects: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        stack = _as_stack(values)
        n_rdms, n_stimuli = stack.shape[:2]
        self.ids = _labels("ids", range(n_stimuli) if ids is None else ids, n_stimuli)
        self.subjects = tuple(
            _labels("subjects", range(n_rdms) if subjects is None else subjects, n_rdms).tolist()
        )
        self.targets = tuple(
            _labels("targets", [""] * n_rdms if targets is None else targets, n_rdms).tolist()
        )
        self.times = None if times is None else tuple(int(t) for t in _labels("times", times, n_rdms))
        _blank_self_pairs(stack, self.ids)
        stack.flags.writeable = False
        self.values = stack

    # What scikit-learn, joblib and dask look at

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int]:
        """(n_stimuli,): the sample axis. `values` has the other shape."""
        return (len(self),)

    @property
    def ndim(self) -> int:
        """1, as `shape` has it."""
        return 1

    def __getitem__(self, rows: Any) -> Self:
        """Select stimuli by integers, booleans or a slice, on both axes; a tuple's first entry selects."""
        if isinstance(rows, tuple):
            if not rows or any(part is not Ellipsis and part != slice(None) for part in rows[1:]):
                raise RequestError(
                    f"RDMs have one axis, the stimuli; the index {rows!r} has more. Use values for single matrices."
                )
            rows = rows[0]
        rows = np.atleast_1d(np.arange(len(self))[rows])
        return self._with(self.values[:, rows[:, None], rows], ids=self.ids[rows])

    __iter__ = None  # a loop over stimuli is always a mistake; `split_sets` and `values` are there

    def __sizeof__(self) -> int:
        return int(object.__sizeof__(self)) + int(self.values.nbytes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.values.flags.writeable = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RDMs):
            return NotImplemented
        return self._described() == other._described() and np.array_equal(
            self.values, other.values, equal_nan=True
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        targets = ", ".join(dict.fromkeys(filter(None, self.targets)))
        of = f"; {targets}" if targets else ""
        return f"RDMs({self.n_rdms} RDMs of {self.n_subjects} subjects, {len(self)} stimuli{of})"

    # Counts and labels

    @property
    def n_rdms(self) -> int:
        """Number of matrices: subjects × targets × times."""
        return int(self.values.shape[0])

    @property
    def n_stimuli(self) -> int:
        """Number of stimuli."""
        return len(self)

    @property
    def n_subjects(self) -> int:
        """Number of different subjects."""
        return len(set(self.subjects))

    @property
    def n_pairs(self) -> int:
        """Number of pairs of stimuli, measured or not."""
        return len(self) * (len(self) - 1) // 2

    @property
    def sets(self) -> np.ndarray:
        """Stimulus set of each stimulus, what stands before the first ``/`` of its id: shape (n_stimuli,)."""
        return stimulus_sets(self.ids)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The different targets, in their order."""
        return tuple(dict.fromkeys(self.targets))

    # Selections

    def select(
        self, *, targets: str | Sequence[str] | None = None, subjects: str | Sequence[str] | None = None
    ) -> Self:
        """Keep the RDMs of some targets and subjects, in the order they are in; a str is one of them."""
        keep = np.ones(self.n_rdms, dtype=bool)
        for name, labels, wanted in (
            ("target", self.targets, targets),
            ("subject", self.subjects, subjects),
        ):
            if wanted is None:
                continue
            wanted = [wanted] if isinstance(wanted, str) else wanted
            if unknown := [w for w in wanted if w not in labels]:
                raise RequestError(
                    f"There is no {name} {unknown[0]!r} among these RDMs, only {', '.join(dict.fromkeys(labels))}."
                )
            keep &= np.isin(labels, list(wanted))
        return self.rows(np.flatnonzero(keep))

    def rows(self, rdms: np.ndarray) -> Self:
        """Keep some matrices, by their positions on the first axis."""
        times = None if self.times is None else [self.times[i] for i in rdms]
        subjects, targets = [self.subjects[i] for i in rdms], [self.targets[i] for i in rdms]
        return self._with(self.values[rdms], subjects=subjects, targets=targets, times=times)

    def take(self, ids: Sequence[str] | np.ndarray) -> Self:
        """Select stimuli by id, in the order given.

        Raises
        ------
        RequestError
            An id is not here, or here twice.
        """
        place = {name: row for row, name in enumerate(self.ids.tolist())}
        if len(place) != len(self):
            raise RequestError("These RDMs hold a stimulus twice, so ids do not say which; select by rows.")
        wanted = np.asarray(ids, dtype=str).tolist()
        if missing := [name for name in wanted if name not in place]:
            raise RequestError(
                f"{len(missing)} of {len(wanted)} stimuli are not in these RDMs, first {missing[0]!r}. Check that "
                "the ids match."
            )
        return self[np.array([place[name] for name in wanted], dtype=int)]

    def split_sets(self) -> Iterator[tuple[str, Self]]:
        """Yield (name, RDMs) of each stimulus set, in the order of first appearance."""
        sets = self.sets
        for name in dict.fromkeys(sets.tolist()):
            yield name, self[np.flatnonzero(sets == name)]

    # Pairs

    def upper(self) -> np.ndarray:
        """Return each upper triangle row by row, without the diagonal: ndarray of shape (n_rdms, n_pairs)."""
        first, second = np.triu_indices(len(self), 1)
        return self.values[:, first, second]

    @classmethod
    def from_upper(cls, vectors: Any, ids: Sequence[str] | np.ndarray | None = None, **labels: Any) -> Self:
        """Make RDMs of upper triangles, the inverse of `upper`.

        Parameters
        ----------
        vectors : array of shape (n_rdms, n_pairs) or (n_pairs,)
        ids, **labels
            As in `RDMs`.
        """
        vectors = np.atleast_2d(np.asarray(vectors))
        n_stimuli = round((1 + np.sqrt(1 + 8 * vectors.shape[1])) / 2)
        if n_stimuli * (n_stimuli - 1) // 2 != vectors.shape[1]:
            raise RequestError(
                f"{vectors.shape[1]} dissimilarities are no upper triangle; n stimuli have n (n - 1) / 2 pairs."
            )
        return cls(squares(vectors, n_stimuli), ids, **labels)

    def with_upper(self, vectors: np.ndarray) -> Self:
        """Return RDMs with the same labels and other dissimilarities, given as in `upper`."""
        return self._with(squares(vectors, len(self)))

    # Over subjects, and within them

    def mean(self) -> Self:
        """Return the mean over all RDMs as one RDM; NaN only where no subject has the pair."""
        known = ~np.isnan(self.values)
        counts = known.sum(axis=0)
        total = np.where(known, self.values, 0.0).sum(axis=0, dtype=np.float64)
        mean = np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        one_target = self.target_names[0] if len(self.target_names) == 1 else ""
        return self._with(mean[None], subjects=["mean"], targets=[one_target], times=None)

    def average_times(self) -> Self:
        """Return one RDM per target and subject, the mean over its times; itself where there are none."""
        if self.times is None:
            return self
        groups: dict[tuple[str, str], list[int]] = {}
        for row, label in enumerate(zip(self.targets, self.subjects, strict=True)):
            groups.setdefault(label, []).append(row)
        means = [self.rows(np.array(rows)).mean().values[0] for rows in groups.values()]
        targets, subjects = zip(*groups, strict=True)
        return self._with(np.stack(means), subjects=subjects, targets=targets, times=None)

    def zscore(self) -> Self:
        """Standardise the pairs of each RDM within each stimulus set to mean 0 and deviation 1.

        Pairs across sets stay as they are. A constant RDM becomes 0.
        """
        return self._within_sets(_zscored)

    def rank(self) -> Self:
        """Replace dissimilarities by their ranks from 1 on, ties averaged, per RDM and stimulus set.

        Pairs across sets stay as they are, and so do pairs that were not measured.
        """
        return self._within_sets(_ranked)

    def _within_sets(self, change: Any) -> Self:
        vectors = self.upper().astype(np.float64)
        first, second = np.triu_indices(len(self), 1)
        sets = self.sets
        for name in dict.fromkeys(sets.tolist()):
            pairs = (sets[first] == name) & (sets[second] == name)
            vectors[:, pairs] = change(vectors[:, pairs])
        return self.with_upper(vectors)

    # Copies

    def _with(self, values: np.ndarray, **labels: Any) -> Self:
        kept: dict[str, Any] = {
            "ids": self.ids,
            "subjects": self.subjects,
            "targets": self.targets,
            "times": self.times,
        }
        kept |= labels
        return type(self)(values, kept.pop("ids"), **kept)

    def _described(self) -> tuple[Any, ...]:
        return (tuple(self.ids.tolist()), self.subjects, self.targets, self.times)


def stimulus_sets(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the stimulus set of each id, what stands before the first ``/``; empty where there is none."""
    return np.array([i.partition("/")[0] if "/" in i else "" for i in np.asarray(ids, dtype=str).tolist()])


def squares(vectors: np.ndarray, n_stimuli: int) -> np.ndarray:
    """Return symmetric matrices of upper triangles: ndarray of shape (n_rdms, n_stimuli, n_stimuli)."""
    first, second = np.triu_indices(n_stimuli, 1)
    matrices = np.zeros((len(vectors), n_stimuli, n_stimuli), dtype=vectors.dtype)
    matrices[:, first, second] = vectors
    matrices[:, second, first] = vectors
    return matrices


def _as_stack(values: Any) -> np.ndarray:
    given = np.array(values, order="C")  # a copy: what came may change, and equal RDMs hash alike
    stack = given[None] if given.ndim == 2 else given
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or not stack.shape[0]:
        raise RequestError(
            f"Dissimilarities have shape {given.shape}; (n_rdms, n_stimuli, n_stimuli) is needed. "
            "Vectors of pairs become RDMs through RDMs.from_upper."
        )
    if stack.dtype.kind not in "fiub":
        raise RequestError(f"Dissimilarities are of type {stack.dtype}; real numbers are needed.")
    if stack.dtype != np.float32:
        stack = stack.astype(np.float64)
    diagonal = np.arange(stack.shape[1])
    stack[:, diagonal, diagonal] = 0
    if np.isinf(stack).any():
        raise RequestError("Dissimilarities hold infinity; mark a pair that was never measured with NaN.")
    _check_symmetry(stack)
    return stack


def _check_symmetry(stack: np.ndarray) -> None:
    for matrix in stack:  # one at a time: MEG over time comes as hundreds
        filled = np.where(np.isnan(matrix), 0, matrix)
        if np.abs(filled - filled.T).max(initial=0) > _ASYMMETRY * np.abs(filled).max(initial=0):
            raise RequestError(
                "An RDM is not symmetric. If both orders of a pair were measured, give their mean; if only the upper "
                "triangle is filled, use RDMs.from_upper."
            )


def _blank_self_pairs(stack: np.ndarray, ids: np.ndarray) -> None:
    if len(np.unique(ids)) == len(ids):
        return
    same = ids[:, None] == ids
    np.fill_diagonal(same, False)
    stack[:, same] = np.nan


def _labels(name: str, values: Any, length: int) -> np.ndarray:
    labels = np.asarray(list(values), dtype=str) if len(values) else np.asarray([], dtype=str)
    if labels.shape != (length,):
        raise RequestError(f"There are {len(labels)} {name} for {length}; give one each.")
    return labels


def _zscored(vectors: np.ndarray) -> np.ndarray:
    """Standardise rows of shape (n_rdms, n_pairs), leaving out NaN."""
    known = ~np.isnan(vectors)
    counts = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = vectors - np.where(known, vectors, 0).sum(axis=1, keepdims=True) / counts
    deviation = np.sqrt(np.where(known, centred**2, 0).sum(axis=1, keepdims=True) / counts)
    largest = np.abs(np.where(known, vectors, 0)).max(axis=1, initial=0, keepdims=True)
    varies = deviation > 8 * np.finfo(np.float64).eps * largest
    return np.where(known, np.divide(centred, deviation, out=np.zeros_like(centred), where=varies), np.nan)


def _ranked(vectors: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # slow to import, and most runs never rank

    ranks = np.full(vectors.shape, np.nan)
    known = ~np.isnan(vectors)
    whole = known.all(axis=1)
    ranks[whole] = rankdata(vectors[whole], axis=1) if vectors[whole].size else 0
    for row in np.flatnonzero(~whole):
        ranks[row, known[row]] = rankdata(vectors[row, known[row]])
    return ranks
