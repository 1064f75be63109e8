"""Predict the responses to new images with a saved run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.io

from featpipe.errors import RecipeError, RequestError
from featpipe.extraction import Means, Order, Progress
from featpipe.features import arrays_of
from featpipe.models import ModelRequest
from featpipe.runs._folder import RunFolder
from featpipe.spec import FeatureSpec, LayerRequest
from featpipe.stimuli import StimulusManifest, StimulusSet
from featpipe.store import FeatureCache

FORMATS = (".npz", ".npy", ".mat", ".csv")


def predict(
    run: RunFolder,
    stimuli: StimulusSet,
    *,
    cache: str | None = None,
    weights: str | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> np.ndarray:
    """Predict the responses to images; features that the cache lacks are extracted.

    Parameters
    ----------
    run : RunFolder
    stimuli : StimulusSet
    cache : str, optional
        Instead of the run's.
    weights : str, optional
        Where the weights are now, if they are not where they were; their digest must be the same.
    means, progress
        See `featpipe.extraction.extract`.
    trust : bool
        See `RunFolder.load_pipeline`.

    Returns
    -------
    ndarray of shape (n_stimuli, n_targets)

    Raises
    ------
    RecipeError
        The network that can be loaded now does not give the features that the run was fitted on.
    """
    record = run.read_json("run.json")
    pipeline = run.load_pipeline(trust=trust)
    where = str(cache or record["cache"])
    specs = [FeatureSpec.from_json(feature["spec"]) for feature in record["features"]]
    known = set_that_holds(specs, stimuli, where)
    if known is None:
        ensure_features(
            record["features"], stimuli, where, weights=weights, means=means, progress=progress, trust=trust
        )
    pipeline.set_params(features__cache=where, features__stimuli=known or stimuli.digest)
    return np.asarray(pipeline.predict(np.asarray(stimuli.ids)))


def set_that_holds(specs: Sequence[FeatureSpec], stimuli: StimulusSet, cache: str) -> str | None:
    """Return the digest of a cached set with rows of all these images under all specs, None if there is none.

    Part of a cached set, such as a dataset's test split, is then read without the network and its weights.
    """
    pools = [arrays_of(cache, spec, None) for spec in specs]
    complete = [{array.stimuli_digest: array for array in pool if array.complete} for pool in pools]
    for digest, array in complete[0].items():
        if all(digest in arrays for arrays in complete) and _has_images(array.manifest, stimuli):
            return digest
    return None


def set_to_read(stimuli: StimulusSet, cache: str) -> str:
    """Return the digest of the cached stimulus set to read these images from: their own, or one that has them all.

    Responses to some of the images of a folder need not be extracted apart from the folder.
    """
    store = FeatureCache(cache)
    if stimuli.digest in store.stimuli_digests():
        return stimuli.digest
    sets = {array.stimuli_digest: array.manifest for array in store.arrays()}
    return next((digest for digest in sets if _has_images(sets[digest], stimuli)), stimuli.digest)


def _has_images(manifest: StimulusManifest, stimuli: StimulusSet) -> bool:
    """Whether a set has all these images under these ids."""
    sha256 = dict(zip(manifest.ids, manifest.sha256, strict=True))
    return all(sha256.get(i) == sha for i, sha in zip(stimuli.ids, stimuli.sha256, strict=True))


def ensure_features(
    features: Sequence[Mapping[str, Any]],
    stimuli: StimulusSet,
    cache: str,
    *,
    weights: str | None,
    means: Means | None,
    progress: Progress | None,
    trust: bool,
) -> None:
    """Extract whatever of a run's features the cache lacks for a stimulus set."""
    store = FeatureCache(cache)
    specs = [FeatureSpec.from_json(feature["spec"]) for feature in features]
    if specs[0].preprocessing is None:
        _check_imported(specs, stimuli, cache)
        return
    keys = [spec.key(stimuli.digest) for spec in specs]
    there = set(store.keys())
    if all(key in there and store.array(key).complete for key in keys):
        return
    asked = str(features[0].get("model_asked") or specs[0].model)
    order = order_again(specs, asked, str(weights or features[0]["weights_asked"]), trust=trust)
    from featpipe.extraction import extract  # torch, only where something is extracted

    done = extract(order, stimuli, store, means=means, progress=progress)
    if not set(keys) <= set(done.keys):
        raise RecipeError(_difference(specs, [target.spec for target in done.targets]))


def _check_imported(specs: Sequence[FeatureSpec], stimuli: StimulusSet, cache: str) -> None:
    for spec in specs:
        held = {name for array in arrays_of(cache, spec, None) for name in array.manifest.ids}
        missing = [name for name in stimuli.ids if name not in held]
        if missing:
            raise RecipeError(
                f"{spec.model} was imported without {len(missing)} of these {len(stimuli)} stimuli, first "
                f"{missing[0]!r}, and cannot be computed for them. Import one array with the rows of all images "
                "(featpipe cache import) and fit on that."
            )


def order_again(specs: Sequence[FeatureSpec], asked: str, weights: str, *, trust: bool = False) -> Order:
    """Return the order that makes these features again, of the model by the name that was asked for."""
    spec = specs[0]
    prep = spec.preprocessing
    assert prep is not None, "imported arrays have no order"
    model = ModelRequest(
        model=asked,
        weights=weights or "default",
        model_args=spec.model_args,
        preprocess=prep.mode,
        mean=prep.mean,
        std=prep.std,
        image_size=prep.input_size,
        interpolation=prep.interpolation,
        trust=trust,
    )
    layers = tuple(LayerRequest(s.layer_label, s.reduction) for s in specs)
    return Order(model, layers, store_dtype=spec.store_dtype, precision=spec.precision)


def _difference(wanted: Sequence[FeatureSpec], got: Sequence[FeatureSpec]) -> str:
    ours, theirs = wanted[0].to_json(), got[0].to_json()
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return (
        f"The network that can be loaded now differs from the run's in {', '.join(differing)}: "
        f"{ {n: theirs.get(n) for n in differing} } instead of { {n: ours.get(n) for n in differing} }. "
        "Give the weights that the run was made with (--weights FILE)."
    )


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
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as file:
            _WRITERS[out.suffix](
                file, np.asarray(ids, dtype=str), np.asarray(targets, dtype=str), values, seen
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


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


def check_format(path: Path) -> None:
    """Refuse an ending that predictions cannot be written to; raises `RequestError`."""
    if path.suffix not in FORMATS:
        raise RequestError(f"Predictions are written as {', '.join(FORMATS)}, not {path.name!r}.")


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
    check_format(source)
    if not source.is_file():
        raise RequestError(
            f"There is no file {source}. Write one with `featpipe predict RUN --out {source.name}`."
        )
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
