"""Rows side by side in blocks, each row found by its slot."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch

Rows = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class Block:
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
class Shelf:
    """All rows of one key: where each label is, in blocks that never move."""

    slots: dict[Hashable, int] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    end: int = 0


def fill(block: Block, labels: list[Hashable], values: Rows, places: list[int]) -> None:
    """Copy some rows of a batch behind those that a block has."""
    start = len(block.labels)
    for into, value in zip(block.values, values, strict=True):
        rows = value if len(places) == len(value) else value[torch.tensor(places, device=value.device)]
        into[start : start + len(places)] = rows
    block.labels.extend(labels)


def block_of(slots: np.ndarray, blocks: list[Block]) -> np.ndarray:
    """Return the place of the block of each slot; slot -1 gives -1."""
    return np.searchsorted([block.base for block in blocks], slots, side="right") - 1


def gather(slots: np.ndarray, blocks: list[Block], device: torch.device, like: Rows | None = None) -> Rows:
    """Return rows by slot; those of slot -1 are left as they happen to be."""
    if len(blocks) == 1 and (slots >= 0).all():
        return tuple(
            value.index_select(0, _on(slots - blocks[0].base, value.device)).to(device)
            for value in blocks[0].values
        )
    like = blocks[0].values if like is None else like
    found = tuple(torch.empty((len(slots), *v.shape[1:]), dtype=v.dtype, device=device) for v in like)
    of = block_of(slots, blocks)
    for number, block in enumerate(blocks):
        here = np.flatnonzero((of == number) & (slots >= 0))
        for into, value in zip(found, block.values, strict=True):
            rows = value.index_select(0, _on(slots[here] - block.base, value.device))
            into[_on(here, device)] = rows.to(device)
    return found


def _on(index: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(index).to(device, non_blocking=True)
