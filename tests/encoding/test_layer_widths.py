"""Where layers lie in a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.encoding._layers import layer_widths
from featpipe.errors import RequestError


@pytest.mark.parametrize("widths", [[7, -1], [6, 0], [2.5, 3.5], "33", 6.0])
def test_widths_that_are_no_numbers_of_columns_are_named(widths):
    with pytest.raises(RequestError, match="at least 1 a layer, got"):
        layer_widths(np.zeros((4, 6)), widths)


def test_widths_add_up_to_the_matrix():
    assert layer_widths(np.zeros((4, 6)), np.array([2, 4])) == (2, 4)
    with pytest.raises(RequestError, match="add up to 7 features, but X has 6"):
        layer_widths(np.zeros((4, 6)), [3, 4])
