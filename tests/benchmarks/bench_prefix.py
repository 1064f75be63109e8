"""A frozen prefix computed once: an epoch with it, without it, and of the trainable part alone.

    python -m tests.benchmarks prefix        or: python tests/benchmarks/bench_prefix.py [--pairs 3] [--threads 2]

VGG-16 with random weights, frozen up to conv5_2 (``features.26``), read at fc7 before its ReLU (``classifier.3``), 48
images of 224 pixels in one batch. An epoch is forward, backward and a step of SGD. The trainable part alone
runs on its inputs in memory: what follows ``features.27``, the ReLU of conv5_2. Runs are interleaved; ratios are
medians of those within a round. Wanted: at least 5 times as fast as without, and 0.9 of the speed of the part alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.models import ModelRequest, Tap, load
from featpipe.tuning.images._row_memory import ACTIVATIONS
from featpipe.tuning.network import Body

FROZEN, LAYER = "..features.26", "classifier.3"
N_IMAGES, BATCH = 48, 48


class Pixels:
    """Stands for `Images`: made-up pixels in memory."""

    reusable = True

    def __init__(self, device: torch.device) -> None:
        made = torch.randn(N_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        self.pixels = made.to(device, memory_format=torch.channels_last)
        self.device = device

    def __len__(self) -> int:
        return N_IMAGES

    def choose(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return torch.zeros_like(rows)

    def labels(self, rows: torch.Tensor, views: torch.Tensor) -> list[int]:
        return rows.tolist()

    def __call__(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        return self.pixels[rows.to(self.device)]


def epoch(compute: Callable[[torch.Tensor], torch.Tensor], parameters: Iterable[nn.Parameter]) -> float:
    """Return the seconds of one epoch over all images in a fixed order."""
    trained = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-6)
    _wait()
    began = time.perf_counter()
    for rows in torch.arange(N_IMAGES).split(BATCH):
        optimiser.zero_grad(set_to_none=True)
        compute(rows).square().mean().backward()
        optimiser.step()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    images = Pixels(torch.device(asked.device))
    backbone = load(ModelRequest("torchvision:vgg16", "random:0", preprocess="whole"))
    with_store = Body(backbone, [Tap(LAYER)], images, frozen=FROZEN)
    without = Body(backbone, [Tap(LAYER)], images, frozen=FROZEN)
    without._prefix = None
    assert with_store.kept == ("features.27",)

    net = backbone.module
    tail = nn.Sequential(*net.features[28:], net.avgpool, nn.Flatten(), *copy.copy(net.classifier)[:4])
    with torch.no_grad():
        batches = torch.cat(
            [net.features[:28](images.pixels[part]) for part in torch.arange(N_IMAGES).split(BATCH)]
        )
    batches = {
        int(rows[0]): batches[rows].contiguous(memory_format=torch.channels_last)
        for rows in torch.arange(N_IMAGES).split(BATCH)
    }

    ways = {
        "with": (lambda rows: with_store(rows)[0], net),
        "alone": (lambda rows: tail(batches[int(rows[0])]), tail),
        "without": (lambda rows: without(rows)[0], net),
    }
    with keeping_freed_memory():  # 480 MB of gradients come and go at every step
        first = epoch(ways["with"][0], net.parameters())  # computes what is kept
        epoch(ways["alone"][0], tail.parameters())
        rounds = [
            {name: epoch(run, module.parameters()) for name, (run, module) in ways.items()}
            for _ in range(asked.pairs)
        ]
    medians = {name: statistics.median(r[name] for r in rounds) for name in ways}
    gain = statistics.median(r["without"] / r["with"] for r in rounds)
    share = statistics.median(r["alone"] / r["with"] for r in rounds)
    print(
        f"prefix VGG-16 {FROZEN} to {LAYER}, {N_IMAGES} images, {asked.device}, {torch.get_num_threads()} threads: "
        f"an epoch {medians['without']:.2f} s without, {medians['with']:.2f} s with ({first:.2f} s the first), "
        f"{gain:.1f} times as fast; trainable part alone {medians['alone']:.2f} s, {share:.2f} of its speed "
        f"({asked.pairs} rounds, {ACTIVATIONS.nbytes / 2**20:.0f} MiB kept)"
    )


if __name__ == "__main__":
    main()
