"""Rows without ids: which image is which."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import natsort


def sorted_rows(ids: Sequence[str], name: str) -> list[str]:
    """Return ids in natural order, which rows without ids are taken to be in.

    Warns where sorting as texts would give another order, in which whoever made the rows may have had them.
    """
    natural = list(natsort.natsorted(ids))
    if natural != (plain := sorted(ids)):
        place = next(i for i, names in enumerate(zip(natural, plain, strict=True)) if len(set(names)) == 2)
        warnings.warn(
            f"Rows of responses are taken in the natural order of {name!r}, in which row {place} is "
            f"{natural[place]!r}; sorted as texts it would be {plain[place]!r}. If your rows follow that order, "
            "every one is joined to a wrong image: write ids = 'FILE.csv:COLUMN' in a dataset.toml.",
            UserWarning,
            stacklevel=3,
        )
    return natural
