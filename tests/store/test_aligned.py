"""Memory for rows begins at a page."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.store._aligned import aligned_empty


@pytest.mark.parametrize("shape", [(5,), (300, 7, 3), (0, 4), (2, 0), (4096, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_an_array_of_any_shape_begins_at_a_page(shape, dtype):
    made = aligned_empty(shape, np.dtype(dtype))
    assert (made.shape, made.dtype) == (shape, dtype)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert not made.size or made.ctypes.data % 4096 == 0


def test_what_no_memory_holds_is_refused_as_numpy_does():
    with pytest.raises((MemoryError, ValueError)):
        aligned_empty((1 << 60, 8), np.dtype("float32"))
