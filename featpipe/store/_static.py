"""The files of an array that never change: what it is, whose rows it holds, and the zarr metadata."""

from __future__ import annotations

import struct
from typing import Any

from featpipe.errors import CacheCorrupt
from featpipe.spec import FeatureSpec, canonical_json
from featpipe.stimuli import StimulusManifest
from featpipe.store._layout import DIGESTS, FEATURES, GROUP, STIMULUS, ArrayLayout, array_metadata

SPEC = "spec.json"
FEATURES_METADATA = f"{GROUP}/{FEATURES}/zarr.json"
GROUP_METADATA = f"{GROUP}/zarr.json"
IDS_CHUNK = f"{GROUP}/{STIMULUS}/c/0"
DIGESTS_CHUNK = f"{GROUP}/{DIGESTS}/c/0/0"
STATIC_NAMES = (
    SPEC,
    GROUP_METADATA,
    FEATURES_METADATA,
    f"{GROUP}/{STIMULUS}/zarr.json",
    IDS_CHUNK,
    f"{GROUP}/{DIGESTS}/zarr.json",
    DIGESTS_CHUNK,
)


def static_files(spec: FeatureSpec, layout: ArrayLayout, manifest: StimulusManifest) -> dict[str, bytes]:
    """Return every static file by its path below the array's folder.

    They follow from the arguments alone, without time, host or version, so that racing creators write
    the same bytes.
    """
    return metadata_files(spec, layout, manifest.digest, len(manifest)) | {
        IDS_CHUNK: encode_ids(manifest.ids),
        DIGESTS_CHUNK: bytes.fromhex("".join(manifest.sha256)),
    }


def metadata_files(
    spec: FeatureSpec, layout: ArrayLayout, stimuli_digest: str, n_stimuli: int
) -> dict[str, bytes]:
    """Return the static files that are JSON, by path: all but the chunks of ids and digests."""
    nodes = {
        FEATURES: layout.features_metadata(),
        STIMULUS: _ids_metadata(n_stimuli),
        DIGESTS: _digests_metadata(n_stimuli),
    }
    files = {f"{GROUP}/{name}/zarr.json": canonical_json(node) for name, node in nodes.items()}
    return files | {
        SPEC: canonical_json(spec.document(stimuli_digest)),
        GROUP_METADATA: canonical_json(_group_metadata(nodes)),
    }


def encode_ids(ids: tuple[str, ...]) -> bytes:
    """Encode ids as zarr's ``vlen-utf8``: uint32 count, then each id's uint32 length and UTF-8."""
    texts = [name.encode() for name in ids]
    return struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)


def decode_ids(content: bytes, n_stimuli: int) -> tuple[str, ...]:
    """Decode what `encode_ids` wrote for so many stimuli; raises `CacheCorrupt`."""
    ids, at = [], 4
    length = struct.Struct("<I").unpack_from
    if content[:at] != struct.pack("<I", n_stimuli):
        found = int.from_bytes(content[:at], "little")
        raise CacheCorrupt(f"The chunk of stimulus ids has {found} of them, the array {n_stimuli} rows.")
    try:
        for _ in range(n_stimuli):
            start = at + 4
            at = start + length(content, at)[0]
            ids.append(content[start:at].decode())
    except (struct.error, UnicodeDecodeError) as error:
        raise CacheCorrupt(f"The chunk of stimulus ids cannot be decoded ({error}).") from error
    if at != len(content):
        raise CacheCorrupt(f"The chunk of stimulus ids should end after {at} bytes, it has {len(content)}.")
    return tuple(ids)


def _group_metadata(nodes: dict[str, Any]) -> dict[str, Any]:
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {},
        "consolidated_metadata": consolidated,
    }


def _ids_metadata(n_stimuli: int) -> dict[str, Any]:
    return array_metadata(
        (n_stimuli,),
        (n_stimuli,),
        ("stimulus",),
        data_type="string",
        fill_value="",
        codecs=[{"name": "vlen-utf8"}],
    )


def _digests_metadata(n_stimuli: int) -> dict[str, Any]:
    return array_metadata(
        (n_stimuli, 32),
        (n_stimuli, 32),
        ("stimulus", "byte"),
        data_type="uint8",
        fill_value=0,
        codecs=[{"name": "bytes"}],
    )
