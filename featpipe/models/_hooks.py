"""Reading layers during a forward pass.

A hook reduces or copies what it sees at once, because a later layer may overwrite it in place. The pass ends
when the deepest requested layer has given its output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from featpipe.errors import LayerNotFound, UnsupportedOutput
from featpipe.models._card import ModelCard
from featpipe.reduce import Reducer, dims, make_reducer
from featpipe.spec import Reduction


@dataclass(frozen=True)
class Tap:
    """One layer's output and what to keep of it.

    Parameters
    ----------
    layer : str
        Its name, or ``output``.
    call : int or None
        Which call in one pass, from 0; None where there is only one.
    element : str
        Position or key within a tuple or dict.
    reduction : Reduction
    """

    layer: str
    call: int | None = None
    element: str = ""
    reduction: Reduction = field(default=Reduction("none"))


class _Done(BaseException):
    """Every tap has what it needs. Not an `Exception`, so that no network swallows it."""


class Tapped:
    """A network whose layers are read: ``with Tapped(module, taps, card=card) as tapped: tapped(batch)``.

    The first call runs a small part of the batch to the end before anything else. That shows how often each
    layer is called, which a pass that stops early cannot know, and that outputs have the image as first
    axis. Hooks are there during a call only, and removed also when it fails.

    Parameters
    ----------
    module : nn.Module
        In eval mode, on the batch's device.
    taps : sequence of Tap
    card : ModelCard, optional
        Knows prefix tokens and layouts; without one there are none, and channels come first.

    Attributes
    ----------
    dims : dict of Tap -> tuple of str
        Name of each axis of a row, after the first call.
    row_shapes : dict of Tap -> tuple of int
        Shape of a row, after the first call.

    Raises
    ------
    LayerNotFound
        When the network has no such layer.
    UnsupportedOutput
        From the first call: a layer that is not called, called several times without a number, or whose
        output cannot be stored as asked. From a later one: an output that changed its size.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap], *, card: ModelCard | None = None) -> None:
        self.dims: dict[Tap, tuple[str, ...]] = {}
        self.row_shapes: dict[Tap, tuple[int, ...]] = {}
        self._module = module
        self._layers = {tap.layer: _layer(module, tap.layer) for tap in taps}
        self._reducers = {tap: _reducer(tap, card) for tap in taps}
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._open = False

    def __call__(self, batch: torch.Tensor) -> dict[Tap, torch.Tensor]:
        """Run one forward pass: {tap: float32 tensor of shape (n, *row)} on the batch's device."""
        self.probe(batch)
        rows = self._run(batch, stop=True)
        for tap, kept in rows.items():
            if tuple(kept.shape[1:]) != self.row_shapes[tap]:
                raise UnsupportedOutput(
                    f"{_name(tap)} gave rows of shape {tuple(kept.shape[1:])} after "
                    f"{self.row_shapes[tap]}: its output varies in size with the input. "
                    "Use a fixed --image-size, or reduce it."
                )
        return rows

    def probe(self, batch: torch.Tensor) -> None:
        """Learn calls, `dims` and `row_shapes` from two or three images of a batch, if not known yet.

        Their number is not the batch's, so that a fixed first axis shows.
        """
        if not self._open:
            raise RuntimeError("Tapped runs inside `with Tapped(…) as tapped:`.")
        if self.row_shapes:
            return
        size = 3 if len(batch) == 2 else 2
        small = batch[torch.arange(size, device=batch.device) % len(batch)]
        calls: Counter[str] = Counter()
        rows = self._run(small, stop=False, calls=calls)
        for tap in self._reducers:
            _check_calls(tap, calls[tap.layer])
        self.dims = {tap: dims(tap.reduction, rows[tap].ndim) for tap in rows}
        self.row_shapes = {tap: tuple(kept.shape[1:]) for tap, kept in rows.items()}

    def _run(
        self, batch: torch.Tensor, *, stop: bool, calls: Counter[str] | None = None
    ) -> dict[Tap, torch.Tensor]:
        rows: dict[Tap, torch.Tensor] = {}
        calls = Counter() if calls is None else calls

        def keep(layer: str, output: Any) -> None:
            for tap, reduce in self._reducers.items():
                if tap.layer == layer and (tap.call or 0) == calls[layer]:
                    rows[tap] = reduce(_tensor(tap, output, len(batch)))
            calls[layer] += 1
            if stop and len(rows) == len(self._reducers):
                raise _Done

        with hooked(self._layers, keep), every_module_called(), suppress(_Done):
            self._module(batch)
        return rows


