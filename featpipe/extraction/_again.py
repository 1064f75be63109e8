"""The network of cached arrays once more: what made them, and whether what is at hand now is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featpipe.errors import RequestError, SpecError, StimulusError
from featpipe.extraction._order import Order, Target
from featpipe.models import ModelCard, ModelRequest, resolve
from featpipe.spec import REDUCTION_VERSIONS, FeatureSpec, LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import CachedArray, sound_commits
from featpipe.views import USUAL, Augmentation

IMPORTED = "imported:"
How = tuple[int, str]  # batch size and memory format


@dataclass(frozen=True)
class Again:
    """A cached array with all that it takes to compute its rows again.

    Parameters
    ----------
    array : CachedArray
    request : ModelRequest
    card : ModelCard
        What the request resolves to now; it gives the spec of the array.
    stimuli : StimulusSet
        The images of the array, in its order.
    how : mapping of int to (batch size, memory format)
        Of the shards that record it.
    devices : tuple of str
        On which the shards were computed.
    """

    array: CachedArray
    request: ModelRequest
    card: ModelCard
    stimuli: StimulusSet
    how: Mapping[int, How] = field(default_factory=dict)
    devices: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """The array as an extraction fills it."""
        layers = self.card.layers
        return Target(self.array.spec, self.array.key, layers.index(self.array.spec.layer), call_given=True)

    @property
    def work(self) -> tuple[Any, ...]:
        """What arrays have in common that come from one forward pass."""
        spec = self.array.spec
        seen = spec.view, spec.augmentation, spec.view_seed
        return self.request, spec.precision, *seen, self.array.stimuli_digest

    @property
    def order(self) -> Order:
        """What to extract to get this array."""
        spec = self.array.spec
        made_by = Augmentation.parse(spec.augmentation) if spec.augmentation else USUAL
        layer = LayerRequest(spec.layer_label, spec.reduction)
        return Order(
            self.request, (layer,), spec.store_dtype, spec.precision, spec.view, made_by, spec.view_seed
        )

    def device(self, name: str) -> str:
        """Return the device to use: ``auto`` is the kind on which the rows were computed."""
        return "cpu" if name == "auto" and set(self.devices) == {"cpu"} else name


def request_again(spec: FeatureSpec, asked: str, weights: str, *, trust: bool = False) -> ModelRequest:
    """Return the request that gives the network of these features, by the name that was asked for."""
    prep = spec.preprocessing
    assert prep is not None, "imported arrays have no network"
    return ModelRequest(
        model=asked,
        weights=weights or "default",
        model_args=spec.model_args,
        preprocess=prep.mode,
        mean=prep.mean,
        std=prep.std,
        image_size=prep.input_size,
        interpolation=prep.interpolation,
        trust=trust,
    )


def plan_again(
    arrays: Iterable[CachedArray],
    images: StimulusSet,
    *,
    model: str | None = None,
    weights: str | None = None,
    trust: bool = False,
) -> list[Again]:
    """Find the network and the images of arrays, and check that they are those of before.

    Parameters
    ----------
    arrays : iterable of CachedArray
        None of them imported.
    images : StimulusSet
        Holds their images, in any order and under any ids, and perhaps others.
    model, weights : str, optional
        Where the network and its weights are now; by default what the arrays record.
    trust : bool
        Execute the file of a ``python:`` model.

    Raises
    ------
    RequestError
        An array is imported, does not say what made it, or is of another network, other weights, another
        preprocessing or other images than those at hand.
    """
    cards: dict[ModelRequest, ModelCard] = {}
    sets: dict[str, StimulusSet] = {}
    plans = []
    for array in arrays:
        _refuse_imported(array)
        records = dict(_records(array))
        request = _request(array, records.values(), model, weights, trust)
        if request not in cards:
            cards[request] = resolve(request)
        _require_same(array, cards[request], request)
        if array.stimuli_digest not in sets:
            sets[array.stimuli_digest] = _images_of(array, images)
        how = {
            s: (int(p["batch_size"]), str(p["memory_format"]))
            for s, p in records.items()
            if "batch_size" in p
        }
        devices = tuple(sorted({str(p["device"]) for p in records.values() if "device" in p}))
        plans.append(Again(array, request, cards[request], sets[array.stimuli_digest], how, devices))
    return plans


def how_of(plan: Again, shard: int, others: Sequence[Again] = ()) -> How | None:
    """Return how a shard was computed; where it does not say, as those beside it were, None if none does."""
    if shard in plan.how:
        return plan.how[shard]
    beside = [
        *plan.how.values(),
        *(how for other in others if other.work == plan.work for how in other.how.values()),
    ]
    return Counter(beside).most_common(1)[0][0] if beside else None


def _refuse_imported(array: CachedArray) -> None:
    if array.spec.model.startswith(IMPORTED):
        raise RequestError(
            f"Array {array.key[:12]} is {array.spec.model}, which no network made, so it cannot be computed again. "
            "Leave out its key; damaged shards of it come back with `featpipe cache import`."
        )


def _records(array: CachedArray) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield shard and provenance of every commit record that can be read."""
    for record in sound_commits(array.location, array.base, array.layout):
        yield record["shard"], record["provenance"]


def _request(
    array: CachedArray,
    records: Iterable[Mapping[str, Any]],
    model: str | None,
    weights: str | None,
    trust: bool,
) -> ModelRequest:
    said = next((record for record in records if "model_asked" in record), {})
    asked = model or str(said.get("model_asked") or "")
    if not asked and (weights is None or array.spec.model.startswith("python:")):
        raise RequestError(
            f"Array {array.key[:12]} does not say any more which weights of {array.spec.model} made it. Name them "
            "with --weights, and a model of your own with --model."
        )
    if weights is not None and asked.startswith("local:") and model is None:
        asked = array.spec.model  # a file of weights stands for the checkpoint
    usual = "default" if model else str(said.get("weights_asked") or "default")
    return request_again(array.spec, asked or array.spec.model, weights or usual, trust=trust)


def _require_same(array: CachedArray, card: ModelCard, request: ModelRequest) -> None:
    """Refuse a network that would give other features than the array's."""
    spec = array.spec
    if spec.layer not in card.layers:
        raise RequestError(
            f"Array {array.key[:12]} is layer {spec.layer!r}, which {request.model} does not have."
        )
    now = replace(
        spec,
        model=card.architecture,
        weights=card.weights,
        preprocessing=card.preprocessing,
        model_args=card.model_args,
        code=card.code,
        prefix_tokens=card.prefix_tokens_of(spec.layer),
        layout=card.layout_of(spec.layer),
        reduction_version=REDUCTION_VERSIONS[spec.reduction.kind],
    ).to_json()
    then = spec.to_json()
    differing = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if differing:
        came = ", ".join(f"{name} {_short(now.get(name))}" for name in differing)
        right = ", ".join(f"{name} {_short(then.get(name))}" for name in differing)
        raise SpecError(
            f"{request.model} with weights {request.weights} is not what array {array.key[:12]} was made with: it has "
            f"{came}, and {right} would be right. Name the weights of then with --weights."
        )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def _images_of(array: CachedArray, images: StimulusSet) -> StimulusSet:
    try:
        return images.arranged(array.manifest)
    except StimulusError as error:
        raise StimulusError(
            f"These are not the images of array {array.key[:12]} ({array.manifest.name or array.stimuli_digest[:12]}): "
            f"{error}"
        ) from error
