"""Files of a cache that follow from others, made again where they are damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError, StimulusError
from featpipe.spec import FORMAT, HEX_DIGEST
from featpipe.stimuli import StimulusManifest
from featpipe.store._array import ARRAYS, CachedArray, array_folder
from featpipe.store._documents import LARGEST_STIMULI, with_checksum
from featpipe.store._layout import ArrayLayout
from featpipe.store._seal import SEAL
from featpipe.store._static import DIGESTS_CHUNK, IDS_CHUNK, STATIC_NAMES, decode_ids, static_files
from featpipe.store._stimuli import FILE, STIMULI, load_stimuli, stimuli_folder
from featpipe.store._writer import seal_array
from featpipe.store.checking._evidence import evidence_of, sound_commits, spec_of
from featpipe.store.checking._plain_files import DAMAGE, read_plain
from featpipe.store.checking._set_check import check_set
from featpipe.store.checking._strangers import AND_MORE, FOLDERS
from featpipe.store.checking._verify import Problem
from featpipe.store.location import Folder, Location


@dataclass
class Mended:
    """What was done about damaged files: paths below the cache's folder."""

    rewritten: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # each with the reason and what to do


def mend_files(
    location: Location, problems: Iterable[Problem], known: Sequence[StimulusManifest] = ()
) -> Mended:
    """Write damaged files again where others say what they were, and move what is foreign to ``CACHE/aside``.

    Nothing is deleted. Shards and their commits are left alone, see `FeatureCache.set_aside`. A damaged seal is
    moved away like something foreign; `seal_again` makes another once all shards are there.

    Parameters
    ----------
    location : Location
        The cache itself, not a mirror of it.
    problems : iterable of Problem
    known : sequence of StimulusManifest
        Of images at hand; used only where their digest is that of a damaged set.
    """
    mended = Mended()
    of_files = [problem for problem in problems if problem.shard is None]
    for problem in sorted(of_files, key=lambda p: not p.file.startswith("stimuli/")):  # sets first
        try:
            _mend(location, problem, known, mended)
        except (*DAMAGE, CacheWriteError) as error:
            mended.left.append(f"{problem.file}: {error}")
    return mended


def _mend(location: Location, problem: Problem, known: Sequence[StimulusManifest], mended: Mended) -> None:
    place, key, *rest = problem.file.split("/", 2)
    name = rest[0] if rest else ""
    if place == STIMULI and HEX_DIGEST.fullmatch(key) and name == FILE:
        content = _set_content(location, key, known)
    elif place == ARRAYS and HEX_DIGEST.fullmatch(key) and name in STATIC_NAMES:
        array = recovered_array(location, key, known)
        content = static_files(array.spec, array.layout, array.manifest)[name]
    elif name in FOLDERS and _is_folder(location, problem.file):
        raise CacheCorrupt(f"{problem.what}. Ask its owner for permission to read it")
    elif name or not HEX_DIGEST.fullmatch(key):
        location.set_aside(problem.file, problem.file.replace("/", "-")[-200:])
        mended.moved.append(problem.file)
        return
    elif problem.what.endswith(AND_MORE):
        raise CacheCorrupt(f"{problem.what}. Run the same command again")
    else:
        raise CacheCorrupt(f"{problem.what}. Put the folder itself there, or remove it")
    location.set_aside(problem.file, f"{key}-{name.rpartition('/')[2]}")
    location.create(problem.file, [content])
    mended.rewritten.append(problem.file)


def _is_folder(location: Location, name: str) -> bool:
    """Whether it is a folder itself, and no link to one; elsewhere a file may have the name of a folder."""
    if not isinstance(location, Folder):
        return False
    path = location.path(name)
    return path.is_dir() and not path.is_symlink()


def seal_again(location: Location, keys: Iterable[str]) -> list[str]:
    """Seal arrays that are complete and have no seal; return the seals that were written.

    An array that cannot be recovered gets none: what is wrong with it is among the problems.
    """
    sealed = []
    for key in keys:
        with suppress(CacheCorrupt, RequestError):
            if seal_array(recovered_array(location, key)):
                sealed.append(f"{array_folder(key)}/{SEAL}")
    return sealed


