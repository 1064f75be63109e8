"""Where each vertex of fsaverage is: ``lh=FILE,rh=FILE``, GIFTI or FreeSurfer's own geometry.

Any surface of fsaverage will do, such as ``lh.white``, ``lh.inflated`` or ``lh.sphere`` of FreeSurfer's
``subjects/fsaverage/surf``. Coordinates are in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np

from featpipe.errors import DatasetError, MissingDependency

FSAVERAGE = 163_842  # vertices of a hemisphere
_RESOLUTIONS = {2_562: "fsaverage4", 10_242: "fsaverage5", 40_962: "fsaverage6"}
_FORM = "lh=FILE,rh=FILE"
_UNREADABLE = (ValueError, OSError, EOFError, IndexError, KeyError, TypeError, ExpatError)


def read_positions(
    surface: str | Mapping[str, str], hemispheres: Sequence[str] = ("lh", "rh")
) -> dict[str, np.ndarray]:
    """Read the positions of all vertices of fsaverage.

    Parameters
    ----------
    surface : str or mapping of hemisphere to path
        ``lh=FILE,rh=FILE``.
    hemispheres : sequence of str
        Those that are needed.

    Returns
    -------
    dict of str to ndarray of shape (163842, 3), float32
        x, y, z per hemisphere.

    Raises
    ------
    DatasetError
        A file is missing, is no surface, or is not one of fsaverage at full resolution.
    MissingDependency
        nibabel is not installed.
    """
    files = parse_surface(surface) if isinstance(surface, str) else dict(surface)
    if set(files) != set(hemispheres):
        raise DatasetError(
            f"--surface names {', '.join(files) or 'no hemisphere'}; one file each for {' and '.join(hemispheres)} is "
            f"needed: {_FORM}."
        )
    return {hemisphere: _fsaverage(Path(files[hemisphere]).expanduser()) for hemisphere in hemispheres}


def parse_surface(text: str) -> dict[str, str]:
    """Split ``lh=FILE,rh=FILE``; raises `DatasetError` on another form."""
    files: dict[str, str] = {}
    for part in text.split(","):
        hemisphere, equals, path = part.partition("=")
        if not equals or not path or hemisphere in files:
            raise DatasetError(f"--surface {text!r} is not of the form {_FORM}.")
        files[hemisphere] = path
    return files


def _fsaverage(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DatasetError(f"There is no surface file {str(path)!r}.")
    points = _points(path)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise DatasetError(f"{str(path)!r} holds points of shape {points.shape}; finite x, y, z are needed.")
    if len(points) != FSAVERAGE:
        what = f" (as {_RESOLUTIONS[len(points)]} has)" if len(points) in _RESOLUTIONS else ""
        raise DatasetError(
            f"{str(path)!r} has {len(points)} vertices{what}, fsaverage has {FSAVERAGE}. Give a surface of fsaverage "
            "at full resolution, such as lh.white of FreeSurfer's subjects/fsaverage/surf."
        )
    return points


def _points(path: Path) -> np.ndarray:
    """Read the vertices of a GIFTI file, known by its name, or of FreeSurfer's binary geometry."""
    nibabel = _nibabel()
    try:
        if path.name.endswith((".gii", ".gii.gz")):
            image: Any = nibabel.load(path)
            points = image.agg_data("pointset")
            if not isinstance(points, np.ndarray):
                raise DatasetError(
                    f"{str(path)!r} has no points in it; give a surface (.surf.gii), not data on it."
                )
        else:
            points = nibabel.freesurfer.read_geometry(path)[0]
    except (
        ValueError,
        OSError,
        EOFError,
        IndexError,
        KeyError,
        ExpatError,
        nibabel.filebasedimages.ImageFileError,
    ) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{str(path)!r} cannot be read as a surface ({error}). Give a GIFTI file (.gii) or FreeSurfer's geometry, "
            "such as lh.white."
        ) from error
    return np.asarray(points, dtype=np.float32)


def _nibabel() -> Any:
    try:
        return import_module("nibabel")
    except ImportError as error:
        raise MissingDependency(
            "Reading a surface needs nibabel: pip install 'featpipe[surface]'."
        ) from error
