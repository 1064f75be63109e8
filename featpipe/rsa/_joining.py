"""Put RDMs together: stimulus sets side by side, measurements of the same stimuli under one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa._rdms import RDMs


def concat(parts: Sequence[RDMs]) -> RDMs:
    """Join stimulus sets: the same RDMs over more stimuli, pairs across the parts NaN.

    Parameters
    ----------
    parts : sequence of RDMs
        With the same subjects, targets and times, in any order of the subjects; ids must differ between parts.

    Raises
    ------
    RequestError
        RDMs that one part has and another lacks, or an id in two parts.
    """
    if not parts:
        raise RequestError("There is nothing to join; give at least one RDMs.")
    first = parts[0]
    aligned = [first, *(_in_order_of(first, part) for part in parts[1:])]
    ids = np.concatenate([part.ids for part in aligned])
    if sum(len(set(p.ids.tolist())) for p in aligned) != len(set(ids.tolist())):
        raise RequestError("Two of the sets have a stimulus id in common; write ids as SET/NAME.")
    values = np.full((first.n_rdms, len(ids), len(ids)), np.nan)
    start = 0
    for part in aligned:
        rows = slice(start, start + len(part))
        values[:, rows, rows] = part.values
        start = rows.stop
    return RDMs(values, ids, subjects=first.subjects, targets=first.targets, times=first.times)


def stack(parts: Sequence[RDMs]) -> RDMs:
    """Put RDMs of the same stimuli under one another, such as those of fMRI and of MEG.

    Raises
    ------
    RequestError
        The ids differ. (They are not reordered: `RDMs.take` does that.)
    """
    if not parts:
        raise RequestError("There is nothing to put together; give at least one RDMs.")
    if any(not np.array_equal(parts[0].ids, part.ids) for part in parts):
        raise RequestError("RDMs of different stimuli cannot be put under one another; select the same ids.")
    timed = any(part.times is not None for part in parts)
    times = [t for part in parts for t in (part.times or [0] * part.n_rdms)] if timed else None
    return RDMs(
        np.concatenate([part.values for part in parts]),
        parts[0].ids,
        subjects=[s for part in parts for s in part.subjects],
        targets=[t for part in parts for t in part.targets],
        times=times,
    )


def _in_order_of(first: RDMs, part: RDMs) -> RDMs:
    def named(rdms: RDMs) -> list[tuple[str, str, int]]:
        times = rdms.times or (0,) * rdms.n_rdms
        return list(zip(rdms.subjects, rdms.targets, times, strict=True))

    place = {label: row for row, label in enumerate(named(part))}
    wanted = named(first)
    if len(place) != part.n_rdms or place.keys() != set(wanted):
        odd = sorted(place.keys() ^ set(wanted))
        raise RequestError(
            f"The sets were not measured in the same subjects, targets and times; they differ in {odd[:3]}."
            if odd
            else "Several RDMs have the same subject, target and time, so that sets cannot be joined."
        )
    return part.rows(np.array([place[label] for label in wanted]))
