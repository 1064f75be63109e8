"""A stimulus set: a manifest, and how to open each of its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Self

from PIL import Image

from featpipe.errors import EmptySource, StimulusError
from featpipe.stimuli._damage import Unusable
from featpipe.stimuli._decode import MAX_PIXELS, decode, from_pixels, require_pixels
from featpipe.stimuli._ids import require_unique
from featpipe.stimuli._images import Images, stored_digest
from featpipe.stimuli._inspect import Facts, Progress, inspect
from featpipe.stimuli._manifest import StimulusManifest
from featpipe.stimuli._sources import open_images, source_name


class StimulusSet:
    """Ordered images with unique ids and known bytes. Make one with `from_source`.

    Holds no open file; `open` may be called from many threads, and the set may be sent to a worker that
    sees the same files.

    Attributes
    ----------
    manifest : StimulusManifest
        Ids and image digests.
    skipped : tuple of (file, reason)
        What ``skip_broken`` left out.
    """

    def __init__(
        self,
        manifest: StimulusManifest,
        images: Images,
        positions: Iterable[int],
        *,
        max_pixels: int = MAX_PIXELS,
        skipped: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.manifest = manifest
        self.skipped = skipped
        self._images = images
        self._positions = tuple(positions)  # of each row in images
        self._max_pixels = max_pixels

    @classmethod
    def from_source(
        cls,
        source: str | Path,
        *,
        skip_broken: bool = False,
        rehash: bool = False,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Self:
        """Find the images of a source and hash them, unless they are unchanged since an earlier time.

        Parameters
        ----------
        source : str or Path
            A folder, ``.zip``, ``.tar``, CSV with the columns ``id,path``, ``.npy``, ``.npz``,
            ``FILE.h5:DATASET``, or the folder of a Zarr array.
        skip_broken : bool
            Decode every image now and leave out those that cannot be, in `skipped`. Otherwise only headers
            are checked, and a truncated image is found when it is opened.
        rehash : bool
            Read all images again, whatever is remembered of them.
        max_pixels : int
            Width times height above which an image is refused before it is decoded.
        progress : callable (done, total), optional

        Raises
        ------
        EmptySource, DuplicateIds, BrokenImage, ImageTooLarge, UnsafePath, StimulusError
            Each names the file.
        """
        images = open_images(source, max_pixels)
        facts = inspect(images, decoded=skip_broken, max_pixels=max_pixels, rehash=rehash, progress=progress)
        problems = _problems(facts, max_pixels)
        if problems and not skip_broken:
            raise _summary(images, problems)
        rows = [row for row in range(len(facts)) if row not in problems]
        if not rows:
            raise EmptySource(f"No image of {str(source)!r} can be used. {_summary(images, problems)}")
        manifest = StimulusManifest(
            tuple(images.ids[row] for row in rows),
            tuple(facts[row].sha256 for row in rows),
            name=source_name(source),
            source=Path(source).name,
        )
        skipped = tuple((images.file(row), problem.reason) for row, problem in problems.items())
        return cls(manifest, images, rows, max_pixels=max_pixels, skipped=skipped)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in the order of the set."""
        return self.manifest.ids

    @property
    def sha256(self) -> tuple[str, ...]:
        """Digest of each image's stored bytes."""
        return self.manifest.sha256

    @property
    def digest(self) -> str:
        """Digest of the set: ids and image digests in order."""
        return self.manifest.digest

    @property
    def name(self) -> str:
        """What the set is called; not part of its digest."""
        return self.manifest.name

    def __len__(self) -> int:
        return len(self.manifest)

    def __repr__(self) -> str:
        return f"StimulusSet({self.name!r}, {len(self)} images, digest {self.digest[:12]})"

    def open(self, row: int) -> Image.Image:
        """Read, check and decode one image; from any thread.

        Returns
        -------
        image : PIL.Image.Image
            Mode RGB, rotated upright, by the policy of `featpipe.stimuli`.

        Raises
        ------
        StimulusError
            If the bytes are no longer those that the manifest has the digest of.
        BrokenImage
            If they cannot be decoded, such as when the file is truncated.
        """
        position = self._positions[index(row)]
        try:
            return self._open(position, self.sha256[row])
        except Unusable as error:
            raise error.named(self._images.file(position)) from error

    def _open(self, position: int, wanted: str) -> Image.Image:
        stored = self._images.read(position)
        found = stored_digest(stored)
        if found != wanted:
            raise StimulusError(
                f"Image {self._images.file(position)!r} changed after the stimulus set was opened: its "
                f"SHA-256 was {wanted[:12]}… and is {found[:12]}…. Start again, with --rehash if this "
                "happens at once."
            )
        if isinstance(stored, bytes):
            return decode(stored, self._max_pixels)
        return from_pixels(stored)

    def select(self, ids: Iterable[str]) -> StimulusSet:
        """Return the set of some images, in the given order; raises `StimulusError` for an unknown id."""
        wanted = [str(name) for name in ids]
        rows = self.manifest.rows
        if unknown := [name for name in wanted if name not in rows]:
            raise StimulusError(
                f"{len(unknown)} of {len(wanted)} ids are not in the stimulus set {self.name!r}, first "
                f"{unknown[0]!r}; it has {len(self)} ids such as {', '.join(map(repr, self.ids[:2]))}."
            )
        chosen = [rows[name] for name in wanted]
        manifest = replace(self.manifest, ids=tuple(wanted), sha256=tuple(self.sha256[row] for row in chosen))
        return self._with(manifest, [self._positions[row] for row in chosen])

    def rename(self, new: Mapping[str, str] | Callable[[str], str]) -> StimulusSet:
        """Return the set with other ids and the same images.

        Parameters
        ----------
        new : mapping or callable
            New id of each id. Ids that a mapping lacks stay; one that it has and the set lacks is an error.

        Raises
        ------
        DuplicateIds
            If two images would have one id; names both old ids.
        """
        if isinstance(new, Mapping) and (unknown := sorted(new.keys() - set(self.ids))):
            raise StimulusError(
                f"{unknown[0]!r} cannot be renamed: it is not in the stimulus set {self.name!r}, which has "
                f"ids such as {self.ids[0]!r}."
            )
        ids = tuple(new.get(old, old) if isinstance(new, Mapping) else new(old) for old in self.ids)
        require_unique(ids, self.ids)
        return self._with(replace(self.manifest, ids=ids), self._positions)

    def arranged(self, manifest: StimulusManifest) -> StimulusSet:
        """Return the images of a manifest, under its ids and in its order, found by their digests.

        Raises
        ------
        StimulusError
            If an image is not here; says how many, and names the first.
        """
        position = dict(zip(self.sha256, self._positions, strict=True))
        missing = [row for row, digest in enumerate(manifest.sha256) if digest not in position]
        if missing:
            first = missing[0]
            raise StimulusError(
                f"{len(missing)} of the {len(manifest)} images are not among the {len(self)} of {self.name!r}, first "
                f"{manifest.ids[first]!r} (SHA-256 {manifest.sha256[first][:12]}…). Ids do not matter, but the bytes "
                "must be those of the images that the features were extracted from."
            )
        return self._with(manifest, [position[digest] for digest in manifest.sha256])

    def _with(self, manifest: StimulusManifest, positions: Iterable[int]) -> StimulusSet:
        return StimulusSet(
            manifest, self._images, positions, max_pixels=self._max_pixels, skipped=self.skipped
        )


def _problems(facts: list[Facts], max_pixels: int) -> dict[int, Unusable]:
    """Return why images cannot be used, by position."""
    problems: dict[int, Unusable] = {}
    for position, known in enumerate(facts):
        try:
            if known.problem:
                raise Unusable(known.problem, large=known.large)
            require_pixels(known.width, known.height, max_pixels)
        except Unusable as error:
            problems[position] = error
    return problems


def _summary(images: Images, problems: dict[int, Unusable]) -> StimulusError:
    position, problem = next(iter(problems.items()))
    first = problem.named(images.file(position))
    if len(problems) == 1:
        return first
    return type(first)(f"{len(problems)} of {len(images.ids)} images cannot be used. First: {first}")
