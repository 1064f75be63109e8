"""Which augmented views a request means: made how, and whether the cache has them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featpipe.errors import AmbiguousFeatures, FeaturesNotCached
from featpipe.features._settle import cached_arrays, is_set
from featpipe.spec import FeatureSpec
from featpipe.store import CachedArray, Root
from featpipe.views import USUAL, Augmentation, View, spec_of_view


def arrays_of_views(cache: Root, specs: Sequence[FeatureSpec], stimuli: str | None) -> list[CachedArray]:
    """Return the arrays of augmented views of these features, of the stimulus sets that may be looked at."""
    wanted = set(specs)
    views = [a for a in cached_arrays(cache) if a.spec.view and _of_image(a.spec) in wanted]
    return [a for a in views if stimuli is None or is_set(a, stimuli)]


def settle_views(
    arrays: Sequence[CachedArray],
    specs: Sequence[FeatureSpec],
    n_views: int,
    *,
    augmentation: str | None,
    seed: int | None,
) -> tuple[str, int]:
    """Return how the views are made: the one augmentation and seed of which all are there.

    Parameters
    ----------
    arrays : sequence of CachedArray
        Of augmented views.
    specs : sequence of FeatureSpec
        Of the images themselves, one per layer.
    n_views : int
        Views 1 to `n_views` are needed.
    augmentation, seed
        What was asked for; None where the cache decides.

    Raises
    ------
    FeaturesNotCached
        Some are missing; says what to run.
    AmbiguousFeatures
        The cache has them in several ways.
    """
    there = {array.spec for array in arrays}
    asked = None if augmentation is None else Augmentation.parse(augmentation)
    ways = {(Augmentation.parse(spec.augmentation), spec.view_seed) for spec in there}
    ways = {way for way in ways if asked in (None, way[0]) and seed in (None, way[1])}
    lacks = {way: _missing(there, specs, n_views, *way) for way in ways}
    whole = [way for way in lacks if not lacks[way]]
    if len(whole) > 1:
        listed = ", ".join(sorted(f"{made_by} with seed {number}" for made_by, number in whole))
        raise AmbiguousFeatures(
            f"The views are cached in several ways: {listed}. Choose one: set features__augmentation or "
            "features__view_seed."
        )
    if not whole:
        way = min(lacks, key=lambda way: len(lacks[way]), default=(asked or USUAL, seed or 0))
        raise _not_cached(_missing(there, specs, n_views, *way), specs, n_views, *way)
    made_by, number = whole[0]
    return str(made_by), number


def _of_image(spec: FeatureSpec) -> FeatureSpec:
    return replace(spec, view=0, augmentation="", view_seed=0)


def _missing(
    there: set[FeatureSpec], specs: Sequence[FeatureSpec], n_views: int, made_by: Augmentation, seed: int
) -> list[FeatureSpec]:
    views = [View(number, made_by, seed) for number in range(1, n_views + 1)]
    wanted = [spec_of_view(spec, view) for view in views for spec in specs]
    return [spec for spec in wanted if spec not in there]


def _not_cached(
    missing: Sequence[FeatureSpec],
    specs: Sequence[FeatureSpec],
    n_views: int,
    made_by: Augmentation,
    seed: int,
) -> FeaturesNotCached:
    layers = " ".join(f"--layers '{spec.layer_label}:{spec.reduction}'" for spec in specs[:8])
    made = (f" --augmentation {made_by}" if made_by != USUAL else "") + (
        f" --view-seed {seed}" if seed else ""
    )
    return FeaturesNotCached(
        f"{len(missing)} of {n_views * len(specs)} augmented views are not in the cache, first view "
        f"{missing[0].view} of layer {missing[0].layer_label!r} of {specs[0].model} ({made_by}, seed {seed}). Extract "
        f"them as the images themselves were, with --views: `featpipe extract … {layers} --views {n_views}{made}` "
        f"(or `fit --extract`), or set features__views to fewer."
    )
