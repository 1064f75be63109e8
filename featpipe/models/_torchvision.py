"""Importing torchvision beside a torch build that its compiled operators were not linked for.

torchvision's wheel from PyPI is linked to CUDA. Beside a CPU build of torch its library does not load, and
``import torchvision`` then fails, because it describes the operator ``torchvision::nms`` that the library
would have defined. timm and open_clip import torchvision, so they fail with it. Classification networks
and image transforms need no such operator: naming its schema is enough. The schemas are defined only when
the library cannot be loaded; with a matching pair nothing is touched.
"""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = ("nms", "qnms")
_kept: list[Any] = []  # torch forgets the schemas when their library object goes


def import_torchvision() -> ModuleType:
    """Import torchvision, with stand-in schemas where its own operators cannot be loaded."""
    import torch

    if "torchvision" not in sys.modules and not _own_operators_load():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _SCHEMAS:
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    import torchvision

    return torchvision


def _own_operators_load() -> bool:
    """Load torchvision's library as its package will, without importing the package."""
    import torch

    spec = find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = (Path(folder) / f"_C{suffix}" for folder in folders for suffix in EXTENSION_SUFFIXES)
    for file in filter(Path.is_file, files):
        try:
            torch.ops.load_library(file)
        except OSError:
            return False
        return True
    return False
