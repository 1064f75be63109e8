"""The share of one run among several: the shards that nobody else is making."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from featpipe.errors import FeaturesNotCached
from featpipe.extraction._order import Target
from featpipe.extraction._plan import ShardJob
from featpipe.store import CachedArray, Claims, FeatureCache

_PAUSE = 1.0  # seconds at most between looks at what others are making
_PATIENCE = 4  # pauses in vain before it is said who is waited for


class Share:
    """Shards that are drawn one after the other, each claimed as it is drawn.

    Parameters
    ----------
    jobs : sequence of ShardJob
    cache : FeatureCache
    claims : Claims
        Of the pass that the jobs belong to; whoever commits a shard releases its claim.
    done_elsewhere : callable (ShardJob)
        Called with each job of which others have made all.
    """

    def __init__(
        self,
        jobs: Sequence[ShardJob],
        cache: FeatureCache,
        claims: Claims,
        done_elsewhere: Callable[[ShardJob], None],
    ) -> None:
        self._left = list(jobs)
        self._cache, self._claims, self._done_elsewhere = cache, claims, done_elsewhere
        self._arrays: dict[Target, CachedArray] = {}
        self._waits, self._said = 0, False

    def rounds(self) -> Iterator[Iterator[ShardJob]]:
        """Yield the jobs of one round after the other until nothing is left, with a pause in between.

        What is drawn in a round has to be handed to the writer before the next one, so that nobody who waits
        holds what another one waits for.
        """
        while self._left:
            before = len(self._left)
            yield self._drawn()
            if self._left:
                self._wait(in_vain=len(self._left) == before)

    def _drawn(self) -> Iterator[ShardJob]:
        """Yield the jobs that nobody else is at, as far as they are still to be done; never waits."""
        jobs, self._left = self._left, []
        for job in jobs:
            if not self._still(job).targets:
                self._done_elsewhere(job)
            elif not self._claims.take(str(job.shard)):
                self._left.append(job)
            elif (still := self._still(job)).targets:  # committed, and released, before we claimed it
                yield still
            else:
                self._claims.release(str(job.shard))
                self._done_elsewhere(job)

    def _still(self, job: ShardJob) -> ShardJob:
        """Return a job with those of its targets that still lack the shard."""
        targets = tuple(target for target in job.targets if not self._is_committed(target, job.shard))
        reused = {target: rows for target, rows in job.reused.items() if target in targets}
        return job if targets == job.targets else replace(job, targets=targets, reused=reused)

    def _is_committed(self, target: Target, shard: int) -> bool:
        if target not in self._arrays:
            try:
                self._arrays[target] = self._cache.array(target.key)
            except FeaturesNotCached:
                return False
        return self._arrays[target].is_committed(shard)

    def _wait(self, *, in_vain: bool) -> None:
        """Pause, longer after each pause in vain; say once who is waited for."""
        self._waits = self._waits + 1 if in_vain else 0
        if self._waits == _PATIENCE and not self._said:
            self._said = True
            owner = self._claims.holder(str(self._left[0].shard)) or "another run"
            more = f" and {len(self._left) - 1} more" if len(self._left) > 1 else ""
            warnings.warn(
                f"Waiting for shard {self._left[0].shard}{more}: {owner} is at work on it. It is taken over when "
                "that gives no sign of life.",
                stacklevel=2,
            )
        time.sleep(min(_PAUSE, 0.1 * 2**self._waits))
