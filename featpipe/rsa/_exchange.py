"""RDMs in files, and from and to rsatoolbox."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from featpipe.errors import DatasetError, MissingDependency, RequestError
from featpipe.files import written_whole
from featpipe.rsa._arrays import read_arrays
from featpipe.rsa._rdms import RDMs

_LABELS = ("ids", "subjects", "targets", "times")


def save_rdms(path: str | Path, rdms: RDMs) -> None:
    """Write RDMs with all their labels, whole or not at all.

    The file holds ``values`` (n_rdms, n_stimuli, n_stimuli), ``ids``, ``subjects``, ``targets`` and, for MEG,
    ``times``; `load_rdms` gives the same RDMs again.

    Parameters
    ----------
    path : path
        ``.npz``, or ``.mat`` (MATLAB v5, text as cells).
    rdms : RDMs

    Raises
    ------
    RequestError
        Another ending.
    """
    arrays = {"values": rdms.values, "ids": rdms.ids}
    arrays |= {"subjects": np.array(rdms.subjects, dtype=str), "targets": np.array(rdms.targets, dtype=str)}
    if rdms.times is not None:
        arrays["times"] = np.array(rdms.times, dtype=np.int64)
    write_arrays(path, arrays)


def load_rdms(path: str | Path) -> RDMs:
    """Read what `save_rdms` wrote.

    Raises
    ------
    DatasetError
        The file is missing or damaged, or holds no ``values`` with ``ids``.
    """
    arrays = read_arrays(path)
    if not is_saved(arrays):
        raise DatasetError(
            f"{str(path)!r} holds {', '.join(arrays) or 'no array'}, not values and ids as save_rdms writes them. "
            "Make RDMs of arrays without ids yourself: RDMs(values, ids)."
        )
    try:
        labels: dict[str, Any] = {name: arrays[name].ravel() for name in _LABELS if name in arrays}
        return RDMs(arrays["values"], labels.pop("ids"), **labels)
    except RequestError as error:
        raise DatasetError(f"{str(path)!r} holds RDMs that do not fit together: {error}") from error


def is_saved(arrays: Any) -> bool:
    """Whether arrays by name are those that `save_rdms` writes, as against RDMs without ids."""
    return {"values", "ids"} <= set(arrays)


def to_rsatoolbox(rdms: RDMs) -> Any:
    """Return RDMs as rsatoolbox has them.

    Returns
    -------
    rsatoolbox.rdm.RDMs
        ``rdm_descriptors`` are subject, target and, for MEG, time; the pattern descriptor is ``ids``.

    Raises
    ------
    MissingDependency
        rsatoolbox is not installed.
    """
    descriptors: dict[str, list[Any]] = {"subject": list(rdms.subjects), "target": list(rdms.targets)}
    if rdms.times is not None:
        descriptors["time"] = list(rdms.times)
    return _rsatoolbox().RDMs(
        rdms.upper(), rdm_descriptors=descriptors, pattern_descriptors={"ids": rdms.ids.tolist()}
    )


def from_rsatoolbox(theirs: Any, *, ids: str = "ids") -> RDMs:
    """Return RDMs of rsatoolbox as ours.

    Parameters
    ----------
    theirs : rsatoolbox.rdm.RDMs
    ids : str
        Pattern descriptor with the stimulus ids. Without one called so, patterns are numbered.

    Raises
    ------
    RequestError
        There are several descriptors, and ``ids`` names none of them.
    """
    descriptors, patterns = theirs.rdm_descriptors, theirs.pattern_descriptors
    others = [name for name in patterns if name not in (ids, "index")]
    if ids not in patterns and others:
        raise RequestError(
            f"These RDMs have no pattern descriptor {ids!r} but {', '.join(others)}; say which holds the ids: "
            f"from_rsatoolbox(rdms, ids={others[0]!r})."
        )
    labels = {
        ours: [str(value) for value in descriptors[name]]
        for ours, name in (("subjects", "subject"), ("targets", "target"))
        if name in descriptors
    }
    times = [int(t) for t in descriptors["time"]] if "time" in descriptors else None
    named = [str(i) for i in patterns[ids]] if ids in patterns else None
    return RDMs.from_upper(theirs.get_vectors(), named, **labels, times=times)


def _rsatoolbox() -> Any:
    try:
        return import_module("rsatoolbox.rdm")
    except ImportError as error:
        raise MissingDependency(
            "RDMs are handed to rsatoolbox, which is not installed: pip install 'featpipe[bench]'."
        ) from error


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as ``.npz`` or ``.mat`` (v5, text as cells), whole or not at all."""
    out = Path(path)
    if out.suffix not in (".npz", ".mat"):
        raise RequestError(f"RDMs are written as .npz or .mat, not {out.name!r}.")
    with written_whole(out) as file:
        if out.suffix == ".npz":
            np.savez_compressed(file, allow_pickle=False, **arrays)
        else:
            save_mat(file, arrays)


def save_mat(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays in MATLAB's v5 format, text as cells."""
    from scipy.io import savemat  # slow to import

    cells = {
        name: value.astype(object) if value.dtype.kind == "U" else value for name, value in arrays.items()
    }
    savemat(file, cells, do_compression=True)
