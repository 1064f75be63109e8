"""Every layer of a network as one forward pass shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featpipe.models._backbone import Backbone
from featpipe.models._hooks import elements_of, every_module_called, hooked


@dataclass(frozen=True)
class LayerInfo:
    """What one forward pass showed of a layer.

    Parameters
    ----------
    name : str
    kind : str
        Class of the module.
    shape : tuple of int or None
        Of one image's output in its first call, as the network has it; None where that is not one tensor
        with the image as first axis.
    calls : int
        In one pass.
    elements : tuple of str
        Of a tuple or dict.
    reason : str
        Why the layer cannot be stored by its bare name; empty when it can.
    depends_on_missing : bool
        Parameters that the weights file lacks were used before the output was complete.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    calls: int
    elements: tuple[str, ...] = ()
    reason: str = ""
    depends_on_missing: bool = False

    @property
    def values(self) -> int | None:
        """Values per image, None without a shape."""
        return None if self.shape is None else int(torch.Size(self.shape).numel())


def describe(backbone: Backbone, batch: int = 2) -> list[LayerInfo]:
    """Run one full forward pass over black images and return a `LayerInfo` per layer, in network order."""
    size = backbone.card.preprocessing.input_size or (224, 224)
    device = next((p.device for p in backbone.module.parameters()), torch.device("cpu"))
    images = torch.zeros(batch, 3, *size, device=device)
    layers = {name or "output": layer for name, layer in backbone.module.named_modules()}
    trace = _Trace(layers, set(backbone.card.missing))
    with torch.inference_mode(), hooked(layers, trace.leave), every_module_called():
        started = [
            layer.register_forward_pre_hook(lambda _layer, _input, name=name: trace.start(name))
            for name, layer in layers.items()
        ]
        try:
            backbone.module(images)
        finally:
            for hook in started:
                hook.remove()
    trace.settle()
    names = [name for name in backbone.card.layers if name in layers]
    return [_info(name, layers[name], trace, batch) for name in names]


class _Trace:
    """What happened in one pass: first outputs, calls, and when each layer started and was left."""

    def __init__(self, layers: dict[str, nn.Module], missing: set[str]) -> None:
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, Any] = {}
        self.left: dict[str, int] = {}
        self._started: dict[str, int] = {}
        self._clock = 0
        self._owners = {name.rpartition(".")[0] or "output" for name in missing}
        self._poisoned_at: int | None = None

    def start(self, name: str) -> None:
        self._clock += 1
        self._started.setdefault(name, self._clock)

    def leave(self, name: str, output: Any) -> None:
        self._clock += 1
        self.left[name] = self._clock
        if not self.calls[name]:
            self.shapes[name] = _shape(output)
        self.calls[name] += 1

    def settle(self) -> None:
        """Find when the first missing parameter was used: when its layer started.

        A layer that is never called, as the output projection of torch's attention, is used by the nearest
        one around it that is.
        """
        moments = [self._started[_called(owner, self._started)] for owner in self._owners]
        self._poisoned_at = min(moments, default=None)

    def depends_on_missing(self, name: str) -> bool:
        return self._poisoned_at is not None and self.left.get(name, 0) > self._poisoned_at


def _called(name: str, started: dict[str, int]) -> str:
    while name not in started:
        name = name.rpartition(".")[0] or "output"
    return name


def _shape(output: Any) -> Any:
    """Return a tensor's shape, the shapes of elements, or the name of another type."""
    elements = elements_of(output)
    if elements is not None:
        return {key: _shape(value) for key, value in elements.items()}
    return tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__


def _info(name: str, layer: nn.Module, trace: _Trace, batch: int) -> LayerInfo:
    calls, shape = trace.calls[name], trace.shapes.get(name)
    has_rows = isinstance(shape, tuple) and len(shape) > 0 and shape[0] == batch
    poisoned = trace.depends_on_missing(name)
    if calls == 0:
        reason = "never called in a forward pass"
    elif isinstance(shape, dict):
        reason = f"returns several values; ask for {', '.join(f'{name}/{key}' for key in shape)}"
    elif isinstance(shape, str):
        reason = f"returns a {shape}, which is no tensor"
    elif not has_rows:
        reason = f"its first axis is not the image: {shape} for {batch} images"
    elif calls > 1:
        reason = f"called {calls} times; ask for {name}@0 to {name}@{calls - 1}"
    else:
        reason = "depends on weights that the file lacks" if poisoned else ""
    return LayerInfo(
        name=name,
        kind=type(layer).__name__,
        shape=shape[1:] if has_rows and isinstance(shape, tuple) else None,
        calls=calls,
        elements=tuple(shape) if isinstance(shape, dict) else (),
        reason=reason,
        depends_on_missing=poisoned,
    )
