"""Which GPUs this machine offers, and one of them for each worker that is started here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from distributed import Nanny

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ASK = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


class NannyOfOneGPU(Nanny):
    """Starts a worker that sees one GPU, where the machine offers several: that of the worker's number."""

    def __init__(self, *args: Any, name: Any = None, gpus: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, name=name, env=one_gpu(int(name or 0), gpus), **options)


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA would offer to this process, as ``CUDA_VISIBLE_DEVICES`` names them.

    Asked of the driver's own tool, so that neither torch nor CUDA is started for it.
    """
    if (given := os.environ.get(VISIBLE)) is not None:
        names = [name.strip() for name in given.split(",")]
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA stops reading there
    try:
        answer = subprocess.run(_ASK, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # no driver, no GPU
        return []
    return answer.stdout.split()


def one_gpu(worker: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return what a worker's environment says of GPUs: nothing where there is none to choose."""
    return {VISIBLE: gpus[worker % len(gpus)]} if len(gpus) > 1 else {}
