"""Predicted RDMs under the names of the Algonauts 2019 challenge, and its submissions."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from featpipe.errors import DatasetError, RequestError
from featpipe.files import written_whole
from featpipe.memory import available_memory
from featpipe.rsa._arrays import read_arrays
from featpipe.rsa._exchange import save_mat, write_arrays
from featpipe.rsa._rdms import RDMs

# The challenge's variables, by what we call the targets
CHALLENGE_VARIABLES = {
    "EVC": "EVC_RDMs",
    "IT": "IT_RDMs",
    "MEG-early": "MEG_RDMs_early",
    "MEG-late": "MEG_RDMs_late",
}
TRACKS = {"fmri": ("EVC", "IT"), "meg": ("MEG-early", "MEG-late")}
_TARGETS = {variable: target for target, variable in CHALLENGE_VARIABLES.items()}
_ROUNDING = 1e-6  # asymmetry and diagonal of a computed RDM, as a part of its largest dissimilarity


class ChallengeRDMs(NamedTuple):
    """What a file of predicted RDMs holds.

    Parameters
    ----------
    rdms : dict of str to ndarray of shape (n_stimuli, n_stimuli), float64
        By target, such as ``EVC``.
    ids : ndarray of str, shape (n_stimuli,), or None where the file does not say
        Official submissions do not; their rows follow the sorted names of the images.
    in_training : ndarray of bool, shape (n_stimuli,), or None where the file does not say
        Images that the model was fitted on.
    """

    rdms: dict[str, np.ndarray]
    ids: np.ndarray | None
    in_training: np.ndarray | None


def challenge_variable(target: str) -> str:
    """Return the name of a target's variable: the challenge's own, or ``NAME_RDMs`` as MATLAB can read it."""
    if target in CHALLENGE_VARIABLES:
        return CHALLENGE_VARIABLES[target]
    name = re.sub(r"\W", "_", f"{target}_RDMs" if target else "RDMs", flags=re.ASCII)
    return name if re.match("[A-Za-z]", name) else f"x{name}"


def write_challenge_rdms(
    path: str | Path,
    rdms: Mapping[str, np.ndarray | RDMs],
    ids: Sequence[str] | np.ndarray | None = None,
    *,
    in_training: np.ndarray | None = None,
) -> None:
    """Write one predicted RDM per target under the challenge's names, whole or not at all.

    Parameters
    ----------
    path : path
        ``.npz``, or ``.mat`` (MATLAB v5).
    rdms : mapping of str to array of shape (n_stimuli, n_stimuli), or to RDMs with one RDM
        By target (``EVC``) or variable (``EVC_RDMs``).
    ids : sequence of str, length n_stimuli, optional
        By default those of the first `RDMs`.
    in_training : array of bool, shape (n_stimuli,), optional
        Images that the model was fitted on: whoever scores refuses them.

    Raises
    ------
    RequestError
        Another ending, matrices that are no RDMs of one size, or two targets that go by one variable.
    """
    matrices = {target_of_variable(name): _matrix(value, str(name)) for name, value in rdms.items()}
    if not matrices:
        raise RequestError("There is no RDM to write; give at least one target.")
    if ids is None:
        ids = next((value.ids for value in rdms.values() if isinstance(value, RDMs)), None)
    arrays = {challenge_variable(target): matrix for target, matrix in matrices.items()}
    if len(arrays) < len(matrices):
        raise RequestError(
            f"Some of the targets {', '.join(matrices)} would have one name in the file; rename them."
        )
    n_stimuli = _one_size(matrices)
    arrays["targets"] = np.array(list(matrices), dtype=str)
    if ids is not None:
        arrays["ids"] = _per_stimulus(np.asarray(ids, dtype=str), "ids", n_stimuli)
    if in_training is not None:
        arrays["in_training"] = _per_stimulus(np.asarray(in_training, dtype=bool), "in_training", n_stimuli)
    write_arrays(path, arrays)


def read_challenge_rdms(path: str | Path) -> ChallengeRDMs:
    """Read one RDM per target: what `write_challenge_rdms` wrote, or a submission to the challenge.

    Parameters
    ----------
    path : path
        ``.npz``, ``.mat`` (v5 or v7.3), or a ``.zip`` with such files inside.

    Raises
    ------
    DatasetError
        The file is missing or damaged, or holds no RDMs, one per target, of one size.
    """
    path = Path(path)
    arrays = _read_zip(path) if path.suffix.lower() == ".zip" else read_arrays(path)
    names = arrays["targets"].ravel().tolist() if "targets" in arrays else None
    variables = (
        {name: challenge_variable(name) for name in names}
        if names is not None
        else {target_of_variable(name): name for name in arrays if name in _TARGETS or name.endswith("_RDMs")}
    )
    if not variables or any(name not in arrays for name in variables.values()):
        raise DatasetError(
            f"{str(path)!r} holds {', '.join(arrays) or 'no array'} and no predicted RDMs. They are called "
            f"{', '.join(_TARGETS)}, or NAME_RDMs for another target."
        )
    try:
        matrices = {target: _matrix(arrays[name], name) for target, name in variables.items()}
        n_stimuli = _one_size(matrices)
        per_stimulus = {
            name: _per_stimulus(arrays[name].ravel(), name, n_stimuli)
            for name in ("ids", "in_training")
            if name in arrays
        }
    except RequestError as error:
        raise DatasetError(f"{str(path)!r} cannot be used: {error}") from error
    seen = per_stimulus.get("in_training")
    return ChallengeRDMs(matrices, per_stimulus.get("ids"), None if seen is None else seen.astype(bool))


def write_submission(path: str | Path, track: str, rdms: Mapping[str, np.ndarray | RDMs]) -> None:
    """Write a submission to one track of the challenge: ``submit_TRACK.mat`` in a ``.zip``.

    Parameters
    ----------
    path : path
        The challenge expects it to be called ``submit_fmri.zip`` or ``submit_meg.zip``.
    track : {"fmri", "meg"}
    rdms : mapping of str to array of shape (n_stimuli, n_stimuli), or to RDMs with one RDM
        Both targets of the track, by target (``EVC``) or variable (``EVC_RDMs``), rows in the sorted order of
        the images' names. Symmetric with a zero diagonal up to rounding, which is removed.

    Raises
    ------
    RequestError
        An unknown track, a target too few or too many, or a matrix that is no finite RDM.
    """
    if track not in TRACKS:
        raise RequestError(f"The challenge has the tracks {' and '.join(TRACKS)}, not {track!r}.")
    out = Path(path)
    if out.suffix != ".zip":
        raise RequestError(f"A submission is a .zip, such as submit_{track}.zip, not {out.name!r}.")
    matrices = {target_of_variable(name): _matrix(value, str(name)) for name, value in rdms.items()}
    if set(matrices) != set(TRACKS[track]):
        raise RequestError(
            f"Track {track} takes exactly the targets {' and '.join(TRACKS[track])}, got "
            f"{', '.join(matrices) or 'none'}."
        )
    _one_size(matrices)
    arrays = {CHALLENGE_VARIABLES[target]: _exact(matrices[target], target) for target in TRACKS[track]}
    buffer = BytesIO()  # a member of an archive cannot be sought in, which savemat wants
    save_mat(buffer, arrays)
    with written_whole(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(f"submit_{track}.mat")  # without a date: the same RDMs, the same bytes
        member.external_attr = 0o644 << 16
        archive.writestr(member, buffer.getvalue())


def target_of_variable(name: str) -> str:
    """Return the target of a variable: ``EVC`` of ``EVC_RDMs``; a target's name stays."""
    return _TARGETS.get(name) or str(name).removesuffix("_RDMs")


