"""``rdms`` of a ``dataset.toml``: dissimilarities of the user's own, joined to images by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.datasets._arrays import locate
from featpipe.datasets._checks import some
from featpipe.datasets._description import TableDescription
from featpipe.datasets._rdm_dataset import RDMDataset
from featpipe.datasets._rdm_values import checked_rdms
from featpipe.datasets._rows import row_ids
from featpipe.datasets._splits import split_rows
from featpipe.errors import DatasetError, RequestError
from featpipe.rsa import RDMs, stack
from featpipe.rsa._arrays import read_arrays
from featpipe.rsa._challenge import target_of_variable
from featpipe.rsa._exchange import is_saved, load_rdms
from featpipe.stimuli import StimulusSet

_UNNAMED = ("rdms", "rdm", "values", "arr_0")  # names of an array that say nothing about its target


def load_rdm_table(
    description: TableDescription, stimuli: StimulusSet, *, subject: str | int | None = None
) -> RDMDataset:
    """Read RDMs that a ``dataset.toml`` or a folder gives, and join them to the stimuli.

    Raises
    ------
    DatasetError
        When files are missing, damaged or do not fit together.
    """
    rdms = _read(description, stimuli)
    ids = rdms.ids.tolist()
    splits = description.splits if isinstance(description.splits, str) else None
    rows = split_rows(splits, ids, description.base)
    if "n_repeats" in rows:
        raise DatasetError(
            f"{splits!r} has n_repeats, which weigh rows of responses; RDMs have none. Leave them out."
        )
    needed = set(ids)
    if len(needed) < len(stimuli) and needed <= set(stimuli.ids):
        stimuli = stimuli.select([i for i in stimuli.ids if i in needed])
    dataset = RDMDataset(description.name, stimuli, rdms.ids, rdms, **rows)
    return dataset if subject is None else dataset.select_subject(subject)


def _read(description: TableDescription, stimuli: StimulusSet) -> RDMs:
    given, rows = description.rdms, _Rows(description, stimuli)
    assert given is not None, "load_table asks for RDMs where there are some"
    if isinstance(given, str):
        return _of_all_targets(_Source.open(given, description.base), rows)
    sources = {target: _Source.open(text, description.base) for target, text in given.items()}
    return _stacked([_of_target(source, target, rows) for target, source in sources.items()])


@dataclass(frozen=True)
class _Rows:
    """What is said about the rows of arrays without ids."""

    description: TableDescription
    stimuli: StimulusSet

    def ids(self, source: str, n_rows: int) -> list[str]:
        said = self.description
        column = said.ids if isinstance(said.ids, str) else None
        if column is None and said.rows is None:
            raise DatasetError(
                f"{source!r} has no ids inside, and {said.name!r} does not say which row is which image. "
                "Write ids = 'FILE.csv:COLUMN', or rows = 'sorted' if rows follow the ids in natural order."
            )
        return row_ids(self.stimuli, column, source, said.base, n_rows)

    def require_none(self, source: str) -> None:
        if self.description.ids is not None:
            raise DatasetError(f"{source!r} has its ids inside; leave ids = {self.description.ids!r} out.")


@dataclass(frozen=True)
class _Source:
    """What ``FILE[:NAME]`` holds."""

    text: str
    path: Path
    saved: RDMs | None
    arrays: dict[str, np.ndarray]
    ids: list[str] | None = None  # an array of that name beside RDMs that were not saved by us

    @classmethod
    def open(cls, text: str, base: Path) -> _Source:
        path, member = locate(text, base)
        arrays = read_arrays(path)
        if is_saved(arrays):
            if member is not None:
                raise DatasetError(
                    f"{path.name!r} has ids inside and is read as a whole; write {path.name!r}."
                )
            return cls(text, path, load_rdms(path), {})
        squares = {name: array for name, array in arrays.items() if _is_stack(array)}
        if not squares or (member is not None and member not in squares):
            what = f"no RDMs called {member!r}" if member is not None and squares else "no RDMs"
            shapes = [f"{name} {array.shape}" for name, array in arrays.items()]
            raise DatasetError(
                f"{path.name!r} holds {what}, arrays of shape (n_subjects, n, n) or (n, n); there are "
                f"{some(shapes, 8) or 'no arrays'}."
            )
        ids = [str(name).rstrip() for name in arrays["ids"].ravel()] if "ids" in arrays else None
        return cls(text, path, None, squares if member is None else {member: squares[member]}, ids)


def _is_stack(array: np.ndarray) -> bool:
    return array.ndim in (2, 3, 4) and array.shape[-1] == array.shape[-2] and array.dtype.kind in "fiu"


def _of_all_targets(source: _Source, rows: _Rows) -> RDMs:
    """Read a file whose arrays are targets by their names."""
    if source.saved is not None:
        rows.require_none(source.text)
        return source.saved
    parts = []
    for name in source.arrays:
        alone = len(source.arrays) == 1 and name.casefold() in (*_UNNAMED, source.path.stem.casefold())
        parts.append(_plain(source, name, "" if alone else target_of_variable(name), rows))
    return _stacked(parts)


def _of_target(source: _Source, target: str, rows: _Rows) -> RDMs:
    """Read a file with one target, which is called as the TOML says."""
    if source.saved is None:
        if len(source.arrays) > 1:
            raise DatasetError(
                f"{source.path.name!r} holds several RDMs, {some(list(source.arrays), 8)}, and one is meant for "
                f"{target}. Write {source.path.name}:NAME."
            )
        return _plain(source, next(iter(source.arrays)), target, rows)
    rdms = source.saved
    if len(rdms.target_names) > 1:
        raise DatasetError(
            f"{source.path.name!r} holds the targets {', '.join(rdms.target_names)}, and one is meant for {target}. "
            f"Write rdms = {source.text!r} for all of them."
        )
    rows.require_none(source.text)
    targets = [target] * rdms.n_rdms
    return RDMs(rdms.values, rdms.ids, subjects=rdms.subjects, targets=targets, times=rdms.times)


def _plain(source: _Source, name: str, target: str, rows: _Rows) -> RDMs:
    array = source.arrays[name]
    ids = rows.ids(source.text, array.shape[-1]) if source.ids is None else _inside(source, name, rows)
    return checked_rdms(array, ids, target=target, where=f"{name} in {str(source.path)!r}", missing=True)


def _inside(source: _Source, name: str, rows: _Rows) -> list[str]:
    """Return the ids that a file has beside its RDMs; rows in another order must not be taken as sorted."""
    rows.require_none(source.text)
    ids, n_rows = source.ids or [], source.arrays[name].shape[-1]
    if len(ids) != n_rows:
        raise DatasetError(
            f"{source.path.name!r} has {len(ids)} ids inside, and {name} has {n_rows} rows; there must be one id per "
            "row."
        )
    if len(set(ids)) < len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise DatasetError(
            f"{source.path.name!r} has the id {twice!r} more than once; every row needs its own."
        )
    return ids


def _stacked(parts: Sequence[RDMs]) -> RDMs:
    try:
        return stack([part.take(parts[0].ids) for part in parts])
    except RequestError as error:
        raise DatasetError(f"The targets cannot be put together: {error}") from error
