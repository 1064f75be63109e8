"""A step of the training loop against a bare PyTorch loop: forward, backward and step on tensors in memory.

Run ``python -m tests.benchmarks step``, or ``python tests/benchmarks/bench_step.py [--repeats N] [--quick]
[--device cuda] [--precision bf16] [--models NAME …]``. Both sides do the same steps with the same optimiser from
the same weights; times are medians of interleaved pairs, the speed is the median of the ratios within a pair, and
wanted is at least 0.9. The loop's rows are read from all images in memory, the bare loop's batches are there
already. On a GPU it gives images per second too, and, for bf16 on cards whose peak is known, the share of it that
is reached, with three times the multiplications of a forward pass for a step.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from featpipe.models import ModelRequest, load
from featpipe.tuning import Training, train

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bf16, operations per second
EPOCHS = 2


def network(name: str) -> Callable[[], nn.Module]:
    """Return what builds a network with made-up weights."""
    return lambda: load(ModelRequest(name, weights="random:0")).module.requires_grad_(True)


def linear() -> nn.Module:
    return nn.Linear(512, 5000)


# what builds it, shape of a row, targets, batch size, steps an epoch
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int]] = {
    "linear head": (linear, (512,), 5000, 128, 16),
    "mobilenetv2": (network("timm:mobilenetv2_100"), (3, 96, 96), 1000, 32, 3),
    "alexnet": (network("torchvision:alexnet"), (3, 96, 96), 1000, 32, 3),
}
ON_GPU = {
    "linear head": (linear, (512,), 5000, 128, 100),
    "mobilenetv2": (network("timm:mobilenetv2_100"), (3, 224, 224), 1000, 128, 20),
    "alexnet": (network("torchvision:alexnet"), (3, 224, 224), 1000, 256, 20),
    "resnet50": (network("timm:resnet50"), (3, 224, 224), 1000, 128, 20),
}


class Problem:
    """One network on made-up images, and both ways of training it."""

    def __init__(self, case, device: torch.device, precision: str) -> None:
        build, shape, n_targets, self.batch_size, self.n_steps = case
        torch.manual_seed(0)
        self.start, self.device = build().to(device), device
        self.training = Training(
            1e-3,
            optimiser="adamw" if len(shape) == 1 else "sgd",
            batch_size=self.batch_size,
            max_epochs=EPOCHS,
            schedule="fixed",
            patience=None,
            precision=precision,
            device=str(device),
        )
        n_stimuli = self.batch_size * self.n_steps
        self.X = torch.randn(n_stimuli, *shape, device=device)
        self.Y = torch.randn(n_stimuli, n_targets, device=device)

    def ours(self) -> None:
        """Train with the loop."""
        module, X, Y = self._module, self.X, self.Y

        def objective(rows, generator):
            error = F.mse_loss(module(X[rows]), Y[rows], reduction="none").mean(1)
            return error.sum()[None], torch.full((1,), float(len(rows)), device=rows.device)

        train(module, objective, self.training, rows=np.arange(len(X)))

    def bare(self) -> None:
        """Train as in the first tutorial of PyTorch."""
        module = self._module.train()
        optimiser = self.training.make_optimiser([{"params": list(module.parameters())}])
        low = self.training.precision == "bf16"
        for _ in range(EPOCHS):
            for x, y in self._batches:
                optimiser.zero_grad()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                    loss = F.mse_loss(module(x), y)
                loss.backward()
                optimiser.step()

    def seconds(self, run: Callable[[], None]) -> float:
        """Return the seconds of a step."""
        self._module = copy.deepcopy(self.start)
        self._batches = list(zip(self.X.split(self.batch_size), self.Y.split(self.batch_size), strict=True))
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return (time.perf_counter() - begin) / (EPOCHS * self.n_steps)

    def operations(self) -> int:
        """Return the floating-point operations of a step, three forward passes."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(self.start)(self.X[: self.batch_size])
        return 3 * counter.get_total_flops()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def compare(problem: Problem, repeats: int) -> dict[str, float]:
    """Time both ways, interleaved, after a round that is not counted."""
    rounds = [[problem.seconds(run) for run in (problem.ours, problem.bare)] for _ in range(repeats + 1)][1:]
    ours = median(a for a, _ in rounds)
    found = {
        "ours_ms": 1e3 * ours,
        "bare_ms": 1e3 * median(b for _, b in rounds),
        "speed": median(b / a for a, b in rounds),
        "rows_per_second": problem.batch_size / ours,
    }
    if problem.device.type == "cuda" and problem.training.precision == "bf16":
        card = torch.cuda.get_device_name(problem.device)
        peak = next((peak for name, peak in PEAKS.items() if name in card), None)
        if peak is not None:
            found["share_of_peak"] = problem.operations() / ours / peak
    return found


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one pair each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    cases = ON_GPU if device.type == "cuda" else CASES
    print(f"{device}, {asked.precision}, {torch.get_num_threads()} threads; a step in milliseconds")
    print(f"{'':14}{'loop':>9}{'bare':>9}{'speed':>8}{'rows/s':>9}", flush=True)
    found = {}
    for name in asked.models or cases:
        row = compare(Problem(cases[name], device, asked.precision), 1 if asked.quick else asked.repeats)
        share = f"   {row['share_of_peak']:.1%} of the card's peak" if "share_of_peak" in row else ""
        print(
            f"{name:14}{row['ours_ms']:9.2f}{row['bare_ms']:9.2f}{row['speed']:8.2f}{row['rows_per_second']:9.0f}"
            + share,
            flush=True,
        )
        found[name] = row
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
