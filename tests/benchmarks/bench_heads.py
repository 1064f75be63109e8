"""Torch heads: all ROIs in one batched pass against one after another, and a step against a bare PyTorch loop.

Run ``python tests/benchmarks/bench_heads.py [--repeats N] [--quick] [--device cuda] [--precision bf16]``. Times are
medians of interleaved runs, ratios are medians of the ratios within a round, on made-up responses in 24 ROIs ×
2 hemispheres whose sizes follow those of the challenge. Fits have a fixed number of epochs, so that both sides do
the same steps; the largest difference of their predictions says that they did the same work. The bare loop does
only forward, backward and step of `torch.nn.Linear` with fused AdamW, on batches that are already on the device.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from featpipe.tuning import DeepHead, LinearHead, VertexPositionHead
from featpipe.tuning._loop import train
from featpipe.tuning._training import Training
from featpipe.tuning.heads._columns import columns_of
from featpipe.tuning.heads._linear_module import LinearModule
from featpipe.tuning.heads._objective import SquaredError

# vertices per ROI of one hemisphere, about those of subject 1
SIZES = {
    **{"V1v": 700, "V1d": 750, "V2v": 650, "V2d": 600, "V3v": 550, "V3d": 500, "hV4": 480},
    **{"EBA": 2900, "FBA-1": 640, "FBA-2": 430, "mTL-bodies": 60},
    **{"OFA": 350, "FFA-1": 480, "FFA-2": 340, "mTL-faces": 40, "aTL-faces": 150},
    **{"OPA": 1500, "PPA": 1000, "RSC": 570},
    **{"OWFA": 460, "VWFA-1": 770, "VWFA-2": 510, "mfs-words": 280, "mTL-words": 200},
}
N_FEATURES = 512  # CLIP's image embedding


def problem(n_stimuli: int, scale: float):
    """Return features, responses, positions and 48 ROIs, sizes times `scale`."""
    rng = np.random.default_rng(0)
    rois, start = {}, 0
    for hemisphere in ("lh", "rh"):
        for name, size in SIZES.items():
            n_vertices = max(3, round(size * scale))
            rois[f"{hemisphere}.{name}"] = np.arange(start, start + n_vertices)
            start += n_vertices
    X = rng.standard_normal((n_stimuli, N_FEATURES), dtype=np.float32)
    Y = X @ rng.standard_normal((N_FEATURES, start), dtype=np.float32) / N_FEATURES**0.5
    Y += rng.standard_normal(Y.shape, dtype=np.float32)
    return X, Y, rng.uniform(-60, 60, (start, 3)), rois


def head_of(kind: str, rois, positions, how: dict):
    """Return a head with a fixed number of epochs."""
    given = {**how, "patience": None, "validation_fraction": 0.1}
    if kind == "vertex position":
        return VertexPositionHead(rois, positions, vertices_per_step=32, channels=32, **given)
    return {"linear": LinearHead, "deep": DeepHead}[kind](rois, **given)


def together(kind: str, X, Y, positions, rois, how: dict) -> np.ndarray:
    """Fit all ROIs in one pass; return the held-out losses of the last epoch, (n_rois,)."""
    return head_of(kind, rois, positions, how).fit(X, Y).history_["validation_loss"][-1]


def one_by_one(kind: str, X, Y, positions, rois, how: dict) -> np.ndarray:
    """Fit one ROI after another."""
    return np.array([together(kind, X, Y[:, t], positions[t], "all", how)[0] for t in rois.values()])


def timed(function, *args, device: str):
    """Return the seconds of a call and what it returns."""
    start = time.perf_counter()
    found = function(*args)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def compare(kind: str, data, how: dict, repeats: int) -> dict[str, float]:
    """Time both ways of one head, interleaved."""
    rounds = [
        (
            timed(together, kind, *data, how, device=how["device"]),
            timed(one_by_one, kind, *data, how, device=how["device"]),
        )
        for _ in range(repeats)
    ]
    ratio = median(alone[0] / joint[0] for joint, alone in rounds)
    difference = float(np.abs(rounds[-1][0][1] / rounds[-1][1][1] - 1).max())
    return {
        "together": median(joint[0] for joint, _ in rounds),
        "one_by_one": median(alone[0] for _, alone in rounds),
        "ratio": ratio,
        "loss_difference": difference,
    }


def step_ratio(X, Y, how: dict, repeats: int) -> dict[str, float]:
    """Time epochs of the loop and of a bare loop over the same batches: milliseconds a step, and their ratio."""
    device = torch.device(how["device"])
    features, responses = torch.as_tensor(X, device=device), torch.as_tensor(Y, device=device)
    training = Training(1e-4, **{**how, "max_epochs": 3}, patience=None)
    n_steps = -(-len(X) // training.batch_size)
    module = LinearModule(columns_of("all", Y.shape[1]), X.shape[1], zeros=True).to(device)
    objective = SquaredError(module, features, responses, weight=None, n_parts=1)
    order = torch.randperm(len(X)).tensor_split(n_steps)
    batches = [(features[rows], responses[rows]) for rows in (rows.to(device) for rows in order)]
    layer = torch.nn.Linear(X.shape[1], Y.shape[1], device=device)

    def ours() -> None:
        train(module, objective, training, rows=np.arange(len(X)))

    def bare() -> None:
        optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-4, fused=True)
        for _ in range(3):
            for x, y in batches:
                optimiser.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                    loss = F.mse_loss(layer(x), y)
                loss.backward()
                optimiser.step()

    ours()
    bare()
    rounds = [[timed(run, device=how["device"])[0] for run in (ours, bare)] for _ in range(repeats)]
    milliseconds = 1e3 / (3 * n_steps)
    return {
        "ours_ms": median(a for a, _ in rounds) * milliseconds,
        "bare_ms": median(b for _, b in rounds) * milliseconds,
        "speed": median(b / a for a, b in rounds),
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few stimuli and vertices")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--stimuli", type=int, help="9841 on a GPU, 1000 otherwise")
    parser.add_argument("--scale", type=float, help="of the ROIs' sizes; 1 on a GPU, .2 otherwise")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--heads", nargs="*", default=["linear", "deep", "vertex position"])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    on_gpu = asked.device != "cpu" and not asked.quick
    n_stimuli = asked.stimuli or (9841 if on_gpu else 200 if asked.quick else 1000)
    scale = asked.scale or (1.0 if on_gpu else 0.05 if asked.quick else 0.2)
    data = problem(n_stimuli, scale)
    X, Y, _, rois = data
    how = {
        "device": asked.device,
        "precision": asked.precision,
        "max_epochs": asked.epochs,
        "batch_size": 128,
    }
    print(f"{n_stimuli} stimuli × {N_FEATURES} features → {Y.shape[1]} vertices in {len(rois)} ROIs, {how}")
    print(f"{'seconds':18}{'together':>10}{'one by one':>12}{'ratio':>8}{'Δloss':>10}", flush=True)
    found = {}
    for kind in asked.heads:
        compare(kind, problem(150, 0.02), how, 1)  # kernels and thread pools
        found[kind] = row = compare(kind, data, how, asked.repeats)
        print(
            f"{kind:18}{row['together']:10.2f}{row['one_by_one']:12.2f}{row['ratio']:8.2f}{row['loss_difference']:10.1e}",
            flush=True,
        )
    found["step"] = step = step_ratio(X, Y, how, max(asked.repeats, 5))
    print(
        f"a step: {step['ours_ms']:.2f} ms, bare PyTorch {step['bare_ms']:.2f} ms, {step['speed']:.2f} of its speed"
    )
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
