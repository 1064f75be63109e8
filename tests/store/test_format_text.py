"""cache/README.md is what the code does."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from featpipe.spec import FeatureSpec, canonical_json
from featpipe.stimuli import StimulusManifest
from featpipe.store import CODECS
from featpipe.store._commits import _FIELDS

TEXT = (Path(__file__).resolve().parents[2] / "cache" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def examples():
    """The JSON texts of the page and the digests given for them."""
    texts = re.findall(r"```json\n(.+?)\n```", TEXT)
    digests = re.findall(r"(?:it is|has the key) `([0-9a-f]{64})`", TEXT)
    assert len(texts) == len(digests) == 2
    return list(zip(texts, digests, strict=True))


def test_the_worked_digests_are_the_hash_of_the_text(examples):
    """By nothing but SHA-256: a change here orphans every cache on every disk."""
    for text, digest in examples:
        assert hashlib.sha256(text.encode()).hexdigest() == digest
        assert canonical_json(json.loads(text)).decode() == text


def test_the_worked_key_is_ours(examples):
    (pairs, stimuli), (text, key) = examples
    ids, digests = zip(*json.loads(pairs), strict=True)
    assert StimulusManifest(ids, digests).digest == stimuli
    document = json.loads(text)
    given = {name: value for name, value in document.items() if name not in ("format", "stimuli")}
    spec = FeatureSpec.from_json(given)
    assert spec.document(stimuli) == document
    assert spec.key(stimuli) == key


def test_every_field_and_codec_is_described(tiny_cache):
    array, _ = tiny_cache
    stimuli = json.loads((array.root / "stimuli" / array.stimuli_digest / "stimuli.json").read_bytes())
    names = {field.name for field in fields(FeatureSpec)} | set(_FIELDS) | set(stimuli) | set(CODECS)
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []


def test_every_file_is_described(tiny_cache):
    array, _ = tiny_cache
    for path in array.root.rglob("*.json"):
        assert path.name in TEXT or path.parent.name == "commits"
