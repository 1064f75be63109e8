"""Values that are NaN or infinite: found, refused with what to do, or counted where they are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.errors import NonFiniteFeatures
from featpipe.extraction._order import NonFinite, Target
from featpipe.extraction._plan import ShardJob
from featpipe.store import CachedArray, FeatureCache


def look(target: Target, rows: np.ndarray, ids: Sequence[str]) -> NonFinite | None:
    """Return what of some rows is NaN or infinite; None where nothing is.

    Parameters
    ----------
    target : Target
    rows : ndarray of shape (n_rows, *row_shape)
    ids : sequence of str, length n_rows
    """
    n_nan = n_infinite = n_images = 0
    first = ""
    for name, row in zip(ids, rows, strict=True):  # a row at a time, so that memory stays small
        if n_bad := row.size - int(np.count_nonzero(np.isfinite(row))):
            of_row = int(np.count_nonzero(np.isnan(row)))
            n_nan, n_infinite, n_images = n_nan + of_row, n_infinite + n_bad - of_row, n_images + 1
            first = first or name
    return NonFinite(target, n_nan, n_infinite, n_images, first) if n_images else None


def refusal(found: Sequence[NonFinite], job: ShardJob) -> NonFiniteFeatures:
    """Return the error about the layers of one shard that are refused."""
    several = len(found) > 1
    listed = " ".join(f"{_described(bad, job.stop - job.start)}." for bad in found)
    remedies = " or ".join(dict.fromkeys(_remedy(bad) for bad in found))
    others = len(job.targets) - len(found)
    kept = (
        f"the other {others} layers of this shard were" if others > 1 else "the other layer of this shard was"
    )
    written = f"; {kept} written" if others else ""
    return NonFiniteFeatures(
        f"{listed} Leave {'these layers' if several else 'this layer'} out, {remedies}, or store such values as they "
        f"are with --non-finite keep. Nothing of {'them' if several else 'it'} was written for rows {job.start} to "
        f"{job.stop - 1}{written}."
    )


def _described(bad: NonFinite, n_images: int) -> str:
    spec = bad.target.spec
    label = f"{spec.layer_label!r}" + (f" in view {spec.view}" if spec.view else "")
    limit = f", which ends at {np.finfo(np.float16).max:.0f}" if spec.store_dtype == "float16" else ""
    return (
        f"Layer {label} ({spec.reduction}) has {bad.n_nan} values that are NaN and {bad.n_infinite} that are infinite "
        f"in stored {spec.store_dtype}{limit}, in {bad.n_images} of {n_images} images, first for stimulus {bad.first!r}"
    )


def _remedy(bad: NonFinite) -> str:
    spec = bad.target.spec
    if spec.store_dtype == "float16" and bad.n_infinite:
        return "store it with --store-dtype float32"
    if spec.precision != "fp32":
        return "compute it with --precision fp32"
    return "look at the weights and at this image"


def kept(cache: FeatureCache, targets: Sequence[Target]) -> tuple[NonFinite, ...]:
    """Return what arrays hold of such values, those that hold none left out; only their shards are read."""
    there = set(cache.keys())
    found = (_kept_in(cache.array(target.key), target) for target in targets if target.key in there)
    return tuple(bad for bad in found if bad is not None)


def _kept_in(array: CachedArray, target: Target) -> NonFinite | None:
    parts = [_kept_in_shard(array, shard, target) for shard in array.non_finite()]
    bad = [part for part in parts if part is not None]
    if not bad:
        return None
    n_nan, n_infinite, n_images = (
        sum(getattr(part, name) for part in bad) for name in ("n_nan", "n_infinite", "n_images")
    )
    return NonFinite(target, n_nan, n_infinite, n_images, bad[0].first)


def _kept_in_shard(array: CachedArray, shard: int, target: Target) -> NonFinite | None:
    rows = array.layout.rows_of(shard)
    return look(target, array.read(np.asarray(rows)), array.ids[rows.start : rows.stop])
