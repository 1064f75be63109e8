"""Extraction on two dask workers against one process with as many threads, on the same cores.

Both read JPEGs of 425×425 pixels, decode, resize, run, reduce, compress, write and commit shards of 16 rows. Pairs are
interleaved, and take turns at being first; a pair's ratio is the seconds of the one process over those of the workers.
Every process keeps its network from one pair to the next, and workers are started before the pairs; what both take is
printed apart. Processor seconds of all threads are compared too: they tell on a machine that others use as well.

    python tests/benchmarks/bench_extract_dask.py [--pairs 5] [--images 256] [--workers 2] [--case small]
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_extract import CASES, write_images

from featpipe.extraction import DaskWorkers, Means, Order, extract
from featpipe.extraction._on_worker import ExtractionPlugin, make_shard
from featpipe.extraction._parcel import Parcel, ShardTask
from featpipe.extraction._plan import targets_of
from featpipe.models import ModelRequest, resolve
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

MEANS = Means(batch_size=16, shard_rows=16)
SMALL = ("small", "timm:resnet18", ("layer2:mean", "layer4:mean"), "layer4")
MANY = 73_000  # images of NSD


def keep_networks() -> None:
    """Let this process build each network once."""
    from functools import cache

    from featpipe.extraction import _run

    _run.load = cache(_run.load)


def processor_seconds(workers: DaskWorkers | None) -> float:
    """Return what all threads of those who extract have taken so far."""
    if workers is None:
        return time.process_time()
    return sum(workers.client.run(time.process_time).values())


def run(order: Order, stimuli: StimulusSet, workers: DaskWorkers | None) -> tuple[float, float]:
    """Return the seconds, and the processor seconds, of an extraction into an empty cache."""
    before = processor_seconds(workers)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = extract(order, stimuli, FeatureCache(folder), means=MEANS, workers=workers)
        seconds = time.perf_counter() - began
    assert done.n_computed == len(stimuli)
    return seconds, processor_seconds(workers) - before


def bench(order: Order, stimuli: StimulusSet, workers: DaskWorkers, pairs: int) -> None:
    """Print the median ratio of some pairs."""
    began = time.perf_counter()
    workers.client.run(keep_networks)
    print(f"start of the workers: {time.perf_counter() - began:.1f} s")
    keep_networks()
    first = {name: run(order, stimuli, there)[0] for name, there in (("serial", None), ("dask", workers))}
    print(
        f"first run, with the network: {first['serial']:.1f} s in one process, {first['dask']:.1f} s on workers"
    )
    ways: dict[str, DaskWorkers | None] = {"serial": None, "dask": workers}
    taken: dict[str, list[tuple[float, float]]] = {"serial": [], "dask": []}
    for pair in range(pairs):
        for way in sorted(ways, reverse=pair % 2 == 0):
            taken[way].append(run(order, stimuli, ways[way]))
    for what, place in {"throughput": 0, "throughput per processor second": 1}.items():
        ratios = [
            one[place] / other[place] for one, other in zip(taken["serial"], taken["dask"], strict=True)
        ]
        rates = {way: len(stimuli) / statistics.median(each[place] for each in taken[way]) for way in ways}
        print(
            f"{what} on workers: {statistics.median(ratios):.3f} of that of one process (min {min(ratios):.3f}, "
            f"max {max(ratios):.3f}, {pairs} pairs), {rates['dask']:.1f} images/s against {rates['serial']:.1f}"
        )


def sizes(order: Order, folder: Path) -> None:
    """Print the bytes of a task, and of what every worker is told once, for as many images as NSD has."""
    pixels = np.lib.format.open_memmap(folder / "many.npy", "w+", np.uint8, (MANY, 8, 8, 3))
    pixels[:, 0, 0] = np.arange(MANY)[:, None] >> np.array([0, 8, 16]) & 255
    stimuli, card = StimulusSet.from_source(folder / "many.npy"), resolve(order.model)
    parts = (tuple(targets_of(order, card, stimuli.digest)),)
    parcel = Parcel("0.1.0", order, stimuli, FeatureCache(folder / "cache"), MEANS, card, parts)
    task = len(pickle.dumps((make_shard, ("featpipe-" + "0" * 32, ShardTask(0, MANY // 256, 32)))))
    told = len(pickle.dumps(ExtractionPlugin(parcel)))
    print(f"a task: {task} bytes; told to every worker once, of {MANY} images: {told / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--case", choices=[name for name, *_ in (*CASES, SMALL)], action="append")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        write_images(Path(folder) / "images", chosen.images)
        stimuli = StimulusSet.from_source(Path(folder) / "images")
        for name, model, layers, _ in (*CASES, SMALL):
            if chosen.case and name not in chosen.case:
                continue
            order = Order(ModelRequest(model, "random:0"), tuple(map(LayerRequest.parse, layers)))
            print(f"{name} {model}")
            with DaskWorkers(str(chosen.workers), print) as workers:
                bench(order, stimuli, workers, chosen.pairs)
        sizes(order, Path(folder))


if __name__ == "__main__":
    main()
