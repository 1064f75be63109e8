"""What a cache keeps about a stimulus set: ids and image digests in order, no pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from featpipe.errors import StimulusError
from featpipe.spec import digest_of
from featpipe.stimuli._ids import require_unique

_FIELDS = {"name", "source", "images"}


@dataclass(frozen=True)
class StimulusManifest:
    """Ordered, unique ids with the SHA-256 of each image.

    Parameters
    ----------
    ids : tuple of str, length n_stimuli
    sha256 : tuple of str, length n_stimuli
        Digest of each image's stored bytes, 64 hex digits.
    name, source : str
        Where the set came from, for people; not part of its digest.

    Raises
    ------
    DuplicateIds
        If two images have one id.
    StimulusError
        If lengths differ, or an id or a digest is not one.
    """

    ids: tuple[str, ...]
    sha256: tuple[str, ...]
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.sha256):
            raise StimulusError(
                f"A stimulus set needs one digest per id, got {len(self.ids)} ids and {len(self.sha256)} "
                "digests."
            )
        _require_ids(self.ids)
        _require_digests(self.sha256)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the ordered (id, image digest) pairs, in hex: the name of the set in a cache."""
        return digest_of([list(pair) for pair in zip(self.ids, self.sha256, strict=True)])

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Row of each id."""
        return {name: row for row, name in enumerate(self.ids)}

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values: ``name``, ``source``, ``images`` as [id, sha256] pairs."""
        images = [list(pair) for pair in zip(self.ids, self.sha256, strict=True)]
        return {"name": self.name, "source": self.source, "images": images}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote; raises `StimulusError` for anything else."""
        if not isinstance(value, Mapping) or value.keys() != _FIELDS:
            found = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
            raise StimulusError(
                f"A stimulus manifest has exactly the fields {', '.join(sorted(_FIELDS))}, got {found}."
            )
        images, name, source = value["images"], value["name"], value["source"]
        pairs = isinstance(images, list) and all(isinstance(i, list) and len(i) == 2 for i in images)
        if not pairs or not isinstance(name, str) or not isinstance(source, str):
            raise StimulusError(
                "A stimulus manifest holds text as name and source, and [id, sha256] pairs as images; "
                "this one does not."
            )
        return cls(tuple(i[0] for i in images), tuple(i[1] for i in images), name, source)


def _require_ids(ids: Sequence[str]) -> None:
    bad = next((i for i in ids if not isinstance(i, str) or not i or not _is_unicode(i)), None)
    if bad is not None:
        raise StimulusError(
            f"Stimulus ids are non-empty Unicode text, got {bad!r}. Rename that image (or its file)."
        )
    require_unique(ids, ids)


def _is_unicode(text: str) -> bool:
    """Tell whether text can be written as UTF-8; a file name that was not UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _require_digests(digests: Sequence[str]) -> None:
    hexadecimal = re.compile("[0-9a-f]{64}").fullmatch
    bad = next((d for d in digests if not isinstance(d, str) or not hexadecimal(d)), None)
    if bad is not None:
        raise StimulusError(f"An image digest is 64 lower-case hex digits (SHA-256), got {bad!r}.")
