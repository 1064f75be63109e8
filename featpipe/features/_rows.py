"""Looking ids up: which array holds the row of which stimulus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.errors import AmbiguousFeatures, StimulusNotCached
from featpipe.features._memory import READS
from featpipe.spec import FeatureSpec
from featpipe.store import CachedArray


def rows_of(
    ids: np.ndarray, pool: Sequence[CachedArray], spec: FeatureSpec, *, hold: bool = True
) -> np.ndarray:
    """Read the rows of ids from whichever of the pool's arrays (one spec, several stimulus sets) hold them.

    With `hold` the whole layer stays in memory for the next reader, where it fits.
    """
    place = _places(ids, pool, spec)
    if len(place) and (place[:, 0] == place[0, 0]).all():  # nearly always, and then no second copy is made
        return READS.rows(pool[place[0, 0]], place[:, 1], hold=hold).astype(np.float32, copy=False)
    out = np.empty((len(ids), *pool[0].row_shape), dtype=np.float32)
    for position, array in enumerate(pool):
        here = np.flatnonzero(place[:, 0] == position)
        if len(here):
            out[here] = READS.rows(array, place[here, 1], hold=hold)
    return out


def images_of(ids: np.ndarray, pool: Sequence[CachedArray], spec: FeatureSpec) -> list[str]:
    """Return the digest of the image behind each row that `rows_of` would read."""
    return [pool[position].manifest.sha256[row] for position, row in _places(ids, pool, spec).tolist()]


def _places(ids: np.ndarray, pool: Sequence[CachedArray], spec: FeatureSpec) -> np.ndarray:
    """Return (array, row) of each id: ndarray of shape (n_stimuli, 2)."""
    unique, inverse = np.unique(ids, return_inverse=True)
    found = np.full((len(unique), 2), -1)
    for position, array in enumerate(pool):
        index = READS.index(array)
        rows = np.array([index.get(name, -1) for name in unique.tolist()])
        there = (rows >= 0) & ~np.isin(rows // array.shard_rows, array.missing)
        for both in np.flatnonzero(there & (found[:, 0] >= 0)):
            _check_same_image(
                str(unique[both]), pool[found[both, 0]], int(found[both, 1]), array, int(rows[both])
            )
        new = there & (found[:, 0] < 0)
        found[new] = np.column_stack([np.full(new.sum(), position), rows[new]])
    if len(missing_ids := unique[found[:, 0] < 0]):
        view = f" in view {spec.view}" if spec.view else ""
        raise StimulusNotCached(
            f"{len(missing_ids)} of {len(unique)} stimuli have no row for layer {spec.layer_label!r} of {spec.model}"
            f"{view}, first {str(missing_ids[0])!r}. Run `featpipe extract` for this stimulus set (an interrupted run "
            "goes on where it stopped), or check that the ids match its manifest."
        )
    return found[inverse]


def _check_same_image(name: str, one: CachedArray, row: int, other: CachedArray, other_row: int) -> None:
    if one.manifest.sha256[row] == other.manifest.sha256[other_row]:
        return
    sets = [f"{a.manifest.name or 'unnamed'} ({a.stimuli_digest[:12]})" for a in (one, other)]
    raise AmbiguousFeatures(
        f"Stimulus {name!r} is a different image in two cached sets, {sets[0]} and {sets[1]}. "
        "Choose one with features__stimuli=DIGEST, or give the sets ids of their own."
    )
