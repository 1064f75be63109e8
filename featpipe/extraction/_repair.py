"""What is damaged in a cache made good again: files from other files, rows from images and weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from featpipe.extraction._again import Again, how_of
from featpipe.extraction._order import Means, Progress, Target
from featpipe.stimuli import StimulusManifest
from featpipe.store import (
    FeatureCache,
    Mended,
    Problem,
    Scope,
    exclusive_claim,
    mend_files,
    seal_again,
    verify_cache,
)

Place = tuple[str, int]  # array and shard


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, and what it could not do.

    Parameters
    ----------
    rewritten, moved : list of str
        Files made again, and files that the format does not name, moved to ``CACHE/aside``.
    recomputed : list of (key, shard)
    missing : list of (key, shard)
        Moved aside and not computed again.
    left : list of str
        What could not be repaired, with the reason.
    problems : list of Problem
        What is still wrong.
    """

    rewritten: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    recomputed: list[Place] = field(default_factory=list)
    missing: list[Place] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether everything is as it was written."""
        return not (self.missing or self.left or self.problems)


def repair(
    cache: FeatureCache,
    problems: Sequence[Problem],
    plans: Sequence[Again] = (),
    *,
    known: Sequence[StimulusManifest] = (),
    means: Means | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Make good what `FeatureCache.verify` and `recompute` found, as the only one who does so.

    Damaged shards are moved to ``CACHE/aside``, and those of arrays with a plan are computed again, as an
    extraction does it. Arrays that are complete again are sealed again. Nothing is deleted.

    Parameters
    ----------
    cache : FeatureCache
    problems : sequence of Problem
    plans : sequence of Again
        From `plan_again`, which has checked images and weights.
    known : sequence of StimulusManifest
        Of the images at hand, from which a stimulus set may be written again.
    means : Means, optional
        Device and workers; batches are those of before.
    progress : callable (images done, images in all), optional

    Raises
    ------
    CacheBusy
        Somebody else works on one of the arrays; nothing was touched.
    RequestError
        The cache can only be read.
    """
    cache = FeatureCache(cache.root)  # the cache itself, and no mirror of it
    cache.location.require_writable()
    names = sorted({problem.key for problem in problems if _is_folder(problem)})
    with ExitStack() as claims:
        for name in names:
            claims.enter_context(exclusive_claim(cache.root, name))
        now = _still(cache, problems)  # somebody may have repaired it while we looked
        mended = mend_files(cache.location, now, known)
        moved = cache.set_aside(now)
        recomputed = _recompute(FeatureCache(cache.root), plans, moved, means or Means(), progress)
        _seal_again(cache, mended, moved)
        cache.list_again(set(names).intersection(cache.keys()))
        return _summed_up(cache, mended, moved, recomputed, now)


def _seal_again(cache: FeatureCache, mended: Mended, moved: Iterable[Place]) -> None:
    """Seal the arrays whose seal was moved away, as far as they are complete."""
    lost = {file for file in mended.moved if _is_seal(file)}
    keys = {file.split("/")[1] for file in lost} | {key for key, _ in moved}
    seal_again(cache.location, sorted(keys))
    written = {file for file in lost if cache.location.exists(file)}  # by us, or with the last shard
    mended.moved = [file for file in mended.moved if file not in written]
    mended.rewritten += sorted(written)


def _is_seal(file: str) -> bool:
    return file.startswith("arrays/") and file.count("/") == 2 and file.endswith("/sealed.json")


def _is_folder(problem: Problem) -> bool:
    return (
        problem.file.startswith((f"arrays/{problem.key}", f"stimuli/{problem.key}"))
        and len(problem.key) == 64
    )


def _scope(cache: FeatureCache, problems: Iterable[Problem]) -> Scope:
    """Return the arrays and sets concerned, with the shards that are damaged and no others."""
    only: dict[str, set[int]] = {}
    there = set(cache.keys())
    for problem in problems:
        if problem.key in there:
            only.setdefault(problem.key, set()).update(() if problem.shard is None else {problem.shard})
    sets = {problem.key for problem in problems if _is_folder(problem)} - there
    return Scope(keys=tuple(sorted(only)), sets=tuple(sorted(sets)), only=only)


def _still(cache: FeatureCache, problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems that are still there; those that take more than damaged shards to see stay as they are."""
    found = verify_cache(cache.location, _scope(cache, problems))
    seen = {(problem.key, problem.shard, problem.file) for problem in found}
    own = [p for p in problems if not _is_folder(p) or p.what.startswith(COMPUTED_AGAIN) or _is_seal(p.file)]
    return found + [p for p in own if (p.key, p.shard, p.file) not in seen]


COMPUTED_AGAIN = "computed again"  # how a problem begins that only the network shows


def _recompute(
    cache: FeatureCache,
    plans: Sequence[Again],
    places: Iterable[Place],
    means: Means,
    progress: Progress | None,
) -> list[Place]:
    """Compute shards again: those of one network, view and batch size in one run each."""
    by_key = {plan.array.key: plan for plan in plans}
    wanted = [(by_key[key], shard) for key, shard in places if key in by_key]
    jobs: dict[tuple[Any, ...], dict[int, list[Again]]] = {}
    for plan, shard in wanted:
        how = how_of(plan, shard, plans)
        jobs.setdefault((plan.work, how), {}).setdefault(shard, []).append(plan)
    after = None
    for (_, how), shards in jobs.items():
        for together, numbers in _alike(shards):
            after = _run(cache, together, numbers, how and how[0], means, progress, after)
    return [(plan.array.key, shard) for plan, shard in wanted]


def _alike(shards: Mapping[int, Sequence[Again]]) -> list[tuple[list[Again], set[int]]]:
    """Put shards together that the same arrays lack."""
    groups: dict[tuple[str, ...], tuple[list[Again], set[int]]] = {}
    for shard, plans in shards.items():
        name = tuple(sorted(plan.array.key for plan in plans))
        groups.setdefault(name, (list(plans), set()))[1].add(shard)
    return list(groups.values())


def _run(
    cache: FeatureCache,
    plans: Sequence[Again],
    shards: set[int],
    batch_size: int | None,
    means: Means,
    progress: Progress | None,
    after: Any,
) -> Any:
    """Extract some shards of some arrays; returns the run, whose network may serve the next one."""
    from featpipe.extraction._allocator import keeping_freed_memory
    from featpipe.extraction._run import Run  # torch, only where something is to be computed

    plan = plans[0]
    how = Means(plan.device(means.device), batch_size, means.workers)
    targets: list[Target] = [each.target for each in plans]
    same = after if after is not None and after.order.model == plan.request else None
    run = Run(plan.order, plan.stimuli, cache, how, plan.card, targets, progress, same)
    with keeping_freed_memory():
        run.work(only=shards)
    return run


def _summed_up(
    cache: FeatureCache,
    mended: Mended,
    moved: Sequence[Place],
    recomputed: Sequence[Place],
    before: Sequence[Problem],
) -> Repair:
    left_files = {line.partition(": ")[0] for line in mended.left}
    after = [p for p in verify_cache(cache.location, _scope(cache, before)) if p.file not in left_files]
    return Repair(
        rewritten=mended.rewritten,
        moved=mended.moved,
        recomputed=list(recomputed),
        missing=[place for place in moved if place not in set(recomputed)],
        left=mended.left,
        problems=after,
    )
