"""The file of a saved training: tensors and JSON, no code, with a checksum over all that it holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError
from featpipe.files import written_whole

_FORMAT = 1
_KEY = "featpipe_training"
Tensors = dict[str, torch.Tensor]


@contextmanager
def one_at_a_time(path: Path | None) -> Iterator[None]:
    """Let one training use a file; the same one in another thread or process waits, and finds it finished.

    Raises
    ------
    CacheWriteError
        Nothing can be written there.
    """
    if path is None:
        yield
        return
    with _claimed(path.with_name(f".{path.name}.claim")) as claim:
        try:
            yield
        finally:
            Path(claim.name).unlink(missing_ok=True)


def _claimed(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("w")
            fcntl.flock(file, fcntl.LOCK_EX)  # whoever is killed lets go of it
            if _is(file, path):
                return file
            file.close()  # who had it has removed it
    except OSError as error:
        raise CacheWriteError(
            f"A training cannot be saved in {path.parent}: {error}. Give a folder that can be written."
        ) from error


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write(path: Path, about: Mapping[str, Any], tensors: Tensors) -> None:
    """Write tensors and what is said about them; the file appears whole or not at all."""
    text = json.dumps({"format": _FORMAT, **about})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as file:
        save_file(tensors, file.name, metadata={_KEY: text, "crc32c": _checksum(text, tensors)})
        with open(file.name, "rb") as written:
            os.fsync(written.fileno())  # its bytes are on the disk before its name is


def read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Return what is said about the tensors of a file, and the tensors, on the CPU.

    Raises
    ------
    RequestError
        Another kind of file, or another format of it.
    CacheCorrupt
        It is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CacheCorrupt(
            f"{path} cannot be read as a saved training ({error}): it is damaged, or another file. Delete it to begin "
            "anew, or name another."
        ) from error
    if _KEY not in metadata:
        raise RequestError(f"{path} is no saved training, but other tensors. Name another file.")
    if metadata.get("crc32c") != _checksum(metadata[_KEY], tensors):
        raise CacheCorrupt(
            f"{path} is damaged: its bytes are not those that were written. Delete it to begin anew."
        )
    about = json.loads(metadata[_KEY])
    if about["format"] != _FORMAT:
        raise RequestError(
            f"{path} was saved in format {about['format']}; this version reads {_FORMAT}. Delete it to begin anew."
        )
    return about, tensors


def _checksum(text: str, tensors: Tensors) -> str:
    checksum = google_crc32c.value(text.encode())
    for name in sorted(tensors):
        checksum = google_crc32c.extend(checksum, name.encode())
        checksum = google_crc32c.extend(checksum, _bytes(tensors[name]))
    return f"{checksum:08x}"


def digest(values: Any) -> str:
    """Return type, shape and a digest of an array or tensor; "none" for none."""
    if values is None:
        return "none"
    tensor = torch.as_tensor(values).detach().cpu()
    code = hashlib.blake2b(_bytes(tensor), digest_size=8).hexdigest()
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {code}"


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the bytes of a tensor without a copy, where it lies in one piece."""
    flat = tensor.contiguous().reshape(-1)
    if not flat.numel():
        return b""
    view = flat.view(torch.uint8).numpy()
    view.flags.writeable = False  # the checksum takes nothing else
    return view


def sweep(path: Path) -> None:
    """Remove what writers that were killed have left."""
    for there in path.parent.iterdir():
        if there.name.startswith(f".{path.name}.") and there.name.endswith(".part"):
            there.unlink(missing_ok=True)
