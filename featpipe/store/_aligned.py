"""Memory that files are read into quickly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_PAGE = 4096


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return a new C-contiguous array that begins at a page of memory; its content is arbitrary.

    Large arrays of `numpy.empty` begin 16 bytes behind one. The kernel copies a page of a file there three times as
    slowly: each load then has the low address bits of a store just before it, and waits for it ("4K aliasing").

    Raises
    ------
    MemoryError, ValueError
        As `numpy.empty`.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + size].view(dtype).reshape(shape)
