"""48 regions × hemispheres against one fit on all their vertices.

``python tests/benchmarks/bench_regions.py [--quick] [--pairs N]``. Regions are neighbours among the targets, as
vertices of a region are; every eighth overlaps the two after it, as streams do. "group" shares a penalty in a region,
and fits a target anew in each region that holds it. Ratios are medians over interleaved pairs; the promise is 1.3.
For scale, the last line fits the regions one by one, once.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from featpipe.encoding import RidgeEncoder
from featpipe.encoding.regions._per_roi import PerROI

N_REGIONS = 48
SHAPES = [(2000, 768, 5000), (2000, 4096, 5000), (9000, 1024, 20_000)]


def problem(n_stimuli: int, n_features: int, n_targets: int):
    """Features with a spectrum that decays as a network's does, responses with noise of their own."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_stimuli, n_features), dtype=np.float32)
    X *= np.geomspace(10, 0.1, n_features, dtype=np.float32)
    Y = X @ rng.standard_normal((n_features, n_targets), dtype=np.float32)
    Y /= Y.std(axis=0)
    Y += 2 * rng.standard_normal(Y.shape, dtype=np.float32)
    return X, Y


def regions(n_targets: int) -> dict[str, np.ndarray]:
    """Return positions by name; all targets are in a region, some in two."""
    bounds = np.linspace(0, n_targets, N_REGIONS + 1).astype(int)
    found = {}
    for number in range(N_REGIONS):
        wider = 2 if number % 8 == 0 and number + 3 < N_REGIONS else 0
        name = f"{'lh' if number < N_REGIONS // 2 else 'rh'}.region{number % (N_REGIONS // 2)}"
        found[name] = np.arange(bounds[number], bounds[number + 1 + wider])
    return found


def seconds(work) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(shape: tuple[int, int, int], pairs: int) -> None:
    """Print the ratios of one shape."""
    X, Y = problem(*shape)
    rois = regions(Y.shape[1])
    held = sum(map(len, rois.values())) / Y.shape[1]
    print(f"\n{shape[0]} stimuli × {shape[1]} features → {shape[2]} targets, in {held:.2f} regions each")
    for penalty in ("target", "group"):
        times = []
        for _ in range(pairs):
            whole = seconds(lambda: RidgeEncoder().fit(X, Y))
            times.append(
                (whole, seconds(lambda p=penalty: PerROI(RidgeEncoder(), rois, penalty=p).fit(X, Y)))
            )
        ratio = median(ours / whole for whole, ours in times)
        whole, ours = (median(column) for column in zip(*times, strict=True))
        print(
            f"penalty={penalty!r:9} one fit {whole:6.2f} s, {len(rois)} regions {ours:6.2f} s, ratio {ratio:.2f}",
            flush=True,
        )
    some = list(rois.values())[: N_REGIONS // 8]
    apart = seconds(lambda: [RidgeEncoder().fit(X, Y[:, where]) for where in some])
    print(f"one by one: {apart / whole * N_REGIONS / len(some):.1f} × one fit, from {len(some)} of them")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first shape with a tenth of the targets")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        report((SHAPES[0][0], SHAPES[0][1], SHAPES[0][2] // 10), arguments.pairs)
        return
    for shape in SHAPES:
        report(shape, arguments.pairs)


if __name__ == "__main__":
    main()
