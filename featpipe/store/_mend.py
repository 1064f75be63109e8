"""Files of a cache that follow from others, made again where they are damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featpipe.errors import CacheCorrupt, FeatpipeError, StimulusError
from featpipe.spec import FORMAT
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import CachedArray
from featpipe.store._documents import LARGEST_STIMULI, with_checksum
from featpipe.store._evidence import evidence_of, read_plain, sound_commits, spec_of
from featpipe.store._layout import ArrayLayout
from featpipe.store._publish import publish_file, set_aside
from featpipe.store._static import DIGESTS_CHUNK, IDS_CHUNK, STATIC_NAMES, decode_ids, static_files
from featpipe.store._stimuli import FILE, load_stimuli
from featpipe.store._strangers import FOLDERS
from featpipe.store._verify import DIGEST, Problem


@dataclass
class Mended:
    """What was done about damaged files: paths below the cache's folder."""

    rewritten: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # each with the reason and what to do


def mend_files(root: Path, problems: Iterable[Problem], known: Sequence[StimulusManifest] = ()) -> Mended:
    """Write damaged files again where others say what they were, and move what is foreign to ``CACHE/aside``.

    Nothing is deleted. Shards and their commits are left alone, see `FeatureCache.set_aside`.

    Parameters
    ----------
    root : Path
        The cache's folder.
    problems : iterable of Problem
    known : sequence of StimulusManifest
        Of images at hand; used only where their digest is that of a damaged set.
    """
    mended = Mended()
    of_files = [problem for problem in problems if problem.shard is None]
    for problem in sorted(of_files, key=lambda p: not p.file.startswith("stimuli/")):  # sets first
        try:
            _mend(root, problem, known, mended)
        except (FeatpipeError, OSError) as error:
            mended.left.append(f"{problem.file}: {error}")
    return mended


def _mend(root: Path, problem: Problem, known: Sequence[StimulusManifest], mended: Mended) -> None:
    place, key, *rest = problem.file.split("/", 2)
    name = rest[0] if rest else ""
    if place == "stimuli" and DIGEST.fullmatch(key) and name == FILE:
        content = _set_content(root, key, known)
    elif place == "arrays" and DIGEST.fullmatch(key) and name in STATIC_NAMES:
        array = recovered_array(root, key, known)
        content = static_files(array.spec, array.layout, array.manifest)[name]
    elif name in FOLDERS and os.path.isdir(root / problem.file) and not os.path.islink(root / problem.file):
        raise CacheCorrupt(f"{problem.what}. Ask its owner for permission to read it")
    elif name or not DIGEST.fullmatch(key):
        _move(root, problem.file, mended)
        return
    else:
        raise CacheCorrupt(f"{problem.what}. Put the folder itself there, or remove it")
    set_aside(root, root / problem.file, f"{key}-{Path(name).name}")
    publish_file(root, root / problem.file, content)
    mended.rewritten.append(problem.file)


def _move(root: Path, file: str, mended: Mended) -> None:
    set_aside(root, root / file, file.replace("/", "-")[-200:])
    mended.moved.append(file)


def recovered_array(root: Path, key: str, known: Sequence[StimulusManifest] = ()) -> CachedArray:
    """Open an array some of whose files may be damaged, by what the others say.

    Raises
    ------
    CacheCorrupt
        What it is cannot be known any more.
    """
    folder = root / "arrays" / key
    evidence = evidence_of(folder)
    advice = (
        f"Nothing else says what it was: remove the array with `featpipe cache rm {key}` and extract it again"
    )
    if evidence.spec is None:
        raise CacheCorrupt(f"spec.json is damaged ({evidence.spec_problem}). {advice}")
    if evidence.layout is None:
        raise CacheCorrupt(f"the metadata of the features and their copy in the group are damaged. {advice}")
    manifest = recovered_manifest(root, evidence.stimuli_digest, known)
    return CachedArray(
        key, evidence.spec, evidence.stimuli_digest, evidence.layout, folder, lambda digest: manifest
    )


def recovered_manifest(root: Path, digest: str, known: Sequence[StimulusManifest] = ()) -> StimulusManifest:
    """Return a stimulus set from its file, from an array of it, or from images at hand; raises `CacheCorrupt`."""
    try:
        return load_stimuli(root / "stimuli" / digest, thorough=True).manifest
    except (FeatpipeError, OSError):
        pass
    for manifest in (*known, *_manifests_of_arrays(root, digest)):
        if manifest.digest == digest:
            return manifest
    raise CacheCorrupt(
        f"stimulus set {digest[:12]} is damaged, and no array of it holds its ids and image digests. Name its "
        "images with --images"
    )


def _set_content(root: Path, digest: str, known: Sequence[StimulusManifest]) -> bytes:
    """Return what ``stimuli.json`` of a set must be; name and source, which are for people, as far as known."""
    manifest = recovered_manifest(root, digest, known)
    layouts = (layout for _, layout in _arrays_of(root, digest))
    if (layout := next(layouts, None)) is None:
        raise CacheCorrupt(
            f"no array of stimulus set {digest[:12]} is left, so nothing needs it; move it away"
        )
    shown = _shown(root / "stimuli" / digest / FILE)
    manifest = replace(
        manifest, name=shown.get("name", manifest.name), source=shown.get("source", manifest.source)
    )
    return with_checksum({"format": FORMAT, "shard_rows": layout.shard_rows, **manifest.to_json()})


def _shown(path: Path) -> dict[str, str]:
    """Return name and source from a damaged file that can still be parsed."""
    try:
        said = json.loads(read_plain(path, LARGEST_STIMULI))
        return {name: said[name] for name in ("name", "source") if isinstance(said[name], str)}
    except (FeatpipeError, OSError, ValueError, RecursionError, KeyError, TypeError):
        return {}


def _arrays_of(root: Path, digest: str) -> Iterator[tuple[Path, ArrayLayout]]:
    """Yield the arrays of a stimulus set whose spec and layout can be read."""
    arrays = root / "arrays"
    for folder in sorted(arrays.iterdir()) if arrays.is_dir() else ():
        ours = DIGEST.fullmatch(folder.name) and spec_of(folder)[1] == digest
        if ours and (layout := evidence_of(folder).layout) is not None:
            yield folder, layout


def _manifests_of_arrays(root: Path, digest: str) -> Iterator[StimulusManifest]:
    """Yield what the arrays of a set hold of ids and image digests, right or wrong."""
    for folder, layout in _arrays_of(root, digest):
        try:
            ids = decode_ids(read_plain(folder / IDS_CHUNK, LARGEST_STIMULI))
            raw = read_plain(folder / DIGESTS_CHUNK, LARGEST_STIMULI)
            sha256 = tuple(raw[at : at + 32].hex() for at in range(0, len(raw), 32))
            source = next((c["provenance"].get("source") for c in sound_commits(folder, layout)), "")
            yield StimulusManifest(ids, sha256, source=str(source or ""))
        except (FeatpipeError, StimulusError, OSError):
            continue  # the next array may do