def recovered_array(location: Location, key: str, known: Sequence[StimulusManifest] = ()) -> CachedArray:
    """Open an array some of whose files may be damaged, by what the others say.

    Raises
    ------
    CacheCorrupt
        What it is cannot be known any more.
    """
    evidence = evidence_of(location, array_folder(key))
    advice = (
        f"Nothing else says what it was: remove the array with `featpipe cache rm {key}` and extract it again"
    )
    if evidence.spec is None:
        raise CacheCorrupt(f"spec.json is damaged ({evidence.spec_problem}). {advice}")
    if evidence.layout is None:
        raise CacheCorrupt(f"the metadata of the features and their copy in the group are damaged. {advice}")
    manifest = recovered_manifest(location, evidence.stimuli_digest, known)
    return CachedArray(
        key, evidence.spec, evidence.stimuli_digest, evidence.layout, location, lambda digest: manifest
    )


def recovered_manifest(
    location: Location, digest: str, known: Sequence[StimulusManifest] = ()
) -> StimulusManifest:
    """Return a stimulus set from its file, from an array of it, or from images at hand; raises `CacheCorrupt`."""
    with suppress(*DAMAGE):
        check_set(location, f"{stimuli_folder(digest)}/{FILE}", digest)
        return load_stimuli(location, digest, thorough=True).manifest
    for manifest in (*known, *_manifests_of_arrays(location, digest)):
        if manifest.digest == digest:
            return manifest
    raise CacheCorrupt(
        f"stimulus set {digest[:12]} is damaged, and no array of it holds its ids and image digests. Name its "
        "images with --images"
    )


def _set_content(location: Location, digest: str, known: Sequence[StimulusManifest]) -> bytes:
    """Return what ``stimuli.json`` of a set must be; name and source, which are for people, as far as known."""
    manifest = recovered_manifest(location, digest, known)
    layouts = (layout for _, layout in _arrays_of(location, digest))
    if (layout := next(layouts, None)) is None:
        raise CacheCorrupt(
            f"no array of stimulus set {digest[:12]} is left, so nothing needs it; move it away"
        )
    shown = _shown(location, f"{stimuli_folder(digest)}/{FILE}")
    manifest = replace(
        manifest, name=shown.get("name", manifest.name), source=shown.get("source", manifest.source)
    )
    return with_checksum({"format": FORMAT, "shard_rows": layout.shard_rows, **manifest.to_json()})


def _shown(location: Location, name: str) -> dict[str, str]:
    """Return name and source from a damaged file that can still be parsed."""
    try:
        said = json.loads(read_plain(location, name, LARGEST_STIMULI))
        return {name: said[name] for name in ("name", "source") if isinstance(said[name], str)}
    except (*DAMAGE, ValueError, RecursionError, KeyError, TypeError):
        return {}


def _arrays_of(location: Location, digest: str) -> Iterator[tuple[str, ArrayLayout]]:
    """Yield folder and layout of the arrays of a stimulus set whose spec and layout can be read."""
    for base in map(array_folder, sorted(filter(HEX_DIGEST.fullmatch, location.names(ARRAYS)))):
        ours = spec_of(location, base)[1] == digest
        if ours and (layout := evidence_of(location, base).layout) is not None:
            yield base, layout


def _manifests_of_arrays(location: Location, digest: str) -> Iterator[StimulusManifest]:
    """Yield what the arrays of a set hold of ids and image digests, right or wrong."""
    for base, layout in _arrays_of(location, digest):
        try:
            ids = decode_ids(read_plain(location, f"{base}/{IDS_CHUNK}", LARGEST_STIMULI), layout.n_stimuli)
            raw = read_plain(location, f"{base}/{DIGESTS_CHUNK}", LARGEST_STIMULI)
            sha256 = tuple(raw[at : at + 32].hex() for at in range(0, len(raw), 32))
            source = next((c["provenance"].get("source") for c in sound_commits(location, base, layout)), "")
            yield StimulusManifest(ids, sha256, source=str(source or ""))
        except (*DAMAGE, StimulusError):
            continue  # the next array may do
