"""A word, once, about cached features that hold NaN or infinite values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from featpipe.store import CachedArray

_COUNTED: dict[tuple[str, int], int] = {}  # (place, committed shards) to values: commits never change
_SAID: set[str] = set()


def say_non_finite(arrays: Sequence[CachedArray]) -> None:
    """Warn of arrays that hold NaN or infinite values, each once per process.

    Their commit records say so; no row is read, and records are read once.
    """
    for array in arrays:
        place = f"{array.location.identity}/{array.base}"
        if place in _SAID or not (count := _count(array, place)):
            continue
        _SAID.add(place)
        warnings.warn(
            f"Layer {array.spec.layer_label!r} holds {count} values that are NaN or infinite in {array.n_stimuli} "
            f"cached rows (array {array.key[:12]}), kept with --non-finite keep. Most estimators refuse them: leave "
            f"the layer or those images out, or extract it with --store-dtype float32 or --precision fp32.",
            stacklevel=3,
        )


def _count(array: CachedArray, place: str) -> int:
    known = (place, len(array.committed))
    if known not in _COUNTED:
        _COUNTED[known] = sum(array.non_finite().values())
    return _COUNTED[known]
