"""What to extract and how, and what was done: plain values that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featpipe.errors import SpecError
from featpipe.models import ModelCard, ModelRequest
from featpipe.spec import FeatureSpec, LayerRequest
from featpipe.store import CLAIM_EXPIRY
from featpipe.views import USUAL, Augmentation, View

LEAST_BATCH = 8  # rows are bit-equal for batches of a multiple of 8
NON_FINITE = ("refuse", "keep")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What to extract: all that enters the cache keys, the images aside.

    Parameters
    ----------
    model : ModelRequest
    layers : tuple of LayerRequest
    store_dtype, precision : str
    n_views : int
        Augmented views of every image, numbered from 1, besides the image itself.
    augmentation : Augmentation
    view_seed : int
    """

    model: ModelRequest
    layers: tuple[LayerRequest, ...]
    store_dtype: str = "float32"
    precision: str = "fp32"
    n_views: int = 0
    augmentation: Augmentation = USUAL
    view_seed: int = 0

    def __post_init__(self) -> None:
        if self.n_views < 0:
            raise SpecError(f"The number of views is {self.n_views}; it must be 0, for none, or more.")
        if not self.layers:
            raise SpecError("No layer was asked for. Name at least one, such as --layers 'layer3:mean'.")

    @property
    def views(self) -> list[View]:
        """The image itself, then its augmented views."""
        return [View(number, self.augmentation, self.view_seed) for number in range(self.n_views + 1)]


@dataclass(frozen=True, slots=True)
class Target:
    """One array to fill: its features, its key, and where its layer stands in the network."""

    spec: FeatureSpec
    key: str
    layer_order: int
    call_given: bool


def by_view(targets: Sequence[Target]) -> list[list[Target]]:
    """Return the targets of each view, those of the image itself first."""
    numbers = dict.fromkeys(target.spec.view for target in targets)
    return [[target for target in targets if target.spec.view == number] for number in sorted(numbers)]


@dataclass(frozen=True, slots=True)
class Means:
    """How to extract: nothing here enters a cache key; what rows may depend on is recorded beside them.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size : int or None
        A multiple of 8; None finds one.
    workers : int or None
        Threads that decode images; None takes one a processor.
    codec : str
        Of new arrays, see ``cache/README.md``.
    shard_rows : int or None
        Rows a shard of a new stimulus set; None takes 256, or fewer where the layers are large.
    claim_expiry : float
        Seconds without a sign of life after which a shard that another run claimed is made here. Runs on
        several machines need at least `featpipe.store.LEAST_CLAIM_EXPIRY`.
    non_finite : {"refuse", "keep"}
        Whether a layer with values that are NaN or infinite is refused, or stored as it is and counted.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    codec: str = "auto"
    shard_rows: int | None = None
    claim_expiry: float = CLAIM_EXPIRY
    non_finite: str = "refuse"

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_rows"):
            value = getattr(self, name)
            if value is not None and (value < LEAST_BATCH or value % LEAST_BATCH):
                raise SpecError(
                    f"{name.replace('_', ' ')} is {value}; it must be a multiple of {LEAST_BATCH}, because rows "
                    "of other batches differ in their last bits."
                )
        if self.workers is not None and self.workers < 1:
            raise SpecError(f"There must be at least one decoding worker, got {self.workers}.")
        if not self.claim_expiry > 0:
            raise SpecError(f"Claims expire after some seconds, got {self.claim_expiry}.")
        if self.non_finite not in NON_FINITE:
            raise SpecError(
                f"--non-finite {self.non_finite!r} is not known: refuse (the default) stops at layers with NaN or "
                "infinite values, keep stores them as they are and counts them."
            )


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Values of a layer that are NaN or infinite: how many, in how many images, and the first image's id."""

    target: Target
    n_nan: int
    n_infinite: int
    n_images: int
    first: str


@dataclass(frozen=True, slots=True)
class Extraction:
    """What an extraction did: keys of the arrays, view by view in network order, and counts of images.

    An image counts once for each of its views. `non_finite` is what the arrays hold of such values, from whichever
    run; None where they are refused, so that nothing was looked for.
    """

    card: ModelCard
    stimuli: str
    targets: tuple[Target, ...]
    n_stimuli: int
    n_computed: int
    n_reused: int
    seconds: float
    device: str = ""
    batch_size: int = 0
    n_workers: int = 0  # of dask
    non_finite: tuple[NonFinite, ...] | None = None

    @property
    def keys(self) -> list[str]:
        """Keys of the arrays, view by view, in network order."""
        return [target.key for target in self.targets]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What an extraction would do: per layer and view the shape of a row, and what the whole would cost."""

    card: ModelCard
    targets: tuple[Target, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    cached: tuple[bool, ...]
    bytes_per_row: tuple[int, ...]
    n_stimuli: int
    bytes_on_disk: int
    peak_memory: int
    seconds: float
    device: str
    batch_size: int
