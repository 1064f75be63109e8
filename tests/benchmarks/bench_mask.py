"""The channel mask: statistics against matrix products, an epoch against features, L-BFGS-B against Adam.

Run ``python tests/benchmarks/bench_mask.py [PART …]`` with parts rate, epoch, solvers, grid (all by default).

* rate: statistics of SE-ResNeXt-50 (32x4d), five stages, 118 stimuli, ``2 n² P`` operations per channel, over the
  rate of a square float32 product in the same run and of the same threads.
* epoch: Adam over all 6 903 pairs by statistics, against embedding and correlating each batch of 40 pairs from
  the stored features with torch, gradient included (some batches, scaled).
* solvers: the L1 loss that L-BFGS-B reaches in the time of Adam's 15 epochs, and when it passes Adam's.
* grid: 20 settings × 5 folds × 2 regions on 92 + 118 stimuli through `GridSearchCV` on two cores; limit 180 s.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import numpy as np
from sklearn.model_selection import GridSearchCV, KFold

from featpipe.blocks import LayerBlocks
from featpipe.rsa import RDMs, concat
from featpipe.rsa._threads import one_blas_thread
from featpipe.rsa.mask._channel_mask import ChannelMask
from featpipe.rsa.mask._problem import assemble, pairs_within_sets
from featpipe.rsa.mask._solvers import Problem, Watch, adam, batches, lbfgs
from featpipe.rsa.statistics._held import STATISTICS
from featpipe.rsa.statistics._statistics import channel_statistics

STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4")
BATCH = 40
LIMIT = 180.0  # seconds of the grid
TIMED_BATCHES = 4  # of the naive epoch
EXACT_PAIRS = 6  # of each of those, in float64


def network_blocks(names: list[str], seed: int = 0) -> LayerBlocks:
    """Return five stages of SE-ResNeXt-50 with random weights for smooth noise images."""
    import torch

    from featpipe.models._zoo_timm import import_timm

    torch.manual_seed(seed)
    net = import_timm().create_model("seresnext50_32x4d", pretrained=False).eval()
    found: dict[str, list[np.ndarray]] = {stage: [] for stage in STAGES}
    for stage in STAGES:
        net.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: found[stage].append(output.numpy().copy())
        )
    with torch.inference_mode():
        for start in range(0, len(names), 32):
            coarse = torch.randn(len(names[start : start + 32]), 3, 14, 14)
            net(torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic"))
    layers = [np.concatenate(found[stage]) for stage in STAGES]
    place = {name: row for row, name in enumerate(names)}
    return LayerBlocks(
        np.array(names),
        names=STAGES,
        shapes=[layer.shape[1:] for layer in layers],
        dims=[("channel", "height", "width")] * len(STAGES),
        digests=[f"{stage}:{seed}" for stage in STAGES],
        read=lambda layer, ids: _rows(layers[layer], [place[name] for name in ids.tolist()]),
    )


def _rows(layer: np.ndarray, rows: list[int]) -> np.ndarray:
    return layer if rows == list(range(len(layer))) else layer[rows]


def random_rdms(ids: np.ndarray, targets: tuple[str, ...] = ("EVC", "IT"), n_subjects: int = 15) -> RDMs:
    """Return noise around a common RDM for every target."""
    rng = np.random.default_rng(0)
    values = []
    for _ in targets:
        common = rng.uniform(0.3, 1, (len(ids), len(ids)))
        values += [common + 0.3 * rng.standard_normal(common.shape) for _ in range(n_subjects)]
    values = [(value + value.T) / 2 for value in values]
    whole = RDMs(
        np.stack(values),
        ids,
        subjects=[f"{number:02d}" for number in range(n_subjects)] * len(targets),
        targets=np.repeat(targets, n_subjects),
    )
    return concat([part for _, part in whole.split_sets()])


def names_of(stimulus_set: int) -> list[str]:
    """Return the ids of the 92 or the 118."""
    return [f"{stimulus_set}/image_{number:03d}" for number in range(1, stimulus_set + 1)]


def measured_rdms() -> RDMs:
    """Return the real RDMs of 92 + 118 stimuli where they are, random ones otherwise."""
    ids = np.array(names_of(92) + names_of(118))
    folder = Path(os.environ.get("FEATPIPE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (folder / "algonauts2019").is_dir():
        print("RDMs: random")
        return random_rdms(ids)
    import h5py

    parts = []
    for number in (92, 118):
        path = folder / "algonauts2019" / "Training_Data" / f"{number}_Image_Set" / "target_fmri.mat"
        with h5py.File(path) as file:
            stack = [np.asarray(file[f"{roi}_RDMs"]).T for roi in ("EVC", "IT")]
        subjects = [f"{number:02d}" for number in range(15)] * 2
        labels = {"subjects": subjects, "targets": np.repeat(["EVC", "IT"], 15)}
        parts.append(RDMs(np.concatenate(stack), names_of(number), **labels))
    print("RDMs: Algonauts 2019")
    return concat(parts)


def gemm_rate(size: int = 4096) -> float:
    """Return operations per second of a square float32 product."""
    values = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        values @ values
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def rate(blocks: LayerBlocks, repeats: int = 5) -> None:
    """Print the rate of the statistics over that of matrix products, in alternating runs."""
    ratios, found = [], []
    for _ in range(repeats):
        STATISTICS.clear()
        gemm = gemm_rate()
        start = time.perf_counter()
        statistics = channel_statistics(blocks)
        found.append(2 * len(blocks) ** 2 * statistics.n_features / (time.perf_counter() - start))
        ratios.append(found[-1] / gemm)
    print(
        f"rate: {median(found) / 1e9:.0f} Gflop/s, {median(ratios):.2f} of a matrix product "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}; wanted 0.5)"
    )


def epoch(blocks: LayerBlocks, rdms: RDMs) -> None:
    """Print how much faster an epoch is than from features, and how far RDM and gradient are apart."""
    pairs = pairs_within_sets(rdms)
    terms, measured = assemble(blocks, rdms, pairs, [(0, 0)], "channel", reliability=(0.25, 1.0))
    problem = Problem(terms, measured)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        adam(problem, Watch(), epochs=1, rng=np.random.default_rng(0))
        seconds.append(time.perf_counter() - start)
    ours = median(seconds)
    naive, rdm_error, gradient_error = naive_epoch(blocks, problem, pairs)
    print(
        f"epoch: {ours:.3f} s, from features {naive:.0f} s, {naive / ours:.0f} times (wanted 500); "
        f"largest difference of r {rdm_error:.1e} (1e-5), of the gradient {gradient_error:.1e} (1e-4)"
    )


def naive_epoch(blocks: LayerBlocks, problem: Problem, pairs) -> tuple[float, float, float]:
    """Return seconds of an epoch from features in float32, and how far ours is from float64, of a few batches."""
    import torch

    layers = [torch.from_numpy(layer) for _, layer in blocks]
    beta = np.random.default_rng(1).uniform(0.5, 1.5, problem.terms.n_channels)
    rng, seconds, errors = np.random.default_rng(0), [], []
    for batch in list(batches(len(pairs[0]), BATCH, rng))[:TIMED_BATCHES]:
        start = time.perf_counter()
        _step(layers, beta, [ends[batch] for ends in pairs], problem.measured.values[:, batch], torch.float32)
        seconds.append(time.perf_counter() - start)
        some = batch[:EXACT_PAIRS]
        y = problem.measured.values[:, some]
        r, gradient = _step(layers, beta, [ends[some] for ends in pairs], y, torch.float64)
        ours, pullback = problem.terms.take(some).correlate(beta)
        own = pullback(-np.sign(1 - r - y).mean(axis=0) / len(some))
        errors.append((np.abs(ours - r).max(), np.linalg.norm(own - gradient) / np.linalg.norm(gradient)))
    n_batches = -(-len(pairs[0]) // BATCH)
    return median(seconds) * n_batches, *np.max(errors, axis=0)


def _step(layers, beta, ends, y, dtype):
    """Return r of pairs and the gradient of the L1 loss in the mask, from features."""
    import torch

    mask = torch.tensor(beta, dtype=dtype, requires_grad=True)
    r = torch.cosine_similarity(*(_embedding(layers, mask, rows) for rows in ends))
    ((1 - r) - torch.from_numpy(y)).abs().mean().backward()
    return r.detach().numpy(), mask.grad.numpy()


def _embedding(layers, mask, rows):
    import torch

    start, parts = 0, []
    for layer in layers:
        own = mask[start : start + layer.shape[1]]
        start += layer.shape[1]
        parts.append((layer[rows] * own[None, :, None, None]).flatten(1))
    embedding = torch.cat(parts, dim=1)
    return embedding - embedding.mean(dim=1, keepdim=True)


class _Clock(Watch):
    """Note when each iteration ended."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.seconds = time.perf_counter(), []

    def sees(self, beta, loss):
        self.seconds.append(time.perf_counter() - self.start)
        return super().sees(beta, loss)


