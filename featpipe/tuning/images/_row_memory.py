"""Rows that a process computes once: pixels, and what a network makes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from featpipe.memory import available_memory, memory_sharers

_SHARE = 0.2  # of the memory that is available: the training, and layers read from a cache, need the rest
_LEAST = 64  # rows of a block

Rows = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class _Block:
    """Some rows side by side: each tensor has shape (capacity, *row)."""

    values: Rows
    base: int  # slot of its first row
    used: int  # when a row was last asked for
    labels: list[Hashable] = field(default_factory=list)

    @property
    def free(self) -> int:
        return len(self.values[0]) - len(self.labels)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)


@dataclass(eq=False)
class _Shelf:
    """All rows of one key: where each label is, in blocks that never move."""

    slots: dict[Hashable, int] = field(default_factory=dict)
    blocks: list[_Block] = field(default_factory=list)
    end: int = 0


class RowMemory:
    """Rows by key and label, within a limit of bytes a device.

    Rows lie in blocks that are never copied, each as large as all before it. When the limit is reached, the
    blocks that were used least recently are dropped, but none that was used since the asking `RowStore` was
    made; what then finds no room is not held: rows that an epoch goes through again and again stay, where
    dropping the oldest would hold none of them long enough.

    Parameters
    ----------
    limit : int, optional
        Bytes on the CPU. By default 20 % of the memory that is available when first asked, divided by the
        number of processors in a worker process; on a GPU 20 % of what is free there.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limits: dict[torch.device, int] = {} if limit is None else {torch.device("cpu"): limit}
        self._shelves: dict[Hashable, _Shelf] = {}
        self._lock = threading.RLock()
        self._clock = 0

    def of(self, key: Hashable, *, expected: int = 0, limit: int | None = None) -> RowStore:
        """Return the rows of a key.

        Parameters
        ----------
        key : hashable
            All that a row depends on besides its label.
        expected : int
            Rows that will be added, where that is known: they then lie in one block, which is fastest.
        limit : int, optional
            Bytes that may be held, all keys together, when this store adds some.
        """
        with self._lock:
            self._clock += 1
            return RowStore(self, key, self._clock, expected, limit)

    @property
    def nbytes(self) -> int:
        """Bytes held now, on all devices."""
        with self._lock:
            return sum(block.nbytes for shelf in self._shelves.values() for block in shelf.blocks)

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._shelves.clear()

    def _shelf(self, key: Hashable) -> _Shelf:
        return self._shelves.setdefault(key, _Shelf())

    def _limit(self, device: torch.device) -> int:
        if device not in self._limits:
            if device.type == "cuda":
                self._limits[device] = int(torch.cuda.mem_get_info(device)[0] * _SHARE)
            else:
                self._limits[device] = int(available_memory() * _SHARE) // memory_sharers()
        return self._limits[device]

    def _make_room(self, device: torch.device, row_bytes: int, wanted: int, store: RowStore) -> int:
        """Drop old blocks for the rows that are wanted; return for how many there is room now."""
        limit = self._limit(device) if store.limit is None else store.limit
        on_device = [
            (block.used, shelf, block)
            for shelf in self._shelves.values()
            for block in shelf.blocks
            if block.values[0].device == device
        ]
        held = sum(block.nbytes for _, _, block in on_device)
        old = sorted((entry for entry in on_device if entry[0] < store.since), key=lambda entry: entry[0])
        kept = held - sum(block.nbytes for _, _, block in old)
        rows = max(0, min(wanted, (limit - kept) // row_bytes))
        for _, shelf, block in old:
            if not rows or held + rows * row_bytes <= limit:
                break
            held -= block.nbytes
            shelf.blocks.remove(block)
            for label in block.labels:
                del shelf.slots[label]
        return rows


class RowStore:
    """The rows of one key, for one user; made by `RowMemory.of`, and safe in many threads.

    A row is a tuple of tensors, one a layer, of the same shapes and dtypes for all labels.
    """

    def __init__(
        self, memory: RowMemory, key: Hashable, since: int, expected: int, limit: int | None
    ) -> None:
        self._memory, self._key, self._expected = memory, key, expected
        self._added = 0
        self.since, self.limit = since, limit

    def known(self, labels: Sequence[Hashable]) -> np.ndarray:
        """Return which labels have a row now, bool of shape (n_batch,); another thread may drop one."""
        with self._memory._lock:
            slots = self._memory._shelf(self._key).slots
            return np.fromiter(map(slots.__contains__, labels), dtype=bool, count=len(labels))

    def take(self, labels: Sequence[Hashable], *, device: torch.device | None = None) -> Rows:
        """Return the rows of labels that are all held, each tensor of shape (n_batch, *row).

        Raises
        ------
        LookupError
            A label has no row.
        """
        slots, blocks = self._find(labels)
        if not blocks or (slots < 0).any():
            raise LookupError(f"{(slots < 0).sum()} of {len(labels)} rows are not held.")
        return _gather(slots, blocks, device or blocks[0].values[0].device)

    def take_or(
        self, labels: Sequence[Hashable], compute: Callable[[np.ndarray], Rows], *, device: torch.device
    ) -> Rows:
        """Return the rows of labels, computing and then holding those that are missing.

        Parameters
        ----------
        labels : sequence of hashable, length n_batch
        compute : callable (places) -> tuple of tensors of shape (len(places), *row)
            Called with the places in the batch, ascending, where a label that has no row stands first.
        device : torch.device
            Of the result.
        """
        slots, blocks = self._find(labels)
        if blocks and (slots >= 0).all():
            return _gather(slots, blocks, device)
        places, inverse = _first_places(labels, slots)
        computed = tuple(value.detach() for value in compute(places))
        self.put([labels[place] for place in places], computed)
        if len(places) == len(labels):
            return tuple(value.to(device) for value in computed)
        found = _gather(slots, blocks, device, like=computed)
        missing = torch.from_numpy(np.flatnonzero(slots < 0)).to(device)
        for into, value in zip(found, computed, strict=True):
            into[missing] = value[torch.from_numpy(inverse).to(value.device)].to(device)
        return found

    def put(self, labels: Sequence[Hashable], values: Rows) -> None:
        """Hold rows, as many of them as there is room for; those of labels that have one stay as they are.

        Parameters
        ----------
        labels : sequence of hashable, length n_batch
        values : tuple of tensors of shape (n_batch, *row)
            Held on their device, or on the CPU if there is no room left.
        """
        with self._memory._lock, torch.inference_mode(False), torch.no_grad():
            shelf = self._memory._shelf(self._key)
            first = {label: place for place, label in reversed(list(enumerate(labels)))}
            new = sorted(place for label, place in first.items() if label not in shelf.slots)
            while new:
                block = self._block_with_room(shelf, values, len(new))
                if block is None:
                    return
                now, new = new[: block.free], new[block.free :]
                block.used, self._added = self._memory._clock, self._added + len(now)
                held = len(block.labels)
                _fill(block, [labels[place] for place in now], values, now)
                shelf.slots.update(
                    zip(block.labels[held:], range(block.base + held, shelf.end), strict=False)
                )

    def _find(self, labels: Sequence[Hashable]) -> tuple[np.ndarray, list[_Block]]:
        """Return the slot of each label, -1 where there is none, and the blocks that they lie in."""
        with self._memory._lock:
            shelf = self._memory._shelf(self._key)
            found = map(shelf.slots.get, labels, [-1] * len(labels))
            slots = np.fromiter(found, dtype=np.int64, count=len(labels))
            blocks = [shelf.blocks[at] for at in np.unique(_block_of(slots, shelf.blocks)) if at >= 0]
            for block in blocks:
                block.used = self._memory._clock
            return slots, blocks

    def _block_with_room(self, shelf: _Shelf, values: Rows, n_new: int) -> _Block | None:
        if shelf.blocks and self._may_fill(shelf.blocks[-1], n_new):
            return shelf.blocks[-1]
        left = self._expected - self._added
        wanted = max(n_new, left if left > 0 else max(_LEAST, len(shelf.slots)))
        row_bytes = max(1, sum(value[0].nbytes for value in values))
        for device in dict.fromkeys((values[0].device, torch.device("cpu"))):
            if rows := self._memory._make_room(device, row_bytes, wanted, self):
                empty = tuple(torch.empty((rows, *v.shape[1:]), dtype=v.dtype, device=device) for v in values)
                shelf.blocks.append(_Block(empty, shelf.end, self._memory._clock))
                shelf.end += rows
                return shelf.blocks[-1]
        return None

    def _may_fill(self, block: _Block, n_new: int) -> bool:
        """Whether rows go into a block that is there; a few would keep alive all old ones beside them."""
        return block.free > 0 and (block.used >= self.since or block.free >= n_new)


def _fill(block: _Block, labels: list[Hashable], values: Rows, places: list[int]) -> None:
    """Copy some rows of a batch behind those that a block has."""
    start = len(block.labels)
    for into, value in zip(block.values, values, strict=True):
        rows = value if len(places) == len(value) else value[torch.tensor(places, device=value.device)]
        into[start : start + len(places)] = rows
    block.labels.extend(labels)


def _block_of(slots: np.ndarray, blocks: list[_Block]) -> np.ndarray:
    """Return the place of the block of each slot; slot -1 gives -1."""
    return np.searchsorted([block.base for block in blocks], slots, side="right") - 1


def _gather(slots: np.ndarray, blocks: list[_Block], device: torch.device, like: Rows | None = None) -> Rows:
    """Return rows by slot; those of slot -1 are left as they happen to be."""
    if len(blocks) == 1 and (slots >= 0).all():
        return tuple(
            value.index_select(0, _on(slots - blocks[0].base, value.device)).to(device)
            for value in blocks[0].values
        )
    like = blocks[0].values if like is None else like
    found = tuple(torch.empty((len(slots), *v.shape[1:]), dtype=v.dtype, device=device) for v in like)
    of = _block_of(slots, blocks)
    for number, block in enumerate(blocks):
        here = np.flatnonzero((of == number) & (slots >= 0))
        for into, value in zip(found, block.values, strict=True):
            rows = value.index_select(0, _on(slots[here] - block.base, value.device))
            into[_on(here, device)] = rows.to(device)
    return found


def _on(index: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(index).to(device, non_blocking=True)


def _first_places(labels: Sequence[Hashable], slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each missing label stands first, and which of these each missing row is."""
    order: dict[Hashable, int] = {}
    places: list[int] = []
    inverse = []
    for place in np.flatnonzero(slots < 0).tolist():
        number = order.setdefault(labels[place], len(places))
        if number == len(places):
            places.append(place)
        inverse.append(number)
    return np.array(places, dtype=np.int64), np.array(inverse, dtype=np.int64)


ACTIVATIONS = RowMemory()
