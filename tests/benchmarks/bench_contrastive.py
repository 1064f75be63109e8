"""Gradient caching: peak memory and time of one contrastive step of 1024 images, by the size of the micro-batch.

Run ``python tests/benchmarks/bench_contrastive.py [--images N] [--pixels N] [--micro-batches N …] [--json]``. Each case
is a process of its own, as a peak of memory is one of the process. Memory is what the step needs on top of network and
images, time is that of the processor; ratios are to the whole batch at once. Equal losses and lengths of the gradient
say that all did the same step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from featpipe.models import ModelRequest, load
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images import Images
from featpipe.tuning.network import Body, taps_of
from featpipe.tuning.responses import SharedProjection, contrastive_loss
from featpipe.tuning.responses._modules import ContrastiveModule
from featpipe.tuning.responses._stopping import features_of

N_TARGETS = 200


def module_of(asked: argparse.Namespace, micro_batch: int, folder: str) -> ContrastiveModule:
    """Return a network with random weights on images of noise, each decoded already, and a projection."""
    size = (asked.images, asked.pixels, asked.pixels, 3)
    np.save(Path(folder) / "images.npy", np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    stimuli = StimulusSet.from_source(Path(folder) / "images.npy")
    backbone = load(ModelRequest(asked.model, "random:0", preprocess="whole", image_size=asked.pixels))
    images = Images(stimuli, stimuli.ids, backbone.card.preprocessing, device=torch.device("cpu"))
    limit = None if micro_batch == asked.images else micro_batch
    body = Body(backbone, taps_of([asked.layer], backbone), images, micro_batch=limit)
    features_of(body, np.arange(asked.images))
    n_features = int(np.prod(body.shapes[0]))
    return ContrastiveModule(body, n_features, SharedProjection(n_features, N_TARGETS))


def peak() -> float:
    """Return the most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def case(asked: argparse.Namespace, micro_batch: int) -> dict[str, float]:
    """Do one step, and another to time it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        module = module_of(asked, micro_batch, folder)
    for parameter in module.projection.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    rows, responses = torch.arange(asked.images), torch.randn(asked.images, N_TARGETS)
    before = peak()
    times = []
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        began = time.process_time()
        loss = contrastive_loss(
            *module(rows, responses, torch.Generator().manual_seed(0)), temperature=0.1
        ).mean()
        loss.backward()
        times.append(time.process_time() - began)
    squares = [p.grad.double().square().sum() for p in module.parameters() if p.grad is not None]
    gradient = float(torch.stack(squares).sum().sqrt())
    return {
        "memory": peak() - before,
        "seconds": times[-1],
        "loss": float(loss.detach()),
        "gradient": gradient,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--model", default="timm:test_resnet")
    parser.add_argument("--layer", default="layer4:mean")
    parser.add_argument("--micro-batches", type=int, nargs="*", default=[128, 32])
    parser.add_argument("--case", type=int, help="do one case in this process")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.case is not None:
        print(json.dumps(case(asked, asked.case)))
        return
    found = {}
    for size in [asked.images, *asked.micro_batches]:
        again = [sys.executable, __file__, *sys.argv[1:], "--case", str(size)]
        printed = subprocess.run(again, check=True, capture_output=True, text=True).stdout
        found[size] = json.loads(printed.splitlines()[-1])
    whole = found[asked.images]
    print(f"a step of {asked.images} images of {asked.pixels} pixels, {asked.model} {asked.layer}")
    print(f"{'micro-batch':>11}{'MiB':>9}{'ratio':>8}{'CPU s':>9}{'ratio':>8}{'loss':>11}{'gradient':>11}")
    for size, row in found.items():
        memory, seconds = row["memory"] / whole["memory"], row["seconds"] / whole["seconds"]
        print(
            f"{size:11}{row['memory']:9.0f}{memory:8.3f}{row['seconds']:9.2f}{seconds:8.2f}"
            f"{row['loss']:11.6f}{row['gradient']:11.6f}"
        )
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
