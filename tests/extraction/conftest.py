"""What tests of checked and repaired rows share."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from featpipe.spec import canonical_json, digest_of
from featpipe.store import seal_again


@pytest.fixture
def impatient_disk(monkeypatch):
    """Skip forcing bytes to disk, where nothing is looked at after a crash."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def _committed_again(array, shard, change):
    """Change rows of a shard and commit them as if they had been computed so."""
    path = array.shard_path(shard)
    rows = array.read()[array.layout.rows_of(shard).start : array.layout.rows_of(shard).stop]
    content = bytearray(path.read_bytes())
    content[: rows.nbytes] = np.ascontiguousarray(change(rows)).tobytes()
    path.write_bytes(content)
    commit = array.folder / f"commits/{shard}.json"
    record = json.loads(commit.read_bytes()) | {"sha256": hashlib.sha256(content).hexdigest()}
    record.pop("checksum")
    commit.write_bytes(canonical_json(record | {"checksum": digest_of(record)}))
    (array.folder / "sealed.json").unlink()
    seal_again(array.location, [array.key])


@pytest.fixture
def committed_again():
    """Change rows in a cache in a way that no checksum shows."""
    return _committed_again
