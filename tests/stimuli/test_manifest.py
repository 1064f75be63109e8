from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from featpipe.errors import DuplicateIds, StimulusError
from featpipe.stimuli import StimulusManifest

MANIFEST = StimulusManifest(("a", "b/ü"), ("0" * 64, "f" * 64), name="set", source="set.zip")


def test_digest_is_pinned():
    """A change here orphans every cache on every disk: bump the format on purpose."""
    assert MANIFEST.digest == "ae99904fe6d11a931e1bf0297992edda4c1ef7b92c75146936626b16c60ea3e6"


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ("a", "c")},
        {"ids": ("b/ü", "a")},
        {"sha256": ("0" * 64, "e" * 64)},
        {"ids": ("a",), "sha256": ("0" * 64,)},
    ],
)
def test_ids_digests_and_order_change_the_digest(change):
    assert replace(MANIFEST, **change).digest != MANIFEST.digest


def test_name_and_source_do_not_change_the_digest():
    assert replace(MANIFEST, name="", source="elsewhere").digest == MANIFEST.digest


def test_json_and_pickle_give_it_back():
    assert MANIFEST.rows == {"a": 0, "b/ü": 1}
    assert StimulusManifest.from_json(json.loads(json.dumps(MANIFEST.to_json()))) == MANIFEST
    assert pickle.loads(pickle.dumps(MANIFEST)) == MANIFEST


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([], "exactly the fields images, name, source, got list"),
        ({"name": "", "images": []}, "exactly the fields"),
        ({**MANIFEST.to_json(), "more": 1}, "got images, more, name, source"),
        ({**MANIFEST.to_json(), "images": [["a"]]}, "pairs as images"),
        ({**MANIFEST.to_json(), "images": {"a": "0" * 64}}, "pairs as images"),
        ({**MANIFEST.to_json(), "name": None}, "text as name"),
        ({**MANIFEST.to_json(), "images": [[1, "0" * 64]]}, "non-empty Unicode text, got 1"),
        ({**MANIFEST.to_json(), "images": [["a", "0" * 63]]}, "64 lower-case hex digits"),
    ],
)
def test_a_foreign_manifest_is_refused(value, match):
    with pytest.raises(StimulusError, match=match):
        StimulusManifest.from_json(value)


def test_an_id_twice_is_refused():
    with pytest.raises(DuplicateIds, match="the id 'a'"):
        StimulusManifest(("a", "a"), ("0" * 64, "1" * 64))


def test_an_id_that_cannot_be_written_as_utf8_is_refused():
    with pytest.raises(StimulusError, match=r"Unicode text, got 'a\\udcff'"):
        StimulusManifest(("a\udcff",), ("0" * 64,))
