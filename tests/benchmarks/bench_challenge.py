"""The Algonauts 2023 challenge from folder to submission, with the time and memory of every stage.

The folder is made up, in the official layout with the real numbers of vertices: eight subjects, two hemispheres,
responses linear in the colours of the images. Each stage is one command of featpipe in a process of its own.

    python tests/benchmarks/bench_challenge.py [--train 400 --test 100] [--subjects 8] [--out FOLDER]
        [--model M --weights W --layers L] [--recipe baseline_ridge --set KEY=VALUE …]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from featpipe.testing import make_algonauts2023


def run(stage: str, *words: str) -> None:
    """Run a command of featpipe, and print what it took and the last lines that it printed."""
    began = time.perf_counter()
    arguments = [sys.executable, "-m", "featpipe", *words]
    log = Path(f"{stage.replace(' ', '_')}.log")
    output = [
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    child = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=output)
    _, status, usage = os.wait4(child, 0)
    report(stage, began, usage.ru_maxrss / 2**20)
    if status:
        sys.exit(f"{' '.join(words)}\n{log.read_text()}")
    lines = log.read_text().splitlines()
    for line in [line for line in lines if line.startswith(("overall", "Algonauts"))] or lines[-1:]:
        print(f"    {line}")


def report(stage: str, began: float, gigabytes: float | None = None) -> None:
    memory = "" if gigabytes is None else f"  {gigabytes:5.2f} GiB at most"
    print(f"{stage:14} {time.perf_counter() - began:8.1f} s{memory}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--out", help="Keep everything in this folder.")
    parser.add_argument("--model", default="torchvision:squeezenet1_1")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--layers", default="features.12:grid:2")
    parser.add_argument("--recipe", default="baseline_ridge")
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


def main() -> None:
    asked = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.out or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        began = time.perf_counter()
        make_algonauts2023(
            "alg",
            subject=range(1, asked.subjects + 1),
            n_train=asked.train,
            n_test=asked.test,
            vertices="real",
            test_responses=True,
            ceiling="fraction",
            image_size=96,
        )
        report("make it up", began)
        data = "algonauts2023:alg"
        layers = ("--model", asked.model, "--weights", asked.weights, "--layers", asked.layers)
        for split in ("train", "test"):
            words = ("--images", data, "--subject", "all", "--split", split, "--cache", "cache")
            run(f"extract {split}", "extract", *layers, *words)
        settings = [word for text in asked.set for word in ("--set", text)]
        words = ("--data", data, "--subject", "all", "--cache", "cache", "--out", "runs")
        run("fit", "fit", asked.recipe, *words, *settings)
        partial = ["--partial"] if asked.subjects < 8 else []
        words = ("--challenge", "algonauts2023", "--data", data, "--out", "submission.zip", *partial)
        run("submit", "submit", "runs", *words)
        run("score runs", "score", "runs", "--data", data)
        run("score zip", "score", "submission.zip", "--data", data)
        with zipfile.ZipFile("submission.zip") as archive:
            print(f"{Path('submission.zip').stat().st_size / 1e6:.0f} MB in {len(archive.namelist())} arrays")


if __name__ == "__main__":
    main()
