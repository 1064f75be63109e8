"""Objects on their way between processes: small ones as bytes, large ones through files that both sides see.

A scheduler stands between client and workers, and stalls on what is large. Arrays are written once for all tasks
of a call that share them, and are read through memory maps.
"""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import cloudpickle  # type: ignore[import-untyped]  # comes with dask; sends what a recipe's own file defines
import numpy as np

SMALL = 8 << 10  # bytes of an array, or of the rest of an object, that travel as they are: many go at a time


@dataclass(frozen=True)
class Parcel:
    """An object as bytes, or the name of the file that they are in."""

    content: bytes | None = None
    path: str = ""

    @classmethod
    def of(cls, content: bytes | memoryview, folder: Path) -> Self:
        """Return bytes as a parcel: in a file of the folder where there are many."""
        if len(content) <= SMALL:
            return cls(bytes(content))
        path = folder / f"{uuid4().hex}.pkl"
        path.write_bytes(content)
        return cls(path=str(path))

    @property
    def _bytes(self) -> bytes:
        return self.content if self.content is not None else Path(self.path).read_bytes()

    def opened(self) -> Any:
        """Return the object. Arrays in files of their own are maps that cannot be written to."""
        return _Unpickler(BytesIO(self._bytes)).load()

    def opened_once(self) -> Any:
        """Return the object and delete its file."""
        try:
            return self.opened()
        finally:
            if self.path:
                Path(self.path).unlink(missing_ok=True)


class Sender:
    """Packs what the tasks of one call are given.

    Parameters
    ----------
    folder : Path
        Seen by whoever opens the parcels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: dict[
            int, tuple[np.ndarray, str]
        ] = {}  # holds the arrays: an id is theirs while they live
        self._parcels: list[Parcel] = []
        self._lock = threading.Lock()

    def pack(self, value: Any) -> Parcel:
        """Return an object as a parcel; an array that was sent before is not written again."""
        stream = BytesIO()
        with self._lock:
            _Pickler(stream, self).dump(value)
            self._parcels.append(Parcel.of(stream.getbuffer(), self.folder))
            return self._parcels[-1]

    def file_of(self, array: np.ndarray) -> str:
        """Return the file of an array, written when first asked for."""
        if id(array) not in self._written:
            path = str(self.folder / f"{uuid4().hex}.npy")
            np.save(path, array, allow_pickle=False)
            self._written[id(array)] = array, path
        return self._written[id(array)][1]

    def forget(self) -> None:
        """Delete all files: nobody is going to open these parcels again."""
        with self._lock:
            paths = [path for _, path in self._written.values()]
            for path in [*paths, *(parcel.path for parcel in self._parcels if parcel.path)]:
                Path(path).unlink(missing_ok=True)
            self._written.clear()
            self._parcels.clear()


def pack_result(value: Any, folder: Path) -> Parcel:
    """Return what a task found as a parcel, without a second copy of its arrays in memory.

    Arrays follow the object in its file, and are read into memory of their own by `Parcel.opened_once`.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    if len(head) + sum(view.nbytes for view in views) <= SMALL:
        return Parcel(cloudpickle.dumps(value, protocol=5))
    path = folder / f"{uuid4().hex}.found"
    with path.open("wb") as file:
        pickle.dump((head, [view.nbytes for view in views]), file)
        for view in views:
            file.write(view)
    return FoundParcel(path=str(path))


@dataclass(frozen=True)
class FoundParcel(Parcel):
    """What a task found, as `pack_result` writes it."""

    def opened(self) -> Any:
        """Return the object, its arrays in memory of their own."""
        with open(self.path, "rb") as file:
            head, sizes = pickle.load(file)
            buffers = [bytearray(size) for size in sizes]
            for buffer in buffers:
                file.readinto(buffer)
        return pickle.loads(head, buffers=buffers)


class _Pickler(cloudpickle.Pickler):
    """Leaves large arrays out and says in which file they are."""

    def __init__(self, stream: BytesIO, sender: Sender) -> None:
        super().__init__(stream, protocol=5)
        self._sender = sender

    def persistent_id(self, value: Any) -> str | None:
        large = type(value) is np.ndarray and value.nbytes > SMALL and not value.dtype.hasobject
        return self._sender.file_of(value) if large else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, path: str) -> np.ndarray:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
