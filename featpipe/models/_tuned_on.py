"""Which images a network was tuned on, as its checkpoint says. Needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featpipe.errors import ModelError


def tuned_on(path: str | os.PathLike[str]) -> frozenset[str]:
    """Return the digests of the images that the network of a checkpoint was tuned on; empty where it says none.

    Parameters
    ----------
    path : str or path
        Of ``local:PATH``: a file, or a folder that holds one.

    Raises
    ------
    ModelError
        It is no file of this kind.
    """
    file = Path(path)
    if file.is_dir():
        file = next(iter(sorted(file.glob("*.safetensors"))), file)
    try:
        with safe_open(file, framework="numpy") as opened:
            about = json.loads((opened.metadata() or {}).get("featpipe", "{}"))
            return frozenset(about.get("tuned_on", ()))
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{file} is not a checkpoint that can be read: {error}.") from error
