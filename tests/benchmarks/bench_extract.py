"""Extraction against the bare forward pass: same network, same layers, stopped at the same place.

The bare pass runs on tensors in memory and throws its output away. Extraction reads 256 JPEGs of 425×425
pixels, decodes, resizes, runs, reduces, compresses, writes and commits. Pairs are interleaved; a pair's ratio
is bare seconds over extraction seconds. Building the network is left out of both.

    python tests/benchmarks/bench_extract.py [--pairs 5] [--images 256] [--device cuda --precision bf16 --batch 256]

On a GPU the bare pass finds its tensors in the GPU's memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from featpipe.extraction import Means, Order, extract
from featpipe.extraction import _run as extraction
from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.extraction._forward import precision_of
from featpipe.models import ModelRequest, apply_preprocessing, load, normalise
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

CASES = (
    ("CNN", "timm:resnet50", ("layer1:mean", "layer2:mean", "layer3:grid:4", "layer4:mean"), "layer4"),
    ("ViT", "timm:vit_small_patch16_224", ("blocks.3:cls", "blocks.7:mean", "blocks.11:mean"), "blocks.11"),
)


class _Stop(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stop


def write_images(folder: Path, count: int) -> None:
    """Cut JPEGs of 425×425 from real photographs, as NSD has them."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        left, top, side = rng.integers(0, 300), rng.integers(0, 150), rng.integers(200, 270)
        crop = photos[number % 2].crop((left, top, left + side, top + side))
        crop.resize((425, 425), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=92)


def bare_seconds(backbone, layer: str, batches: list[torch.Tensor], precision: str) -> float:
    """Time the forward passes alone, stopped after one layer."""
    device = batches[0].device
    backbone.module.to(device)
    hook = backbone.module.get_submodule(layer).register_forward_hook(_stop)
    with (
        torch.inference_mode(),
        keeping_freed_memory(),
        precision_of(precision, device),
    ):  # as extraction has it
        began = time.perf_counter()
        for batch in batches:
            try:
                backbone.module(batch)
            except _Stop:
                continue
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    hook.remove()
    return seconds


def bench_case(
    name: str, model: str, layers: tuple[str, ...], deepest: str, images: Path, chosen: argparse.Namespace
) -> None:
    request, stimuli = ModelRequest(model, "random:0"), StimulusSet.from_source(images)
    order = Order(request, tuple(map(LayerRequest.parse, layers)), precision=chosen.precision)
    backbone = load(request)
    card = backbone.card
    pixels = torch.stack(
        [apply_preprocessing(stimuli.open(i), card.preprocessing) for i in range(len(stimuli))]
    )
    memory = torch.channels_last if card.channels_last else torch.contiguous_format
    backbone.module.to(memory_format=memory)
    batches = [
        normalise(b, card.preprocessing).contiguous(memory_format=memory).to(chosen.device)
        for b in pixels.split(chosen.batch)
    ]
    extraction.load = lambda _: backbone  # built once, for both
    ratios, bare, whole = [], [], []
    bare_seconds(backbone, deepest, batches[:2], chosen.precision)
    for _ in range(chosen.pairs):
        bare.append(bare_seconds(backbone, deepest, batches, chosen.precision))
        with tempfile.TemporaryDirectory() as cache:
            began = time.perf_counter()
            means = Means(batch_size=chosen.batch, shard_rows=256, device=chosen.device)
            extract(order, stimuli, FeatureCache(cache), means=means)
            whole.append(time.perf_counter() - began)
        ratios.append(bare[-1] / whole[-1])
    rate = len(stimuli) / statistics.median(whole)
    print(
        f"extract {name} {model} {chosen.device} {chosen.precision}: "
        f"{statistics.median(ratios):.3f} of the bare forward pass "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f}, {chosen.pairs} pairs), "
        f"{rate:.1f} images/s against {len(stimuli) / statistics.median(bare):.1f}"
    )


_MEMORY = """
import resource, sys
import numpy as np
from featpipe.extraction import Means, Order, extract
from featpipe.extraction._allocator import keeping_freed_memory
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache
count, folder = int(sys.argv[1]), sys.argv[2]
np.save(folder + "/i.npy", np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
order = Order(ModelRequest(f"python:{folder}/net.py:build", trust=True), (LayerRequest.parse("0:none"),))
extract(order, StimulusSet.from_source(folder + "/i.npy"), FeatureCache(folder + "/cache"), means=Means(batch_size=32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
_NET = """
from torch import nn
def build():
    size = {"resize": 32, "crop": [32, 32], "interpolation": "bilinear", "mean": [.5] * 3, "std": [.5] * 3}
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), size
"""


def peak_memory(count: int) -> float:
    """Return the peak resident memory in MiB of an extraction of many images, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.py").write_text(_NET)
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(count), folder], capture_output=True, text=True, check=True
        )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), chosen.images)
        for case in CASES:
            bench_case(*case, Path(folder), chosen)
    few, many = peak_memory(1000), peak_memory(10_000)
    print(
        f"extract memory: {many / few:.3f} of the peak at 1 000 images when there are 10 000 ({many:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
