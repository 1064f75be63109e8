"""A network of a tuner on the images of some ids: to be trained, and, once tuned, to be read."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from featpipe.errors import RequestError
from featpipe.extraction._forward import choose_device, precision_of
from featpipe.model_selection import merge_groups
from featpipe.models import Backbone
from featpipe.tuning._features import Layers
from featpipe.tuning._stimuli import open_stimuli
from featpipe.tuning._tuned import network_request
from featpipe.tuning.images import Images
from featpipe.tuning.network import Body, label_of, taps_of

_BATCH = 32  # images, where no gradient is needed


class NetworkOnImages(BaseEstimator):
    """What of a tuner concerns its network and images; parameters as in `Tuner`, of which it is a part."""

    micro_batch: int | None = None  # for tuners that have no such parameter

    @property
    def _taps(self) -> list[str]:
        """Layers that the training reads, as ``LAYER[:REDUCE]``."""
        return texts(self.layer)

    @property
    def _transform_taps(self) -> list[str]:
        """Layers that `transform` gives."""
        return self._taps if self.transform_layers is None else texts(self.transform_layers)

    def _module(self, body: Body) -> torch.nn.Module:
        """Return the module that a plan had, to be given its trained head; it has the body as ``body``."""
        return Bare(body)

    def _undivided(self, ids: np.ndarray, groups: Any) -> np.ndarray | None:
        """Return the groups that no split may divide: those given, and ids that show one image."""
        merged = merge_groups(ids if groups is None else groups, self._images_of(ids))
        own = None if groups is None else np.asarray(groups)
        return own if len(np.unique(merged)) == len(np.unique(ids if own is None else own)) else merged

    def _images_of(self, ids: np.ndarray) -> list[str]:
        """Return the digest of the image behind each id, and the id where there is none."""
        stimuli = open_stimuli(self.stimuli)
        place = stimuli.manifest.rows
        return [stimuli.sha256[place[name]] if name in place else name for name in ids.tolist()]

    def _body(
        self, backbone: Backbone, ids: np.ndarray, layers: Sequence[str], *, trained: bool = True
    ) -> Body:
        """Return a network with its taps on the images of some ids; to be trained, or to be read as it is."""
        images = Images(
            open_stimuli(self.stimuli),
            ids,
            backbone.card.preprocessing,
            device=choose_device(self.device),
            memory_format=torch.channels_last if backbone.card.channels_last else torch.contiguous_format,
            **{"augmentation": self.augmentation, "views": self.views} if trained else {},
            view_seed=self.seed,
        )
        if not trained:
            return Body(backbone, taps_of(layers, backbone), images, frozen="**")
        low_rank = {"lora_rank": self.lora_rank, "lora_scale": self.lora_scale, "seed": self.seed}
        more = {"frozen": self.frozen, "dropout": self.dropout, "micro_batch": self.micro_batch}
        return Body(backbone, taps_of(layers, backbone), images, **low_rank, **more)

    def _tuned_backbone(self) -> Backbone:
        return self.tuned_.backbone(network_request(self), self.checkpoints)

    def _backbone_to_read(self) -> Backbone:
        """Return the tuned network as `predict` and `transform` run it."""
        return self._tuned_backbone()

    def _load(self, ids: np.ndarray) -> Any:
        """Return the trained module for some images, in evaluation mode."""
        body = self._body(self._backbone_to_read(), ids, self._taps, trained=False)
        module = self._module(body).to(choose_device(self.device))
        module.load_state_dict(
            {name: torch.as_tensor(value) for name, value in self.head_.items()}, strict=False
        )
        return module.eval().requires_grad_(False)

    def _read(self, ids: np.ndarray, layers: Sequence[str]) -> Layers:
        """Return some layers of the tuned network for some images, by name, each (n_stimuli, *row), float32."""
        body = self._body(self._backbone_to_read(), ids, layers, trained=False).eval()
        parts: list[list[np.ndarray]] = []
        with torch.inference_mode(), precision_of("fp32", body.images.device):
            for rows in torch.arange(len(ids)).split(_BATCH):
                parts.append([tap.cpu().numpy() for tap in body(rows)])
        whole = [np.concatenate(layer) for layer in zip(*parts, strict=True)]
        return list(zip(map(label_of, body.taps), whole, strict=True))


class Bare(torch.nn.Module):
    """A network without a head."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body


def head_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the parameters and buffers of a module except those of its body, as arrays."""
    state = module.state_dict()
    return {
        name: value.detach().cpu().numpy() for name, value in state.items() if not name.startswith("body.")
    }


def texts(layers: str | Sequence[str]) -> list[str]:
    """Return layers as a list, where one may be given as text; raises `RequestError` for what is no text."""
    found = [layers] if isinstance(layers, str | Number) else list(layers)
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise RequestError(
            f"A layer is named by text, got {wrong[0]!r}; write a number quoted, such as '\"3\"'."
        )
    return found