def _matrix(value: Any, name: str) -> np.ndarray:
    """Return one RDM as float64 of shape (n_stimuli, n_stimuli)."""
    matrix = value.values if isinstance(value, RDMs) else np.asarray(value)
    matrix = matrix[0] if matrix.ndim == 3 and len(matrix) == 1 else matrix
    if (
        matrix.dtype.kind not in "fiu"
        or matrix.ndim != 2
        or matrix.shape[0] != matrix.shape[1]
        or not matrix.size
    ):
        raise RequestError(
            f"{name} is {matrix.dtype} of shape {matrix.shape}; numbers of shape (n_stimuli, n_stimuli) are needed, "
            "one RDM per target."
        )
    return matrix.astype(np.float64)


def _one_size(matrices: Mapping[str, np.ndarray]) -> int:
    sizes = {target: len(matrix) for target, matrix in matrices.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{target} of {size}" for target, size in sizes.items())
        raise RequestError(
            f"The RDMs are of different numbers of stimuli: {shown}. All must be of the same images."
        )
    return next(iter(sizes.values()))


def _per_stimulus(values: np.ndarray, name: str, n_stimuli: int) -> np.ndarray:
    if values.shape != (n_stimuli,):
        raise RequestError(
            f"There are {values.size} {name} for RDMs of {n_stimuli} stimuli; one each is needed."
        )
    return values


def _exact(matrix: np.ndarray, target: str) -> np.ndarray:
    """Return a matrix that is symmetric with a zero diagonal to the last bit; refuse what is not nearly so."""
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise RequestError(
            f"The RDM of {target} holds {matrix[row, column]} for the pair {row}, {column}; a submission gives every "
            "pair a finite value."
        )
    tolerance = _ROUNDING * np.abs(matrix).max()
    for what, error in (
        ("is not symmetric", np.abs(matrix - matrix.T).max()),
        ("has a diagonal that is not zero", np.abs(np.diagonal(matrix)).max()),
    ):
        if error > tolerance:
            raise RequestError(
                f"The RDM of {target} {what} (by {error:g}); dissimilarities are symmetric, and 0 of an image with "
                "itself. Predictions of similarities become dissimilarities as 1 - r."
            )
    exact = (matrix + matrix.T) / 2
    np.fill_diagonal(exact, 0)
    return exact


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of all files in an archive together."""
    if not path.is_file():
        raise DatasetError(f"There is no file {str(path)!r}.")
    try:
        with zipfile.ZipFile(path) as archive, TemporaryDirectory() as folder:
            arrays: dict[str, np.ndarray] = {}
            for number, member in enumerate(_members(archive, path)):
                file = Path(folder) / f"{number}{Path(member.filename).suffix}"
                file.write_bytes(archive.read(member))
                arrays |= _read_member(file, member.filename, path)
            return arrays
    except DatasetError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DatasetError(
            f"{str(path)!r} cannot be read as a .zip ({error}). It may be truncated."
        ) from error


def _read_member(file: Path, name: str, path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(file)
    except DatasetError as error:  # names a temporary file
        raise DatasetError(
            f"{name!r} inside {str(path)!r} cannot be read as {file.suffix}. It may be truncated: write it again."
        ) from error


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    members = [
        member
        for member in archive.infolist()
        if Path(member.filename).suffix.lower() in (".mat", ".npz") and "__MACOSX" not in member.filename
    ]
    if not members:
        raise DatasetError(
            f"{str(path)!r} holds no .mat file, only {', '.join(archive.namelist()[:5]) or 'nothing'}. A submission "
            "has submit_fmri.mat or submit_meg.mat inside."
        )
    if (needed := sum(member.file_size for member in members)) > (free := available_memory()):
        raise DatasetError(
            f"{str(path)!r} would unpack to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free."
        )
    return members
