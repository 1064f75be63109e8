"""Read a dict int → name that was saved as a pickled ``.npy``, without letting the pickle run anything.

The challenge ships the names of its regions that way. The unpickler below rebuilds one array of Python
objects and plain numbers; every other name in the pickle is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import DatasetError

_MOST_BYTES = 1 << 20
_NDARRAY = object()  # stands for numpy.ndarray, which a pickle could otherwise call with any shape


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what numpy writes for an object array of dicts, ints and strings, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        home = module.replace("numpy._core", "numpy.core")  # numpy 2 moved it
        admitted: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _dtype,
        }
        if (home, name) not in admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return admitted[home, name]


def _empty_array(kind: object, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    if kind is not _NDARRAY or shape != (0,):  # numpy always starts from an empty array
        raise pickle.UnpicklingError("it builds something other than an array")
    return np.ndarray((0,), dtype="b")


def _dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype:
    if code.lstrip("<>|=") not in ("O8", "O4", "O", "i8", "i4", "i2", "i1", "u1"):
        raise pickle.UnpicklingError(f"it holds values of type {code}")
    return np.dtype(code)


def _scalar(dtype: np.dtype, data: bytes) -> int:
    if dtype.kind not in "iu":
        raise pickle.UnpicklingError(f"it holds a value of type {dtype}")
    return int(np.frombuffer(data, dtype=dtype, count=1)[0])


def read_mapping(path: Path) -> dict[int, str]:
    """Read a ``mapping_*.npy`` file of the challenge.

    Raises
    ------
    DatasetError
        When the file is no dict of int to str, or its pickle asks for anything but arrays; nothing that
        the pickle names is then imported or called.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise DatasetError(f"{path.name!r} has {path.stat().st_size} bytes, too many for names of regions.")
    try:
        value = _unpickled(path.read_bytes())
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, LookupError, AttributeError) as error:
        raise DatasetError(
            f"{str(path)!r} is no mapping of the challenge ({error}), and was not loaded. It should hold a "
            "dict of int to region name, saved with numpy.save; download it again."
        ) from error
    if not isinstance(value, dict) or not all(
        isinstance(key, int) and isinstance(name, str) for key, name in value.items()
    ):
        raise DatasetError(f"{str(path)!r} holds {type(value).__name__}; a dict of int to name is needed.")
    return value


def _unpickled(data: bytes) -> Any:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(file)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"an array of {dtype} and shape {shape}")
    array = _ArrayUnpickler(file).load()
    if not isinstance(array, np.ndarray) or array.shape != ():
        raise ValueError(f"a pickled {type(array).__name__}")
    return array.item()
