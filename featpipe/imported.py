"""Arrays that another tool made, brought into the cache: captions, Gabor energy, annotations."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from featpipe.errors import DatasetError, NonFiniteFeatures
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest, StimulusSet
from featpipe.store import CachedArray, FeatureCache

LAYER = "features"


def import_array(
    path: str | Path,
    cache: FeatureCache,
    *,
    name: str,
    ids: str | Path,
    images: StimulusSet | None = None,
    store_dtype: str = "float32",
) -> CachedArray:
    """Put an array into the cache as ``imported:NAME``, keyed by its content.

    Parameters
    ----------
    path : str or Path
        ``.npy``, ``.npz`` with one array, or ``FILE.h5:DATASET``; shape (n_stimuli, …), numbers.
    cache : FeatureCache
    name : str
        Letters, digits and ``._-``.
    ids : str or Path
        CSV with a column ``id``, one line a row of the array.
    images : StimulusSet, optional
        The images behind the ids. Without them rows are known by their ids alone: the image digest is the
        SHA-256 of ``id`` and a NUL byte before the id.
    store_dtype : {"float32", "float16"}

    Raises
    ------
    DatasetError
        Shapes, ids or name do not fit.
    NonFiniteFeatures
        The array holds NaN or infinity, or overflows the stored dtype.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DatasetError(f"{name!r} cannot name an imported array; use letters, digits, '.', '_' and '-'.")
    values = read_array(str(path))
    names = read_ids(ids)
    if len(names) != len(values):
        raise DatasetError(
            f"{path} has {len(values)} rows and {ids} has {len(names)} ids; give one id a row, in order."
        )
    with np.errstate(over="ignore"):
        rows = values.astype(store_dtype)
    if not np.isfinite(rows).all():
        bad = names[int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])]
        other = ", or store float32" if store_dtype == "float16" else ""
        raise NonFiniteFeatures(
            f"{path} holds NaN or infinity as {store_dtype}, first for {bad!r}. Fill or drop such rows{other}."
        )
    manifest = StimulusManifest(tuple(names), _digests(names, images), name=name, source=Path(path).name)
    spec = FeatureSpec(f"imported:{name}", content_digest(values), LAYER, None, store_dtype=store_dtype)
    return _write(cache, spec, manifest, rows)


def read_array(text: str) -> np.ndarray:
    """Read an array of numbers with at least one axis beside the stimuli's; a vector becomes a column."""
    path, _, member = text.partition(":") if not Path(text).exists() else (text, "", "")
    if not Path(path).is_file():
        raise DatasetError(f"There is no file {path}. Give FILE.npy, FILE.npz or FILE.h5:DATASET.")
    try:
        values = _read(Path(path), member)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{text} cannot be read as an array ({error}). Give FILE.npy, FILE.npz or FILE.h5:DATASET."
        ) from error
    if values.dtype.kind not in "fiub" or values.ndim < 1 or not len(values):
        raise DatasetError(
            f"{text} has dtype {values.dtype} and shape {values.shape}; numbers of shape (n_stimuli, …) are needed."
        )
    return values[:, None] if values.ndim == 1 else values


def _read(path: Path, member: str) -> np.ndarray:
    if path.suffix not in (".npy", ".npz"):
        with h5py.File(path, "r") as file:
            found = file[member or _only(list(file))]
            if not isinstance(found, h5py.Dataset):
                raise ValueError(f"{found.name} is a group of {', '.join(found) or 'nothing'}")
            return np.asarray(found)
    with open(path, "rb") as stream:
        data = np.load(stream, allow_pickle=False)
        return np.asarray(data if path.suffix == ".npy" else data[member or _only(list(data))])


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} arrays, {', '.join(names)}: write FILE:NAME")
    return names[0]


def read_ids(path: str | Path) -> list[str]:
    """Read the column ``id`` of a CSV; raises `DatasetError` when it is missing or an id repeats."""
    if not Path(path).is_file():
        raise DatasetError(f"There is no file {path}. --ids is a CSV with a column id.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DatasetError(
            f"{path} cannot be read as a CSV: {error}. Save it as UTF-8 with commas."
        ) from error
    if "id" not in table:
        raise DatasetError(f"{path} has the columns {', '.join(map(str, table))}; it needs a column id.")
    names = table["id"].tolist()
    if repeated := table["id"][table["id"].duplicated()].tolist():
        raise DatasetError(f"{path} has {repeated[0]!r} twice; every row needs an id of its own.")
    return names


def content_digest(values: np.ndarray) -> str:
    """Return the SHA-256 of an array: dtype, shape and little-endian bytes in C order."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.data)
    return digest.hexdigest()


def _digests(names: list[str], images: StimulusSet | None) -> tuple[str, ...]:
    if images is None:
        return tuple(hashlib.sha256(b"id\0" + name.encode()).hexdigest() for name in names)
    return images.select(names).sha256


def _write(
    cache: FeatureCache, spec: FeatureSpec, manifest: StimulusManifest, rows: np.ndarray
) -> CachedArray:
    shard_rows = cache.add_stimuli(manifest).shard_rows
    axes = tuple(f"dim_{axis}" for axis in range(rows.ndim - 1)) if rows.ndim > 2 else ("channel",)
    writer = cache.writer(spec, manifest.digest, row_shape=rows.shape[1:], dims=axes, sample=rows[:32])
    for shard in writer.array.missing:
        part = rows[shard * shard_rows : (shard + 1) * shard_rows]
        writer.publish(
            shard, part, {"weights_label": manifest.name, "source": manifest.source, "layer_order": 0}
        )
    return cache.array(writer.array.key)
