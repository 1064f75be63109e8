"""The part of a network that stays as it is, computed once an image.

The outputs at the last layer before anything that is trained or random are kept. A later pass lets the layers up
to there return, without computing, what is kept, and empty tensors of the right shape before that; so no network
has to be taken apart or rewritten. Whether a network can go on from there is tried out on some images.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from featpipe.extraction._images import padded
from featpipe.models import ModelCard, Tap, Tapped
from featpipe.tuning.images._row_memory import ACTIVATIONS, Rows, RowStore
from featpipe.tuning.network._trace import Cut, Trace, blank, standing_in
from featpipe.tuning.network._trial import Trial, trial

CHUNK = 16  # images of one pass that fills the store: always as many, since last bits depend on it
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


class Prefix:
    """The outputs of a network's frozen part by image, and the passes that go on from them.

    Parameters
    ----------
    layers : dict of str to nn.Module
        The network's layers by name; ``output`` is the network itself.
    card : ModelCard
    taps : dict of Tap to tuple of int
        What is read, and the shape of its rows.
    trace : Trace
    cut : Cut
        One of the trace's.

    Attributes
    ----------
    kept : tuple of str
        Layers whose outputs are kept.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        card: ModelCard,
        taps: Mapping[Tap, tuple[int, ...]],
        trace: Trace,
        cut: Cut,
    ) -> None:
        network = layers["output"]
        early = [tap for tap in taps if trace.left[tap.layer, tap.call or 0] <= cut.clock]
        late = {tap: _renumbered(tap, trace, cut) for tap in taps if tap not in early}
        end = cut.calls[-1]
        edge = _Edge(end.layer, end.number)
        self._early, self._late, self._cut, self._layers = early, late, cut, layers
        self._first = _WithRaw(network, early, raw=edge if late else None, card=card)
        self._first.row_shapes = {tap: taps[tap] for tap in early}
        if late:
            self._first.row_shapes[edge] = tuple(end.output.shape[1:])
        self._rest = Tapped(network, list(late.values()), card=card)
        self._rest.row_shapes = {own: taps[tap] for tap, own in late.items()}
        self.kept = tuple(dict.fromkeys([*([end.layer] if late else []), *(tap.layer for tap in early)]))
        self._turned: tuple[bool, ...] | None = None
        self._about = (card.architecture, card.model_args, card.code, str(card.preprocessing.to_json()))
        self._stores: dict[Any, RowStore] = {}
        self._frozen = dict(_tensors(layers, cut))
        self._version = -1
        self._key: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is left to compute."""
        return not self._late

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What must stay as it is."""
        return list(self._frozen.values())

    def rows(
        self,
        labels: Sequence[Any],
        pixels: Callable[[np.ndarray], torch.Tensor],
        device: torch.device,
        expected: int = 0,
    ) -> Rows:
        """Return what is kept of a batch, computing and keeping what is missing.

        Parameters
        ----------
        labels : sequence of hashable, length n_batch
            Image, and view of it.
        pixels : callable (places) -> tensor of shape (len(places), 3, height, width)
            Images at some places of the batch.
        device : torch.device
        expected : int
            Labels that there will be.
        """

        def compute(places: np.ndarray) -> Rows:
            parts = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
            found = [self.compute(pixels(padded(part, CHUNK))) for part in parts]
            joined = (torch.cat(values)[: len(places)] for values in zip(*found, strict=True))
            return tuple(joined)

        with torch.inference_mode(False), torch.no_grad():
            return self._store(device, expected).take_or(labels, compute, device=device)

    def compute(self, pixels: torch.Tensor) -> Rows:
        """Return what is kept of some images: maps with their channels last where the network has them so."""
        with torch.no_grad(), self._first as first:
            found = list(first(pixels).values())
        if self._turned is None:
            self._turned = tuple(map(_is_channels_last, found))
        return tuple(
            value.permute(0, 2, 3, 1) if turned else value
            for value, turned in zip(found, self._turned, strict=True)
        )

    def resume(self, rows: Rows, image_shape: Sequence[int]) -> dict[Tap, torch.Tensor]:
        """Return every tap's rows, going on from what is kept.

        Parameters
        ----------
        rows : tuple of tensors
            As `rows` gives them.
        image_shape : (3, height, width)
        """
        assert self._turned is not None
        turned = zip(rows, self._turned, strict=True)
        values = [value.permute(0, 3, 1, 2) if last else value for value, last in turned]
        found = dict(zip(self._early, values, strict=False))
        if self._late:
            empty = values[-1].new_zeros((), dtype=torch.float32).expand(len(values[-1]), *image_shape)
            with standing_in(self._layers, self._outputs(values[-1])), self._rest as rest:
                late = rest(empty)
            found |= {tap: late[own] for tap, own in self._late.items()}
        return found

    def _outputs(self, edge: torch.Tensor) -> dict[str, list[torch.Tensor | None]]:
        """Return what the layers before the cut return, in the order of their calls."""
        outputs: dict[str, list[torch.Tensor | None]] = {}
        for call in self._cut.calls[:-1]:
            outputs.setdefault(call.layer, []).append(blank(call.output, len(edge), edge.device))
        outputs.setdefault(self._cut.calls[-1].layer, []).append(edge)
        return outputs

    def _store(self, device: torch.device, expected: int) -> RowStore:
        version = sum(tensor._version for tensor in self.parameters)
        if version != self._version:
            self._version = version
            self._key = (*self._about, _digest(self._layers, self._cut, self._frozen), self._places())
            self._stores.clear()
        precision = _precision(device)
        if precision not in self._stores:
            self._stores[precision] = ACTIVATIONS.of((*self._key, precision), expected=expected)
        return self._stores[precision]

    def _places(self) -> tuple[Any, ...]:
        ends = tuple((call.layer, call.number) for call in self._cut.calls[-1:]) if self._late else ()
        return (ends, tuple(self._early), self._turned)