def solvers(blocks: LayerBlocks, rdms: RDMs) -> None:
    """Print the objectives of both solvers and their times, for each loss."""
    terms, measured = assemble(
        blocks, rdms, pairs_within_sets(rdms), [(0, 0)], "channel", reliability=(0.25, 1.0)
    )
    for options in (
        {"loss": "l1"},
        {"loss": "l1", "line": True},
        {"loss": "squared"},
        {"loss": "correlation"},
    ):
        problem = Problem(terms, measured, **options)
        slow, fast = _Clock(), _Clock()
        adam(problem, slow, epochs=15, rng=np.random.default_rng(0))
        fast.start = time.perf_counter()
        lbfgs(problem, fast)
        reached = problem.full()(slow.best)[0]
        passed = next(
            (t for t, loss in zip(fast.seconds, fast.losses, strict=True) if loss < reached), np.nan
        )
        name = " ".join(map(str, options.values()))
        print(
            f"solvers, {name}: Adam {reached:.6f} after {slow.seconds[-1]:.2f} s; L-BFGS-B lower after "
            f"{passed:.2f} s, {fast.losses[-1]:.6f} after {fast.seconds[-1]:.2f} s"
        )


def grid() -> None:
    """Print the seconds of 20 settings × 5 folds × 2 regions."""
    first, second = network_blocks(names_of(92)), network_blocks(names_of(118), seed=1)
    blocks = _both(first, second)
    rdms = measured_rdms()
    sets = np.repeat([92, 118], [92, 118])
    splits = [
        (np.concatenate([np.flatnonzero(sets == s)[p[k][0]] for s, p in folds.items()]),
         np.concatenate([np.flatnonzero(sets == s)[p[k][1]] for s, p in folds.items()]))
        for folds in [{s: list(KFold(5, shuffle=True, random_state=0).split(np.arange(s))) for s in (92, 118)}]
        for k in range(5)
    ]  # fmt: skip
    settings = {
        "loss": ["l1", "correlation"],
        "solver": ["adam", "lbfgs"],
        "shrinkage": [0.0, 1e-3, 1e-2, 1e-1, 1.0],
    }
    print(f"grid: load of the machine before it {os.getloadavg()[0]:.1f}")
    start = time.perf_counter()
    for target in ("EVC", "IT"):
        model = ChannelMask(train_on=target, max_iter=50, random_state=0)
        search = GridSearchCV(model, settings, cv=splits, n_jobs=2, refit=False)
        search.fit(blocks, rdms)
        mean = search.cv_results_["mean_test_score"]
        print(
            f"grid, {target}: best mean rho {mean.max():.3f} with {search.best_params_}, worst {mean.min():.3f}"
        )
    seconds = time.perf_counter() - start
    print(f"grid: {seconds:.0f} s, {seconds / LIMIT:.2f} of the limit of {LIMIT:.0f} s")


