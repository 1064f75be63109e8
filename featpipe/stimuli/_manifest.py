"""What a cache keeps about a stimulus set: ids and image digests in order, no pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from featpipe.errors import StimulusError
from featpipe.spec import HEX_DIGEST, digest_of
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
        pairs = isinstance(images, list) and set(map(type, images)) <= {list} and set(map(len, images)) <= {2}
        if not pairs or not _is_text(name) or not _is_text(source):
            raise StimulusError(
                "A stimulus manifest holds text as name and source, and [id, sha256] pairs as images; this "
                "one does not."
            )
        ids, digests = zip(*images, strict=True) if images else ((), ())
        return cls(ids, digests, name, source)


# Both look at 100 000 entries within milliseconds, and search for the culprit only if there is one.


def _require_ids(ids: Sequence[str]) -> None:
    if not (set(map(type, ids)) <= {str} and all(ids) and _is_unicode("".join(ids))):
        bad = next(i for i in ids if type(i) is not str or not i or not _is_unicode(i))
        raise StimulusError(
            f"Stimulus ids are non-empty Unicode text, got {bad!r}. Rename that image (or its file)."
        )
    require_unique(ids, ids)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    """Tell whether text can be written as UTF-8; a file name that was not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_digests(digests: Sequence[str]) -> None:
    wanted = set(map(type, digests)) <= {str} and set(map(len, digests)) <= {64}
    if not wanted or not re.fullmatch("[0-9a-f]*", "".join(digests)):
        bad = next(d for d in digests if type(d) is not str or not HEX_DIGEST.fullmatch(d))
        raise StimulusError(f"An image digest is 64 lower-case hex digits (SHA-256), got {bad!r}.")
