"""Rows that a process computes once: pixels, and what a network makes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch

from featpipe.memory import available_memory, memory_sharers
from featpipe.tuning.images._blocks import Block, Rows, Shelf, block_of, fill, gather

_SHARE = 0.2  # of the memory that is available: the training, and layers read from a cache, need the rest
_LEAST = 64  # rows of a block


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
        self._shelves: dict[Hashable, Shelf] = {}
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

    def _shelf(self, key: Hashable) -> Shelf:
        return self._shelves.setdefault(key, Shelf())

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
        return gather(slots, blocks, device or blocks[0].values[0].device)

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
            return gather(slots, blocks, device)
        places, inverse = _first_places(labels, slots)
        computed = tuple(value.detach() for value in compute(places))
        self.put([labels[place] for place in places], computed)
        if len(places) == len(labels):
            return tuple(value.to(device) for value in computed)
        found = gather(slots, blocks, device, like=computed)
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
                fill(block, [labels[place] for place in now], values, now)
                shelf.slots.update(
                    zip(block.labels[held:], range(block.base + held, shelf.end), strict=False)
                )

    def _find(self, labels: Sequence[Hashable]) -> tuple[np.ndarray, list[Block]]:
        """Return the slot of each label, -1 where there is none, and the blocks that they lie in."""
        with self._memory._lock:
            shelf = self._memory._shelf(self._key)
            found = map(shelf.slots.get, labels, [-1] * len(labels))
            slots = np.fromiter(found, dtype=np.int64, count=len(labels))
            blocks = [shelf.blocks[at] for at in np.unique(block_of(slots, shelf.blocks)) if at >= 0]
            for block in blocks:
                block.used = self._memory._clock
            return slots, blocks

    def _block_with_room(self, shelf: Shelf, values: Rows, n_new: int) -> Block | None:
        if shelf.blocks and self._may_fill(shelf.blocks[-1], n_new):
            return shelf.blocks[-1]
        left = self._expected - self._added
        wanted = max(n_new, left if left > 0 else max(_LEAST, len(shelf.slots)))
        row_bytes = max(1, sum(value[0].nbytes for value in values))
        for device in dict.fromkeys((values[0].device, torch.device("cpu"))):
            if rows := self._memory._make_room(device, row_bytes, wanted, self):
                empty = tuple(torch.empty((rows, *v.shape[1:]), dtype=v.dtype, device=device) for v in values)
                shelf.blocks.append(Block(empty, shelf.end, self._memory._clock))
                shelf.end += rows
                return shelf.blocks[-1]
        return None

    def _may_fill(self, block: Block, n_new: int) -> bool:
        """Whether rows go into a block that is there; a few would keep alive all old ones beside them."""
        return block.free > 0 and (block.used >= self.since or block.free >= n_new)


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

__all__ = ["ACTIVATIONS", "RowMemory", "RowStore", "Rows"]
