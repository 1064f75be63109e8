from __future__ import annotations

import pytest

from featpipe.errors import LayerNotFound, SpecError
from featpipe.models import match_layers
from featpipe.spec import LayerRequest

NAMES = [
    "stem",
    "blocks",
    "blocks.0",
    "blocks.0.conv",
    "blocks.1",
    "blocks.1.conv",
    "blocks.10",
    "head",
    "output",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.0", ["blocks.0"]),
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.10"]),
        ("blocks.**", ["blocks.0", "blocks.0.conv", "blocks.1", "blocks.1.conv", "blocks.10"]),
        ("blocks.[1-6]", ["blocks.1"]),
        ("blocks.[!0]", ["blocks.1"]),
        ("blocks.1?", ["blocks.10"]),
        ("**.conv", ["blocks.0.conv", "blocks.1.conv"]),
        ("*", ["stem", "blocks", "head", "output"]),
        ("output", ["output"]),
    ],
)
def test_globs_know_dotted_parts_and_keep_network_order(pattern, expected):
    assert [layer for layer, _, _ in match_layers(LayerRequest(pattern), NAMES)] == expected


def test_call_and_element_go_with_every_match():
    assert match_layers(LayerRequest("blocks.[01]@2/1"), NAMES) == [
        ("blocks.0", 2, "1"),
        ("blocks.1", 2, "1"),
    ]


def test_a_name_that_matches_nothing_gives_the_closest():
    with pytest.raises(LayerNotFound, match=r"No layer matches 'block\.0'.*blocks\.0"):
        match_layers(LayerRequest("block.0"), NAMES)


def test_a_call_that_is_no_number_is_refused():
    with pytest.raises(SpecError, match="must be a number from 0, got 'last'"):
        match_layers(LayerRequest("stem@last"), NAMES)
