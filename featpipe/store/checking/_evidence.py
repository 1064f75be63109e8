"""What an array is, as far as its own files still say so, whichever of them are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from featpipe.errors import CacheReadError
from featpipe.spec import FeatureSpec, canonical_json
from featpipe.store._array import parse_spec
from featpipe.store._commits import COMMITS, check_commit, commit_name, committed_shards
from featpipe.store._documents import parse_json
from featpipe.store._layout import FEATURES, ArrayLayout
from featpipe.store._static import FEATURES_METADATA, GROUP_METADATA, SPEC
from featpipe.store.checking._plain_files import DAMAGE, read_plain, reason
from featpipe.store.location import Location


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
    unread : mapping of str to str
        Other files, by their names below the array's folder, that the system refused to read, and why.
    """

    spec: FeatureSpec | None
    stimuli_digest: str
    layout: ArrayLayout | None
    static: Mapping[str, str]
    spec_problem: str = ""
    unread: Mapping[str, str] = field(default_factory=dict)


def evidence_of(location: Location, base: str) -> Evidence:
    """Read what is left of the array in a folder, whatever of it is damaged."""
    unread: dict[str, str] = {}
    spec, digest, error = spec_of(location, base)
    found = _layouts(location, base, unread)
    layouts = [layout for layout in found if spec is None or layout.dtype == spec.store_dtype]
    said = _said(location, base, layouts, unread)
    confirmed = (layout for layout in layouts if _digest_of(layout) == said.get(FEATURES_METADATA))
    layout = next(confirmed, layouts[0] if layouts else None)
    return Evidence(spec, digest, layout, said, "" if error is None else reason(error), unread)


def spec_of(location: Location, base: str) -> tuple[FeatureSpec | None, str, Exception | None]:
    """Return the spec of an array, the digest of its stimulus set, and what is wrong where there is none."""
    name = f"{base}/{SPEC}"
    try:
        return *parse_spec(f"{location.url}/{name}", read_plain(location, name), key_of(base)), None
    except DAMAGE as error:
        return None, "", error


def key_of(base: str) -> str:
    """Return the key of the array in a folder."""
    return base.rpartition("/")[2]


def _layouts(location: Location, base: str, unread: dict[str, str]) -> Iterator[ArrayLayout]:
    """Yield what can be read of the metadata: those of the features, and their copy in the group."""
    for name in (FEATURES_METADATA, GROUP_METADATA):
        path = f"{location.url}/{base}/{name}"
        try:
            document = parse_json(path, read_plain(location, f"{base}/{name}"))
            if name == GROUP_METADATA:
                document = document["consolidated_metadata"]["metadata"][FEATURES]
            yield ArrayLayout.parse(path, document)
        except CacheReadError as error:
            unread[name] = reason(error)
        except (*DAMAGE, KeyError, TypeError):
            continue  # which of the files are damaged is found by comparing them


def _said(
    location: Location, base: str, layouts: Iterable[ArrayLayout], unread: dict[str, str]
) -> Mapping[str, str]:
    """Return what the first sound commit record says of the static files."""
    for layout in layouts:
        for record in sound_commits(location, base, layout, unread):
            return {str(name): str(sha256) for name, sha256 in record["static"].items()}
    return {}


def sound_commits(
    location: Location, base: str, layout: ArrayLayout, unread: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the commit records of an array that can be believed, by shard; put what cannot be read into `unread`."""
    unread = {} if unread is None else unread
    try:
        shards = sorted(committed_shards(location, base, layout.n_shards))
    except CacheReadError as error:
        unread[COMMITS] = f"it cannot be listed: {reason(error)}"
        return
    for shard in shards:
        try:
            yield sound_commit(location, base, shard, layout)
        except CacheReadError as error:
            unread[f"{COMMITS}/{shard}.json"] = reason(error)
        except DAMAGE:
            continue  # reported with its shard


def sound_commit(location: Location, base: str, shard: int, layout: ArrayLayout) -> dict[str, Any]:
    """Return the commit record of a shard, checked; raises one of `DAMAGE`."""
    name = commit_name(base, shard)
    path = f"{location.url}/{name}"
    record = parse_json(path, read_plain(location, name))
    check_commit(path, record, key_of(base), shard, layout.rows_of(shard))
    return record


def _digest_of(layout: ArrayLayout) -> str:
    return hashlib.sha256(canonical_json(layout.features_metadata())).hexdigest()
