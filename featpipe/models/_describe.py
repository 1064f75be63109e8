"""Every layer of a network as one forward pass shows it."""

from __future__ import annotations

from dataclasses import dataclass

from featpipe.models._backbone import Backbone


@dataclass(frozen=True)
class LayerInfo:
    """What one forward pass showed of a layer.

    Parameters
    ----------
    name : str
    kind : str
        Class of the module.
    shape : tuple of int or None
        Of one image's output (of the first call), channels as the network has them; None without a tensor.
    calls : int
    elements : tuple of str
        Of a tuple or dict output.
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


def describe(backbone: Backbone, batch: int = 2) -> list[LayerInfo]:
    """Run one full forward pass over noise and return a `LayerInfo` per layer, in network order."""
    raise NotImplementedError
