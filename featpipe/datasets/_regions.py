"""The order of regions of interest: along the visual hierarchy, as in the challenge files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

# Classes of the Algonauts 2023 challenge in its own order; a vertex may be in several classes.
REGIONS: dict[str, tuple[str, ...]] = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
# Names of other data sets, placed among those above by where they lie.
_ORDER = (
    *("EVC", "V1", "V1v", "V1d", "V2", "V2v", "V2d", "V3", "V3v", "V3d", "V3A", "V3B", "V4", "hV4"),
    *("LO", "LOC", "LO1", "LO2", "MT", "TEO", "PIT", "CIT", "AIT", "TE", "IT"),
    *(name for group in ("bodies", "faces", "places", "words") for name in REGIONS[f"floc-{group}"]),
    *REGIONS["streams"],
)
_RANK = {name.lower(): rank for rank, name in enumerate(_ORDER)}


def region_order(names: Iterable[str]) -> list[str]:
    """Sort group names such as ``lh.V1v`` or ``V4`` along the visual hierarchy.

    Both hemispheres of a region stand side by side, left first. Names that are not known keep their order
    and come last.
    """

    def rank(name: str) -> tuple[int, str, str]:
        hemisphere, dot, region = name.partition(".")
        region, hemisphere = (region, hemisphere) if dot else (name, "")
        known = _RANK.get(region.lower())
        return (len(_RANK), "", "") if known is None else (known, region, hemisphere)

    return sorted(names, key=rank)


def group_masks(targets: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Return one mask per combination of values in some columns of a table of targets.

    Parameters
    ----------
    targets : DataFrame of n_targets rows
    columns : sequence of str
        Columns whose values are joined by a dot, such as ``("hemisphere", "roi")`` for ``lh.V1v``.

    Returns
    -------
    dict of str to ndarray of bool, shape (n_targets,)
        Targets with an empty value in one of the columns are in no group.
    """
    if not columns:
        return {}
    values = targets[list(columns)].fillna("").astype(str)
    filled = (values != "").all(axis=1).to_numpy()
    names = values.agg(".".join, axis=1).to_numpy(dtype=object)
    found = dict.fromkeys(names[filled])  # keeps the order of the table
    return {name: filled & (names == name) for name in region_order(found)}


def default_masks(targets: pd.DataFrame) -> dict[str, np.ndarray]:
    """Group targets by hemisphere and roi, as far as the table has these columns."""
    return group_masks(targets, [name for name in ("hemisphere", "roi") if name in targets])
