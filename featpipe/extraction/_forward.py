"""The network on its device: from a batch of pixels to the reduced rows of every target."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from featpipe.errors import DeviceOutOfMemory, SpecError
from featpipe.extraction._order import LEAST_BATCH, Target
from featpipe.models import Backbone, Tap, Tapped, normalise

CPU_BATCH = 32
ONE_THREAD_BATCH = 16
MOST_BATCH = 512


def choose_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA where there is one.

    Raises
    ------
    SpecError
        A device that this machine or this build of torch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise SpecError(
            f"Device {name!r} cannot be used here ({error}). Use one of {', '.join(there)}."
        ) from error
    return device


@contextmanager
def precision_of(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision, and only that: TF32, which CUDA allows by default, is off in ``fp32``."""
    if precision == "tf32" and device.type != "cuda":
        raise SpecError("Precision tf32 exists on CUDA devices only; use fp32, bf16 or fp16 here.")
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    deterministic = torch.backends.cudnn.deterministic
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    try:
        with torch.autocast(device.type, dtype=low, enabled=low is not None):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
        torch.backends.cudnn.deterministic = deterministic


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Forward:
    """A ``with`` that owns a network with its taps on one device.

    Parameters
    ----------
    backbone : Backbone
    targets : sequence of Target
    device : torch.device
    precision : str
    memory_format : {"channels_last", "contiguous_format"}
    batch_size : int or None
        None finds the size: 32 on the CPU; on a GPU it doubles while that pays and memory lasts.
    """

    def __init__(
        self,
        backbone: Backbone,
        targets: Sequence[Target],
        *,
        device: torch.device,
        precision: str,
        memory_format: str,
        batch_size: int | None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size or LEAST_BATCH
        self._find_size = batch_size is None
        self._preprocessing = backbone.card.preprocessing
        self.memory_format = memory_format
        self._format = getattr(torch, memory_format)
        self._precision = precision
        self._module = backbone.module.to(device=device, memory_format=self._format)
        self.targets = list(targets)
        self._taps = [
            Tap(t.spec.layer, t.spec.call if t.call_given else None, t.spec.element, t.spec.reduction)
            for t in targets
        ]
        self._stack = ExitStack()
        self._tapped = Tapped(self._module, self._taps, card=backbone.card)

    def __enter__(self) -> Forward:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(precision_of(self._precision, self.device))
            stack.enter_context(self._tapped)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def __call__(self, batch: torch.Tensor) -> dict[Target, torch.Tensor]:
        """Run one batch.

        Parameters
        ----------
        batch : uint8 tensor of shape (B, 3, height, width), on the CPU

        Returns
        -------
        dict of float32 tensor of shape (B, *row), on the device
        """
        rows = self._tapped(self._pixels(self._large_enough(batch)))
        return {t: rows[tap][: len(batch)] for t, tap in zip(self.targets, self._taps, strict=True)}

    def _large_enough(self, batch: torch.Tensor) -> torch.Tensor:
        """Double a small batch where torch would take a kernel whose last bits differ from all others'.

        It does so for convolutions of 1×1 of fewer than 16 images on one thread of a CPU.
        """
        odd = self.device.type == "cpu" and torch.get_num_threads() == 1 and len(batch) < ONE_THREAD_BATCH
        return batch.repeat(2, 1, 1, 1) if odd else batch

    def row_shapes(self, batch: torch.Tensor) -> dict[Target, tuple[int, ...]]:
        """Return the shape of a row of every target, from one small pass over a part of a batch."""
        self._tapped.probe(self._pixels(batch))
        shapes = self._tapped.row_shapes
        return {target: shapes[tap] for target, tap in zip(self.targets, self._taps, strict=True)}

    def _pixels(self, batch: torch.Tensor) -> torch.Tensor:
        moved = batch.to(self.device, non_blocking=True)
        return normalise(moved, self._preprocessing).contiguous(memory_format=self._format)

    @property
    def dims(self) -> dict[Target, tuple[str, ...]]:
        """Name of each axis of a row per target, known after the first batch."""
        return {t: self._tapped.dims[tap] for t, tap in zip(self.targets, self._taps, strict=True)}

    def in_parts(self, batch: torch.Tensor) -> Iterator[dict[Target, torch.Tensor]]:
        """Run a batch, in halves and quarters of it when memory runs out; warn once.

        Raises
        ------
        DeviceOutOfMemory
            Not even eight images fit.
        """
        start = 0
        while start < len(batch):
            part = batch[start : start + self.batch_size]
            try:
                yield self(part)
                start += len(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)

    def settle_batch_size(self, example: torch.Tensor, most: int) -> None:
        """Find the batch size if none was given; `example` is one image of shape (1, 3, height, width)."""
        if not self._find_size:
            return
        if self.device.type != "cuda":
            self.batch_size = min(CPU_BATCH, most)
            return
        best = 0.0
        size = min(CPU_BATCH, most)
        while size <= min(MOST_BATCH, most):
            rate = self._rate(example, size)
            if rate < 1.05 * best:
                return
            best, self.batch_size, size = rate, size, size * 2

    def _rate(self, example: torch.Tensor, size: int) -> float:
        """Images per second at a batch size, 0 when it does not fit."""
        batch = example.expand(size, -1, -1, -1).contiguous()
        try:
            for trial in range(3):
                if trial == 1:  # the first pass chooses kernels
                    torch.cuda.synchronize(self.device)
                    began = time.perf_counter()
                self(batch)
            torch.cuda.synchronize(self.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return 0.0
        return 2 * size / (time.perf_counter() - began)

    def _halve(self, error: RuntimeError) -> None:
        if self.batch_size <= LEAST_BATCH:
            raise DeviceOutOfMemory(
                f"{self.device} has too little memory for {LEAST_BATCH} images ({str(error).splitlines()[0]}). "
                "Free it, use --precision bf16, a smaller --image-size, or --device cpu. "
                "Committed shards are kept; the same command goes on after them."
            ) from error
        self.batch_size = max(LEAST_BATCH, self.batch_size // 2 // 8 * 8)
        warnings.warn(f"Out of memory: going on with batches of {self.batch_size}.", stacklevel=3)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
