"""What an array is, as far as its own files still say so, whichever of them are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.errors import CacheCorrupt, FeatpipeError
from featpipe.spec import FeatureSpec, canonical_json
from featpipe.store._array import read_spec
from featpipe.store._commits import commit_path, committed_shards, read_commit
from featpipe.store._documents import LARGEST, parse_json
from featpipe.store._layout import FEATURES, ArrayLayout
from featpipe.store._plain_files import open_plain
from featpipe.store._static import FEATURES_METADATA, GROUP_METADATA, SPEC


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the files of an array say of it.

    Parameters
    ----------
    spec : FeatureSpec or None
        None where ``spec.json`` is damaged: nothing else holds it.
    stimuli_digest : str
        Empty without a spec.
    layout : ArrayLayout or None
        From the metadata of the features or of the group, whichever the commit records confirm.
    static : mapping of str to str
        SHA-256 of each static file, from the first commit record that is sound; empty without one.
    spec_problem : str
        What is wrong with ``spec.json``.
    """

    spec: FeatureSpec | None
    stimuli_digest: str
    layout: ArrayLayout | None
    static: Mapping[str, str]
    spec_problem: str = ""


def evidence_of(folder: Path) -> Evidence:
    """Read what is left of an array; raises nothing, whatever is damaged."""
    spec, digest, problem = spec_of(folder)
    layouts = [layout for layout in _layouts(folder) if spec is None or layout.dtype == spec.store_dtype]
    said = _said(folder, layouts)
    confirmed = (layout for layout in layouts if _digest_of(layout) == said.get(FEATURES_METADATA))
    layout = next(confirmed, layouts[0] if layouts else None)
    return Evidence(spec, digest, layout, said, problem)


def spec_of(folder: Path) -> tuple[FeatureSpec | None, str, str]:
    """Return the spec of an array, the digest of its stimulus set, and what is wrong where there is none."""
    try:
        with open_plain(folder / SPEC, LARGEST):
            return *read_spec(folder / SPEC, folder.name), ""
    except (FeatpipeError, OSError) as error:
        return None, "", reason(error)


def read_plain(path: Path, largest: int = LARGEST) -> bytes:
    """Read a plain file that is no larger than allowed; raises `CacheCorrupt` or `OSError`."""
    with open_plain(path, largest) as file:
        return file.read()


def reason(error: Exception) -> str:
    """Return what an error says, for the list of problems."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "it is not there"
    if isinstance(error, OSError) and not isinstance(error, FeatpipeError):
        return f"it cannot be read: {error.strerror or error}"
    return str(error)


def _layouts(folder: Path) -> Iterator[ArrayLayout]:
    """Yield what can be read of the metadata: those of the features, and their copy in the group."""
    for name in (FEATURES_METADATA, GROUP_METADATA):
        path = folder / name
        try:
            document = parse_json(path, read_plain(path))
            if name == GROUP_METADATA:
                document = document["consolidated_metadata"]["metadata"][FEATURES]
            yield ArrayLayout.parse(path, document)
        except (CacheCorrupt, OSError, KeyError, TypeError):
            continue  # which of the files are damaged is found by comparing them


def _said(folder: Path, layouts: Iterable[ArrayLayout]) -> Mapping[str, str]:
    """Return what the first sound commit record says of the static files."""
    for layout in layouts:
        for record in sound_commits(folder, layout):
            return {str(name): str(sha256) for name, sha256 in record["static"].items()}
    return {}


def sound_commits(folder: Path, layout: ArrayLayout) -> Iterator[dict[str, Any]]:
    """Yield the commit records that can be believed, by shard."""
    try:
        shards = sorted(committed_shards(folder, layout.n_shards))
    except OSError:
        return  # reported where the folder is listed
    for shard in shards:
        try:
            yield sound_commit(folder, shard, layout)
        except (FeatpipeError, OSError):
            continue  # reported with its shard


def sound_commit(folder: Path, shard: int, layout: ArrayLayout) -> dict[str, Any]:
    """Return the commit record of a shard, checked; raises `CacheCorrupt`, `RequestError` or `OSError`."""
    with open_plain(commit_path(folder, shard), LARGEST):
        return read_commit(folder, folder.name, shard, layout.rows_of(shard))


def _digest_of(layout: ArrayLayout) -> str:
    return hashlib.sha256(canonical_json(layout.features_metadata())).hexdigest()
