"""Comparison of many model RDMs with subjects against rsatoolbox, and what chance levels cost.

Run ``python tests/benchmarks/bench_compare.py [--repeats N]``. Times are medians of interleaved runs, ratios are
medians of the ratios within a round. Kendall's tau-a runs on a tenth of the models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from rsatoolbox.rdm import RDMs as ToolboxRDMs
from rsatoolbox.rdm import compare as toolbox_compare

from featpipe.rsa import RDMs
from featpipe.rsa._compare import compare
from featpipe.rsa._nulls import interval_of_rho, main_effect_null, permutation_null

N_MODELS, N_SUBJECTS, N_STIMULI = 1000, 15, 118
METHODS = {
    "spearman": "spearman",
    "pearson": "corr",
    "rho_a": "rho-a",
    "cosine": "cosine",
    "kendall": "tau-a",
}


def problem(n_models: int):
    """Return models and subjects as our RDMs and as rsatoolbox's."""
    rng = np.random.default_rng(0)
    pairs = N_STIMULI * (N_STIMULI - 1) // 2
    vectors = rng.random((n_models, pairs)), rng.random((N_SUBJECTS, pairs))
    return tuple(map(RDMs.from_upper, vectors)), tuple(map(ToolboxRDMs, vectors))


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Return seconds and the result."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def report_compare(method: str, repeats: int) -> None:
    """Print one line of the table."""
    n_models = N_MODELS // (50 if method == "kendall" else 1)
    ours, theirs = problem(n_models)
    compare(*ours, method)  # imports
    rounds = []
    for _ in range(repeats):
        own, found = timed(lambda: compare(*ours, method))
        other, expected = timed(lambda: toolbox_compare(*theirs, METHODS[method]))
        rounds.append((own, other, np.abs(found - expected).max()))
    own, other, differences = zip(*rounds, strict=True)
    ratio = median(b / a for a, b in zip(own, other, strict=True))
    print(
        f"{method:10}{n_models:8}{median(own):10.4f}{median(other):12.4f}{ratio:8.1f}{max(differences):11.1e}",
        flush=True,
    )


def report_nulls() -> None:
    """Print what 1 000 draws cost on one target of 15 subjects."""
    (models, data), _ = problem(1)
    for name, function in (
        ("1000 permutations", lambda: permutation_null(data, models)),
        ("1000 main effects", lambda: main_effect_null(data, models)),
        ("1000 bootstraps of subjects and stimuli", lambda: interval_of_rho(data, models, stimuli=True)),
    ):
        print(f"{name:42}{timed(function)[0]:8.2f} s", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"model RDMs against {N_SUBJECTS} subjects, {N_STIMULI} stimuli")
    print(f"{'':10}{'models':>8}{'ours s':>10}{'rsatoolbox':>12}{'ratio':>8}{'Δ':>11}")
    for method in METHODS:
        report_compare(method, min(repeats, 3) if method == "kendall" else repeats)
    report_nulls()


if __name__ == "__main__":
    main()