def find_prefix(
    layers: Mapping[str, nn.Module],
    card: ModelCard,
    taps: Mapping[Tap, tuple[int, ...]],
    pixels: torch.Tensor,
    *,
    trace: Trace,
    whole: Trial,
) -> Prefix | None:
    """Return the longest frozen prefix that a network can go on from, or None where there is none.

    A cut inside a residual block loses what goes around it; then the beginning of the block is tried, and of
    what is around that. A pass that goes on must agree with a whole one, and so must its gradients.

    Parameters
    ----------
    layers, card, taps
        See `Prefix`.
    pixels : tensor of shape (TRACED, 3, height, width)
        Images, no two alike.
    trace, whole : Trace, Trial
        Of a whole pass over these images.

    Warns
    -----
    UserWarning
        There is a frozen part, but the network cannot go on from its end.
    """
    cuts = [cut for cut in trace.cuts if any(_has_weights(layers[call.layer]) for call in cut.calls)]
    for cut in cuts:
        try:
            prefix = Prefix(layers, card, taps, trace, cut)
            kept = prefix.compute(pixels)
            found = trial(lambda: prefix.resume(kept, pixels.shape[1:]), list(whole.gradients))  # noqa: B023
        except _FAILURES:
            continue
        if whole.agrees(found):
            return prefix
    if cuts:
        warnings.warn(
            f"{card.architecture} cannot go on from the end of its frozen part ({cuts[0].calls[-1].layer}), so that "
            "part is computed in every epoch. Freeze whole blocks to have it computed once.",
            stacklevel=4,
        )
    return None


def _has_weights(layer: nn.Module) -> bool:
    return next(layer.parameters(), None) is not None


class _Edge(Tap):
    """The last layer of the prefix, which is kept as it comes."""


class _WithRaw(Tapped):
    """A network whose layers are read, one of them as it comes."""

    def __init__(self, module: nn.Module, taps: Sequence[Tap], *, raw: Tap | None, card: ModelCard) -> None:
        super().__init__(module, taps if raw is None else [*taps, raw], card=card)
        if raw is not None:
            self._reducers[raw] = torch.clone  # a later layer may overwrite it

    def __call__(self, batch: torch.Tensor) -> dict[Tap, torch.Tensor]:
        rows = super().__call__(batch)
        return {tap: rows[tap] for tap in self._reducers}


def _renumbered(tap: Tap, trace: Trace, cut: Cut) -> Tap:
    """Count a layer's calls without those that a pass that goes on does not make."""
    return tap if tap.call is None else replace(tap, call=tap.call - trace.hidden(tap.layer, cut))


def _tensors(layers: Mapping[str, nn.Module], cut: Cut) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers that what is kept may depend on."""
    for name in dict.fromkeys(call.layer for call in cut.calls):
        for own, tensor in [*layers[name].named_parameters(), *layers[name].named_buffers()]:
            yield f"{name}:{own}", tensor
    for name in cut.open:
        layer = layers[name]
        for own, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if not tensor.requires_grad:
                yield f"{name}:{own}", tensor


def _digest(layers: Mapping[str, nn.Module], cut: Cut, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of what is kept depends on: kinds of layers, and their weights as they are now."""
    digest = hashlib.sha256()
    for call in cut.calls:
        for layer in layers[call.layer].modules():
            digest.update(f"{type(layer).__qualname__} {vars(layer).get('forward')!r}\0".encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(plain.view(torch.uint8).numpy() if plain.numel() else b"")
    return digest.hexdigest()


def _precision(device: torch.device) -> tuple[Any, ...]:
    """Return what the arithmetic of a pass depends on besides its numbers."""
    low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return device.type, low, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def _is_channels_last(value: torch.Tensor) -> bool:
    return (
        value.ndim == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )
