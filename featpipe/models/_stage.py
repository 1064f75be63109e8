"""The way into the torch stage, for callers that must run without torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from featpipe.errors import MissingDependency

_EXTRA = {"torch", "torchvision", "timm", "open_clip", "safetensors", "huggingface_hub"}


def from_stage(module: str, name: str) -> Any:
    """Import a name from a module that needs torch.

    Raises
    ------
    MissingDependency
        When the extra is not installed.
    """
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise MissingDependency(
            f"Running a network needs {error.name}, which is not installed. "
            "Install it with: pip install 'featpipe[extract]'"
        ) from error
