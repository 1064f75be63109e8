"""What passes between the process that leads an extraction and its workers: values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass

from featpipe.extraction._order import Means, Order, Target
from featpipe.models import ModelCard
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

LAG = 70.0  # seconds until a network file system shows everywhere what one machine wrote


@dataclass(frozen=True)
class Parcel:
    """What a worker is told once.

    Parameters
    ----------
    version : str
        Of featpipe.
    order, stimuli, cache, means, card
        See `featpipe.extraction.extract`.
    parts : tuple of tuple of Target
        Targets of each view that lacks something.
    """

    version: str
    order: Order
    stimuli: StimulusSet
    cache: FeatureCache
    means: Means
    card: ModelCard
    parts: tuple[tuple[Target, ...], ...]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard of one part, and the batch size that all workers have."""

    part: int
    shard: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What all workers have to do alike: rows a shard, images a batch of each part, 0 where none is computed."""

    shard_rows: int
    batch_sizes: tuple[int, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """Images of a shard that were computed and copied, and the device if there was one."""

    n_computed: int
    n_reused: int
    device: str = ""
