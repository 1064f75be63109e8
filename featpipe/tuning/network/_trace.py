"""The order of calls in one forward pass, and the places where what is frozen ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featpipe.models import Tap
from featpipe.models._hooks import elements_of

TRACED = 4  # images of a traced pass


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Parameters
    ----------
    layer : str
    number : int
        Of the layer's calls in a pass, from 0.
    output : Any
        Tensors on the meta device, for their shapes.
    """

    layer: str
    number: int
    output: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Cut:
    """A moment in a pass.

    Parameters
    ----------
    calls : tuple of Call
        What was complete, in order; a call stands for those within it.
    open : tuple of str
        Layers that had begun.
    clock : int
    """

    calls: tuple[Call, ...]
    open: tuple[str, ...]
    clock: int


class Trace:
    """What one pass showed.

    Attributes
    ----------
    cuts : list of Cut
        The latest moment, until all taps were read, at which nothing depended on what is trained or random; then
        the moments at which the layers around it began, inside first. Empty if the very beginning is trained.
    left : dict of (layer, call) to int
        When each call was complete.
    """

    def __init__(self, random: Collection[str], taps: Sequence[Tap]) -> None:
        self.cuts: list[Cut] = []
        self.left: dict[tuple[str, int], int] = {}
        self._random = random
        self._wanted = {(tap.layer, tap.call or 0) for tap in taps}
        self._calls: Counter[str] = Counter()
        self._open: list[tuple[str, int, int]] = []  # name, calls complete before, clock
        self._complete: list[Call] = []
        self._clock = 0
        self._free = True  # of what is trained or random, so far

    def start(self, name: str, inputs: Any) -> None:
        """Note that a layer begins."""
        if self._free and (name in self._random or _requires_grad(inputs)):
            self._cut()
        self._open.append((name, len(self._complete), self._clock))

    def leave(self, name: str, output: Any) -> None:
        """Note that a layer has given its output."""
        if self._free and _requires_grad(output):
            self._cut()
        _, before, _ = self._open.pop()
        self._clock += 1
        self.left[name, self._calls[name]] = self._clock
        self._complete[before:] = [Call(name, self._calls[name], _shapes(output))]
        self._calls[name] += 1
        self._wanted.discard((name, self._calls[name] - 1))
        if self._free and not self._wanted:
            self._cut()

    def hidden(self, layer: str, cut: Cut) -> int:
        """Return how many calls of a layer lie within the complete calls of a cut."""
        before = sum(name == layer and clock <= cut.clock for (name, _), clock in self.left.items())
        return before - sum(call.layer == layer for call in cut.calls)

    def _cut(self) -> None:
        self._free = False
        names = [name for name, _, _ in self._open]
        found = [Cut(tuple(self._complete), tuple(names), self._clock)]
        for depth, (_, before, clock) in reversed(list(enumerate(self._open))):
            found.append(Cut(tuple(self._complete[:before]), tuple(names[:depth]), clock))
        self.cuts = [cut for cut in dict.fromkeys(found) if cut.calls]


@contextmanager
def tracing(layers: Mapping[str, nn.Module], trace: Trace) -> Iterator[None]:
    """Let a trace see every call of some layers, until the block ends."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            before = layer.register_forward_pre_hook(
                lambda _layer, args, kwargs, name=name: trace.start(name, (*args, *kwargs.values())),
                with_kwargs=True,
            )
            after = layer.register_forward_hook(
                lambda _layer, _args, output, name=name: trace.leave(name, output)
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


@contextmanager
def standing_in(
    layers: Mapping[str, nn.Module], outputs: Mapping[str, Sequence[torch.Tensor | None]]
) -> Iterator[None]:
    """Let the first calls of some layers return given outputs, None being computed, until the block ends."""
    with ExitStack() as stack:
        for name, given in outputs.items():
            own = vars(layers[name]).get("forward")
            stack.callback(_set_forward, layers[name], own)
            _set_forward(layers[name], _instead(list(given), layers[name].forward))
        yield


def blank(output: Any, n_rows: int, device: torch.device) -> torch.Tensor | None:
    """Return zeros of the shape that a call gives for a number of images, without taking memory.

    Returns None where the output is not one tensor with the image as first axis: it must then be computed.
    """
    if not isinstance(output, torch.Tensor) or output.ndim == 0 or len(output) != TRACED:
        return None
    return output.new_zeros((), device=device).expand(n_rows, *output.shape[1:])


def _instead(outputs: list[torch.Tensor | None], compute: Callable[..., Any]) -> Callable[..., Any]:
    left = iter(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = next(left, None)
        return compute(*args, **kwargs) if given is None else given

    return forward


def _set_forward(layer: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward


def _shapes(output: Any) -> Any:
    elements = elements_of(output)
    if elements is not None:
        return {key: _shapes(value) for key, value in elements.items()}
    return output.detach().to("meta") if isinstance(output, torch.Tensor) else output


def _requires_grad(value: Any) -> bool:
    elements = elements_of(value)
    if elements is not None:
        return any(map(_requires_grad, elements.values()))
    return isinstance(value, torch.Tensor) and value.requires_grad
