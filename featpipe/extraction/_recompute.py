"""Some rows of the cache through the network again, against what is stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from featpipe.extraction._again import Again, How, how_of
from featpipe.extraction._forward import CPU_BATCH, Forward, choose_device
from featpipe.extraction._images import ImageBatches, default_workers, padded
from featpipe.extraction._order import LEAST_BATCH, Progress, Target
from featpipe.models import Backbone, ModelRequest, load
from featpipe.store import Problem

# Relative to the layer's largest value; cache/README.md says how they were found.
TOLERANCES: Mapping[str, float] = {"fp32": 5e-6, "tf32": 3e-3, "fp16": 3e-3, "bf16": 3e-3}
_HALF = 2.0**-11  # what storing as float16 rounds away, relative to a value


def tolerance_of(precision: str, store_dtype: str) -> float:
    """Return how far a stored row may be from one computed again, relative to the layer's largest value."""
    return TOLERANCES[precision] + (_HALF if store_dtype == "float16" else 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of one array against the same rows computed again.

    Parameters
    ----------
    key, layer : str
    n_rows : int
    largest : float
        Largest absolute difference from what was computed, before it is rounded to the stored dtype.
    relative : float
        The same, over the largest value of these rows.
    tolerance : float
        What `relative` may be.
    bit_equal : bool
        Whether the stored bytes are just those that would be stored now.
    problems : tuple of Problem
        The shards with rows beyond the tolerance.
    """

    key: str
    layer: str
    n_rows: int
    largest: float
    relative: float
    tolerance: float
    bit_equal: bool
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is within the tolerance."""
        return not self.problems


def recompute(
    plans: Sequence[Again],
    n_rows: int,
    *,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    without: Mapping[str, Collection[int]] | None = None,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compute random rows again, in the batches that they were computed in.

    Parameters
    ----------
    plans : sequence of Again
    n_rows : int
        How many rows of each array; the same images wherever arrays have the same rows.
    seed : int
        Of the choice.
    device : str
        ``auto`` is the kind of device that the rows were computed on.
    workers : int, optional
        Threads that decode images; one a processor by default.
    without : mapping of str to collection of int, optional
        Shards of an array that are left out, such as those that are damaged.
    progress : callable (batches done, batches in all), optional
    """
    found = [
        _Rows(plan, _chosen(plan, n_rows, seed, (without or {}).get(plan.array.key, ()))) for plan in plans
    ]
    passes = list(_passes(found))
    total = sum(len(one.batches) for one in passes)
    done = 0
    network: tuple[ModelRequest, Backbone] | None = None
    for one in passes:
        plan = one.rows[0].plan
        if network is None or network[0] != plan.request:
            network = plan.request, load(plan.request)
        for _ in one.run(network[1], choose_device(plan.device(device)), workers or default_workers()):
            done += 1
            (progress or (lambda done, total: None))(done, total)
    return [rows.comparison() for rows in found if len(rows.chosen)]


def _chosen(plan: Again, n_rows: int, seed: int, without: Collection[int]) -> np.ndarray:
    """Draw rows of the shards that are committed, the same ones for all arrays that have them."""
    array = plan.array
    shards = sorted(array.committed - set(without))
    drawn = np.random.default_rng(seed).permutation(array.n_stimuli)
    return np.sort(drawn[np.isin(drawn // array.shard_rows, shards)][:n_rows])


@dataclass
class _Rows:
    """The rows of one array that are compared, and what was found of them."""

    plan: Again
    chosen: np.ndarray
    differences: dict[int, float] = field(default_factory=dict)  # by row
    largest_value: float = 0.0
    bit_equal: bool = True

    def batch_of(self, row: int, how: How) -> tuple[int, int]:
        """Return the rows (first, behind the last) of the batch that a row was computed in."""
        part = self.plan.array.layout.rows_of(row // self.plan.array.shard_rows)
        first = part.start + (row - part.start) // how[0] * how[0]
        return first, min(first + how[0], part.stop)

    def compare(self, rows: np.ndarray, computed: np.ndarray) -> None:
        """Compare stored rows with those computed now: float32 of shape (n_rows, *row_shape)."""
        stored = self.plan.array.read(rows)
        with np.errstate(over="ignore"):
            self.bit_equal &= np.array_equal(
                stored.view(np.uint8), np.ascontiguousarray(computed.astype(stored.dtype)).view(np.uint8)
            )
        self.largest_value = max(self.largest_value, float(np.abs(computed).max()))
        gaps = np.abs(stored.astype(np.float64) - computed).reshape(len(rows), -1).max(axis=1)
        self.differences |= dict(zip(rows.tolist(), np.nan_to_num(gaps, nan=np.inf).tolist(), strict=True))

    def comparison(self) -> Comparison:
        """Sum up."""
        array = self.plan.array
        tolerance = tolerance_of(array.spec.precision, array.spec.store_dtype)
        scale = self.largest_value or 1.0
        largest = max(self.differences.values())
        wrong = {row: gap / scale for row, gap in self.differences.items() if not gap <= tolerance * scale}
        return Comparison(
            key=array.key,
            layer=array.spec.layer_label,
            n_rows=len(self.chosen),
            largest=largest,
            relative=largest / scale,
            tolerance=tolerance,
            bit_equal=bool(self.bit_equal),
            problems=tuple(self._problems(wrong, tolerance)),
        )

    def _problems(self, wrong: Mapping[int, float], tolerance: float) -> Iterator[Problem]:
        array = self.plan.array
        for shard in sorted({row // array.shard_rows for row in wrong}):
            rows = sorted(row for row in wrong if row // array.shard_rows == shard)
            gap = max(wrong[row] for row in rows)
            yield Problem(
                array.key,
                shard,
                (rows[0], rows[-1] + 1),
                f"arrays/{array.key}/{array.layout.shard_path(shard)}",
                f"computed again, its rows differ by {gap:.1e} of the largest value, and {tolerance:.1e} is allowed",
            )


@dataclass
class _Pass:
    """What goes through one network in one way: some batches, and the rows that each is needed for."""

    how: How
    rows: list[_Rows] = field(default_factory=list)
    batches: dict[tuple[int, int], list[tuple[_Rows, int]]] = field(default_factory=dict)

    def run(self, backbone: Backbone, device: torch.device, workers: int) -> Iterator[None]:
        """Compute the batches, and compare; yields after each."""
        plan = self.rows[0].plan
        targets = {rows.plan.target: rows for rows in self.rows}
        forward = Forward(
            backbone,
            list(targets),
            device=device,
            precision=plan.array.spec.precision,
            memory_format=self.how[1],
            batch_size=self.how[0],
        )
        with self._images(plan, workers) as images, forward:
            wanted = [padded(np.arange(*span), self.how[0]) for span in sorted(self.batches)]
            for span, batch in zip(sorted(self.batches), images.of(wanted), strict=True):
                parts = list(forward.in_parts(batch))
                for target, rows in targets.items():
                    self._compare(rows, target, span, parts)
                yield

    def _images(self, plan: Again, workers: int) -> ImageBatches:
        view = plan.order.views[plan.array.spec.view]
        return ImageBatches(plan.stimuli, plan.card.preprocessing, workers=workers, pin=False, view=view)

    def _compare(
        self,
        rows: _Rows,
        target: Target,
        span: tuple[int, int],
        parts: Iterable[Mapping[Target, torch.Tensor]],
    ) -> None:
        wanted = np.array([row for owner, row in self.batches[span] if owner is rows], dtype=int)
        if len(wanted):
            computed = torch.cat([part[target] for part in parts])[wanted - span[0]]
            rows.compare(wanted, computed.float().cpu().numpy())


def _passes(found: Sequence[_Rows]) -> Iterator[_Pass]:
    """Put rows together that come from the same network in the same way, and their batches."""
    passes: dict[tuple[object, ...], _Pass] = {}
    plans = [rows.plan for rows in found]
    for rows in found:
        usual = _usual(rows.plan)
        for row in rows.chosen.tolist():
            how = how_of(rows.plan, row // rows.plan.array.shard_rows, plans) or usual
            one = passes.setdefault((rows.plan.work, how), _Pass(how))
            if not any(rows is other for other in one.rows):
                one.rows.append(rows)
            one.batches.setdefault(rows.batch_of(row, how), []).append((rows, row))
    requests = list(dict.fromkeys(plan.request for plan in plans))  # so that each network is built once
    return iter(sorted(passes.values(), key=lambda one: requests.index(one.rows[0].plan.request)))


def _usual(plan: Again) -> How:
    """Return how rows are computed where nothing says how these were."""
    size = min(CPU_BATCH, max(LEAST_BATCH, plan.array.shard_rows))
    return size, "channels_last" if plan.card.channels_last else "contiguous_format"
