"""Files of predicted responses: ``.npz``, ``.npy``, ``.mat`` or ``.csv``, with ids inside."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pandas as pd
import scipy.io

from featpipe.errors import RequestError
from featpipe.files import written_whole

FORMATS = (".npz", ".npy", ".mat", ".csv")
RDM_FORMATS = (".npz", ".mat")


def write_predictions(
    path: str | Path,
    ids: Sequence[str],
    predictions: np.ndarray,
    targets: Sequence[str],
    *,
    in_training: np.ndarray | None = None,
) -> None:
    """Write predictions with their ids inside, whole or not at all.

    ``.npz`` and ``.mat`` hold ``ids``, ``targets`` and ``predictions`` (n_stimuli, n_targets); ``.npy`` is a
    structured array with the fields ``id`` and ``prediction``; ``.csv`` has a column ``id`` and one a target.
    Each also holds ``in_training`` where it is given.

    Parameters
    ----------
    path : path
    ids : sequence of str, length n_stimuli
    predictions : array of shape (n_stimuli, n_targets) or (n_stimuli,)
    targets : sequence of str, length n_targets
    in_training : array of bool, shape (n_stimuli,), optional
        Images that the model was fitted on: `score` refuses them.

    Raises
    ------
    RequestError
        Another ending.
    """
    out = Path(path)
    check_format(out)
    values = np.asarray(predictions, dtype=np.float32)
    values = values[:, None] if values.ndim == 1 else values
    seen = {} if in_training is None else {_SEEN: np.asarray(in_training, dtype=bool)}
    with written_whole(out) as file:
        _WRITERS[out.suffix](file, np.asarray(ids, dtype=str), np.asarray(targets, dtype=str), values, seen)


_SEEN = "in_training"
_Seen = Mapping[str, np.ndarray]


def _write_npz(
    file: IO[bytes], ids: np.ndarray, targets: np.ndarray, values: np.ndarray, seen: _Seen
) -> None:
    np.savez(file, allow_pickle=False, ids=ids, targets=targets, predictions=values, **seen)


def _write_mat(
    file: IO[bytes], ids: np.ndarray, targets: np.ndarray, values: np.ndarray, seen: _Seen
) -> None:
    cells = {"ids": ids.astype(object), "targets": targets.astype(object), "predictions": values, **seen}
    scipy.io.savemat(file, cells, do_compression=True)


def _write_npy(
    file: IO[bytes], ids: np.ndarray, targets: np.ndarray, values: np.ndarray, seen: _Seen
) -> None:
    flags = [(name, flag.dtype) for name, flag in seen.items()]
    table = np.empty(len(ids), dtype=[("id", ids.dtype), *flags, ("prediction", "<f4", values.shape[1:])])
    table["id"], table["prediction"] = ids, values
    for name, flag in seen.items():
        table[name] = flag
    np.save(file, table)


def _write_csv(
    file: IO[bytes], ids: np.ndarray, targets: np.ndarray, values: np.ndarray, seen: _Seen
) -> None:
    front = pd.DataFrame({"id": ids, **{name: flag.astype(int) for name, flag in seen.items()}})
    pd.concat([front, pd.DataFrame(values, columns=targets)], axis=1).to_csv(file, index=False)


_WRITERS = {".npz": _write_npz, ".npy": _write_npy, ".mat": _write_mat, ".csv": _write_csv}


def check_format(path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Refuse an ending that predictions cannot be written to; raises `RequestError`."""
    if path.suffix not in formats:
        what = "Predictions" if formats is FORMATS else "Predicted RDMs"
        raise RequestError(f"{what} are written as {', '.join(formats)}, not {path.name!r}.")


class Predictions(NamedTuple):
    """What a file of predictions holds.

    Parameters
    ----------
    ids : ndarray of str, shape (n_stimuli,)
    values : ndarray of shape (n_stimuli, n_targets), float32
    in_training : ndarray of bool, shape (n_stimuli,), or None where the file does not say
        Images that the model was fitted on.
    targets : list of str, length n_targets, or None where the file does not say
    """

    ids: np.ndarray
    values: np.ndarray
    in_training: np.ndarray | None
    targets: list[str] | None = None


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises
    ------
    RequestError
        Another ending, no such file, or no ids inside.
    """
    source = Path(path)
    if not source.is_file():
        raise RequestError(
            f"There is no run folder and no file {source}. `featpipe fit` makes the one, `featpipe predict` writes the "
            "other."
        )
    check_format(source)
    try:
        return _READERS[source.suffix](source)
    except _UNREADABLE as error:
        raise RequestError(
            f"{source} is not a file of predictions with ids inside ({error}). `featpipe predict` writes such files."
        ) from error


_UNREADABLE = (
    *(KeyError, ValueError, IndexError, EOFError, OSError),
    *(zipfile.BadZipFile, scipy.io.matlab.MatReadError, NotImplementedError),  # the last for MATLAB v7.3
)


def _read_npz(path: Path) -> Predictions:
    with np.load(path, allow_pickle=False) as data:
        seen = data[_SEEN].astype(bool) if _SEEN in data else None
        names = [str(name) for name in data["targets"]] if "targets" in data else None
        return Predictions(data["ids"], data["predictions"], seen, names)


def _read_npy(path: Path) -> Predictions:
    table = np.load(path, allow_pickle=False)
    seen = table[_SEEN] if _SEEN in (table.dtype.names or ()) else None
    return Predictions(table["id"], table["prediction"], seen)


def _read_mat(path: Path) -> Predictions:
    data = scipy.io.loadmat(path)
    seen = data[_SEEN].ravel().astype(bool) if _SEEN in data else None
    names = _texts(data["targets"]) if "targets" in data else None
    return Predictions(np.array(_texts(data["ids"])), data["predictions"], seen, names)


def _texts(cells: np.ndarray) -> list[str]:
    return ["".join(cell) for cell in cells.ravel()]


def _read_csv(path: Path) -> Predictions:
    table = pd.read_csv(path, dtype={"id": str})
    ids = table.pop("id").to_numpy(dtype=str)
    seen = table.pop(_SEEN).to_numpy(dtype=bool) if _SEEN in table else None
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)  # names may repeat
    names = [name for name in header.iloc[0] if name not in ("id", _SEEN)]
    return Predictions(ids, table.to_numpy(dtype=np.float32), seen, names)


_READERS = {".npz": _read_npz, ".npy": _read_npy, ".mat": _read_mat, ".csv": _read_csv}
