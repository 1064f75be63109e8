"""Whether the seal of an array, where there is one, repeats its commit records."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from featpipe.store._commits import COMMITS
from featpipe.store._layout import ArrayLayout
from featpipe.store._seal import LARGEST_SEAL, SEAL, parse_seal
from featpipe.store.checking._evidence import key_of
from featpipe.store.checking._plain_files import DAMAGE, read_plain, reason
from featpipe.store.location import Location


@dataclass(frozen=True, slots=True)
class SealCheck:
    """The seal of an array, as far as there is one.

    Parameters
    ----------
    content : bytes or None
    problems : mapping of str to str
        What is wrong with it, by its name.
    checksums : list of str
        Of the commit records that it repeats, by shard; empty where that is not known.
    """

    content: bytes | None = None
    problems: dict[str, str] = field(default_factory=dict)
    checksums: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, location: Location, base: str) -> SealCheck:
        """Read the file, if it is there."""
        try:
            return cls(read_plain(location, f"{base}/{SEAL}", LARGEST_SEAL))
        except FileNotFoundError:
            return cls()
        except DAMAGE as error:
            return cls(problems={SEAL: reason(error)})

    def checked(
        self, location: Location, base: str, layout: ArrayLayout | None, committed: Collection[int]
    ) -> SealCheck:
        """Return what the seal says of an array with these commit records."""
        if self.content is None or layout is None:
            return self
        if len(committed) < layout.n_shards and not location.exists(f"{base}/{SEAL}"):
            return SealCheck()  # somebody moves shards aside, and moved the seal first
        if lost := sorted(set(range(layout.n_shards)) - set(committed)):
            gone = {f"{COMMITS}/{shard}.json": "it is gone, and the seal has it" for shard in lost}
            return SealCheck(problems={SEAL: "it seals an array that lacks shards", **gone})
        try:
            path = f"{location.url}/{base}/{SEAL}"
            records = parse_seal(path, self.content, key_of(base), layout)
        except DAMAGE as error:
            return SealCheck(problems={SEAL: reason(error)})
        return SealCheck(checksums=[str(record["checksum"]) for record in records])

    def checksum_of(self, shard: int) -> str:
        """Return the checksum that a commit record must have, empty where that is not known."""
        return self.checksums[shard] if self.checksums else ""
