"""Checkpoints that say which network they belong to."""

from __future__ import annotations

import os

from featpipe.models._backbone import Backbone


def save_checkpoint(path: str | os.PathLike[str], backbone: Backbone) -> None:
    """Write a network's weights and what it takes to build it again, in one ``.safetensors`` file."""
    raise NotImplementedError