@contextmanager
def hooked(layers: Mapping[str, nn.Module], see: Callable[[str, Any], None]) -> Any:
    """Call ``see(name, output)`` after each call of these layers, until the block ends."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(lambda _layer, _input, output, name=name: see(name, output))
            hooks.callback(hook.remove)
        yield


@contextmanager
def every_module_called() -> Any:
    """Turn off the fused attention of torch, which computes whole blocks without calling their layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def elements_of(output: Any) -> dict[str, Any] | None:
    """Return the elements of a tuple, list or dict by the name that a request gives them, else None."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return {str(position): value for position, value in enumerate(output)}
    return None


def _layer(module: nn.Module, name: str) -> nn.Module:
    """Find a layer; ``output`` is the network itself."""
    if name == "output":
        return module
    found = dict(module.named_modules()).get(name)
    if found is None or not name:
        raise LayerNotFound(f"The network has no layer {name!r}. `featpipe layers MODEL` lists them.")
    return found


def _reducer(tap: Tap, card: ModelCard | None) -> Reducer:
    if card is None:
        return make_reducer(tap.reduction, name=_name(tap))
    return make_reducer(
        tap.reduction,
        prefix_tokens=card.prefix_tokens_of(tap.layer),
        class_token=card.class_token,
        layout=card.layout_of(tap.layer),
        name=_name(tap),
        input_size=card.preprocessing.input_size or (1, 1),
    )


def _tensor(tap: Tap, output: Any, batch_size: int) -> torch.Tensor:
    """Return the tensor that a tap asks for; raises `UnsupportedOutput` when there is none with rows."""
    elements = elements_of(output)
    if elements is not None:
        if tap.element not in elements:
            raise UnsupportedOutput(
                f"{tap.layer} returns a {type(output).__name__} and not one tensor. Ask for one element: "
                + ", ".join(f"{tap.layer}/{name}" for name in elements)
            )
        output = elements[tap.element]
    elif tap.element:
        raise UnsupportedOutput(
            f"{tap.layer} returns a {type(output).__name__}; it has no element {tap.element!r}."
        )
    if not isinstance(output, torch.Tensor):
        raise UnsupportedOutput(f"{_name(tap)} returns a {type(output).__name__}, which is no tensor.")
    if output.ndim == 0 or output.shape[0] != batch_size:
        raise UnsupportedOutput(
            f"{_name(tap)} gives shape {tuple(output.shape)} for {batch_size} images: its first axis is not "
            "the image (windows, or sequence first). Ask for the block around it."
        )
    return output


def _check_calls(tap: Tap, calls: int) -> None:
    if calls == 0:
        raise UnsupportedOutput(
            f"{tap.layer} is never called in a forward pass (a part for training, or one whose weights are "
            "used without calling it). Ask for the block around it."
        )
    if tap.call is None and calls > 1:
        names = ", ".join(f"{tap.layer}@{call}" for call in range(min(calls, 4)))
        raise UnsupportedOutput(f"{tap.layer} is called {calls} times in one pass. Say which: {names}.")
    if tap.call is not None and tap.call >= calls:
        raise UnsupportedOutput(
            f"{_name(tap)} does not exist: {tap.layer} is called {calls} times in one pass, counted from 0."
        )


def _name(tap: Tap) -> str:
    call = "" if tap.call is None else f"@{tap.call}"
    return tap.layer + call + (f"/{tap.element}" if tap.element else "")
