"""Who wrote what of an array: its shards by the provenance that their commit records share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featpipe.spec import canonical_json
from featpipe.store._array import CachedArray

_WHEN = "written"


@dataclass(frozen=True, slots=True)
class Origin:
    """Shards of one array that came about in the same way.

    Parameters
    ----------
    provenance : dict
        What their commit records say alike: all but when.
    shards : tuple of int
        Ascending.
    n_reused : int
        How many of these shards hold rows that were copied from another array.
    first_written, last_written : str
        ISO 8601, as recorded; empty where it was not.
    """

    provenance: dict[str, Any]
    shards: tuple[int, ...]
    n_reused: int
    first_written: str
    last_written: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, the provenance among them."""
        own = {
            "shards": len(self.shards),
            "shard_numbers": spans(self.shards),
            "reused": self.n_reused,
            "first_written": self.first_written,
            "last_written": self.last_written,
        }
        return own | {name: value for name, value in self.provenance.items() if name not in own}


def origins(array: CachedArray) -> list[Origin]:
    """Group the committed shards by how they came about, that of the first shard first.

    Raises
    ------
    CacheCorrupt
        A commit record is damaged.
    """
    groups: dict[bytes, list[dict[str, Any]]] = {}
    for commit in array.commits():
        groups.setdefault(canonical_json(_how(commit)), []).append(commit)
    return [_origin(commits) for commits in groups.values()]


def _origin(commits: list[dict[str, Any]]) -> Origin:
    shards = tuple(commit["shard"] for commit in commits)
    times = sorted(str(commit["provenance"].get(_WHEN, "")) for commit in commits)
    n_reused = sum(bool(commit["reused"]) for commit in commits)
    return Origin(_how(commits[0]), shards, n_reused, times[0], times[-1])


def _how(commit: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in commit["provenance"].items() if name != _WHEN}


def spans(numbers: tuple[int, ...] | list[int]) -> str:
    """Write ascending numbers as ``0-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