def _both(first: LayerBlocks, second: LayerBlocks) -> LayerBlocks:
    layers = [np.concatenate([a, b]) for (_, a), (_, b) in zip(first, second, strict=True)]
    ids = np.concatenate([first.ids, second.ids])
    place = {name: row for row, name in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=first.names,
        shapes=first.shapes,
        dims=first.dims,
        digests=[f"{digest}+" for digest in first.digests],
        read=_Reader(layers, place),
    )


class _Reader:
    """Read rows of layers in memory, in any process."""

    def __init__(self, layers: list[np.ndarray], place: dict[str, int]) -> None:
        self.layers, self.place = layers, place

    def __call__(self, layer: int, ids: np.ndarray) -> np.ndarray:
        return self.layers[layer][[self.place[name] for name in ids.tolist()]]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = ("rate", "epoch", "solvers", "grid")
    parser.add_argument("parts", nargs="*", help=", ".join(known))
    parts = parser.parse_args().parts or known
    warnings.simplefilter("ignore")
    if {"rate", "epoch", "solvers"} & set(parts):
        blocks = network_blocks(names_of(118))
        rdms = measured_rdms().select(targets=["EVC"]).take(blocks.ids)
        for name, work in (
            ("rate", lambda: rate(blocks)),
            ("epoch", lambda: epoch(blocks, rdms)),
            ("solvers", lambda: solvers(blocks, rdms)),
        ):
            if name in parts:
                with nullcontext() if name == "rate" else one_blas_thread():  # as `ChannelMask.fit` does
                    work()
    if "grid" in parts:
        STATISTICS.clear()
        grid()


if __name__ == "__main__":
    main()
