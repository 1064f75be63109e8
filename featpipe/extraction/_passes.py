"""Batches through the network and into buffers, the device a batch ahead of the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from featpipe.extraction._forward import Forward
from featpipe.extraction._order import Target
from featpipe.extraction._plan import ShardJob
from featpipe.extraction._shards import ShardBuffer

Pass = tuple[ShardJob, np.ndarray, list[dict[Target, torch.Tensor]], bool]


def forward_passes(
    jobs: Iterable[ShardJob], batches: Iterator[torch.Tensor], forward: Forward, size: int
) -> Iterator[Pass]:
    """Yield (job, rows, results, whether the job ends here); a job with nothing to compute has no results."""
    for job in jobs:
        parts = list(in_batches(job.computed, size))
        for position, rows in enumerate(parts):
            yield job, rows, list(forward.in_parts(next(batches))), position == len(parts) - 1
        if not parts:
            yield job, job.computed, [], True


def one_behind(passes: Iterator[Pass]) -> Iterator[Pass]:
    """Yield each pass once the next one is under way: the device computes while the host copies."""
    before: Pass | None = None
    for current in passes:
        if before is not None:
            yield before
        before = current
    if before is not None:
        yield before


def put_parts(buffer: ShardBuffer, parts: Sequence[dict[Target, torch.Tensor]], rows: np.ndarray) -> None:
    """Store the rows of one batch, fewer than its results where the batch ends in padding."""
    at = 0
    for part in parts:
        length = len(next(iter(part.values())))
        for target, values in part.items():
            buffer.put(rows[at : at + length], target, values)
        at += length


def in_batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut rows into batches, the last one short."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
