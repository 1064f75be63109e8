"""Tuned weights: held by the estimator, or kept in a file that it refers to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featpipe.errors import ModelError
from featpipe.models import Backbone, ModelRequest, load, save_checkpoint
from featpipe.models._weights import weights_digest
from featpipe.rsa import RDMs
from featpipe.spec import canonical_json
from featpipe.tuning.network import Body

# Parameters that cannot change a weight
_ELSEWHERE = {
    "stimuli",
    "checkpoints",
    "callback",
    "trust",
    "cross_fit",
    "output",
    "transform_layers",
    "device",
}
# Those of the network count by what they come to: a file may have moved
_NETWORK = {"model", "weights", "model_args", "preprocess", "image_size", "mean", "std"}


class TunedWeights:
    """What training has made of a network.

    Parameters
    ----------
    digest : str
        Of all weights of the tuned network.
    arrays : dict of str to ndarray, optional
        Parameters that were trained.
    file : str, optional
        Instead: name of a checkpoint in the tuner's folder.
    """

    def __init__(self, digest: str, arrays: dict[str, np.ndarray] | None, file: str | None) -> None:
        self.digest = digest
        self.arrays = arrays
        self.file = file

    def backbone(self, request: ModelRequest, folder: Any) -> Backbone:
        """Return the tuned network, under what a request says of its preprocessing.

        Raises
        ------
        ModelError
            The checkpoint is gone, or holds other weights.
        """
        if self.file is None:
            backbone = load(request)
            arrays = {name: torch.as_tensor(value) for name, value in (self.arrays or {}).items()}
            backbone.module.load_state_dict(arrays, strict=False)
            return self._checked(backbone, request.model)
        path = Path(folder or ".") / self.file
        if not path.is_file():
            raise ModelError(
                f"The tuned weights {path} are not there. The tuner holds a reference to them: set checkpoints= to the "
                "folder that has the file, or fit again."
            )
        local = replace(request, model=f"local:{path}", weights="default", model_args=())
        return self._checked(load(local), str(path))

    def _checked(self, backbone: Backbone, name: str) -> Backbone:
        digest = weights_digest(backbone.module, backbone.card.missing)
        if digest != self.digest:
            raise ModelError(
                f"{name} gives weights {digest[:8]}, and this tuner's are {self.digest[:8]}. Give the network that it "
                "was fitted with, or fit again."
            )
        return replace(backbone, card=replace(backbone.card, weights=digest))


@dataclass(frozen=True)
class Keeping:
    """Where one training keeps its state and its result.

    Parameters
    ----------
    folder : path, optional
        None keeps both in memory.
    name : str
        Digest of all that decides the result.
    """

    folder: Any
    name: str

    @property
    def state(self) -> Path | None:
        """The file that a killed training goes on from."""
        return None if self.folder is None else Path(self.folder) / f"{self.name}.state.safetensors"

    def keep(self, body: Body, backbone: Backbone) -> TunedWeights:
        """Put away what was trained; a user's own Python network is held, as no file can name it."""
        arrays = body.tuned()
        body.merge()
        backbone.module.load_state_dict(arrays, strict=False)
        digest = weights_digest(backbone.module, backbone.card.missing)
        if self.folder is None or backbone.card.code:
            return TunedWeights(digest, {name: value.numpy() for name, value in arrays.items()}, None)
        file = f"{self.name}.safetensors"
        save_checkpoint(Path(self.folder) / file, backbone)
        return TunedWeights(digest, None, file)


def network_request(tuner: Any) -> ModelRequest:
    """Return the network that a tuner's parameters name."""
    several: dict[str, Any] = {name: getattr(tuner, name) for name in ("image_size", "mean", "std")}
    several = {name: tuple(value) if isinstance(value, list) else value for name, value in several.items()}
    return ModelRequest(
        model=tuner.model,
        weights=tuner.weights,
        model_args=tuple((tuner.model_args or {}).items()),
        preprocess=tuner.preprocess,
        trust=tuner.trust,
        **several,
    )


def fingerprint(tuner: Any, body: Body, backbone: Backbone, ids: np.ndarray, y: Any, rows: np.ndarray) -> str:
    """Return a digest of all that decides the result of a training: parameters, weights, images, measurements."""
    unseen = _ELSEWHERE | _NETWORK
    params = {k: repr(v) for k, v in sorted(tuner.get_params(deep=False).items()) if k not in unseen}
    card = backbone.card
    about = {
        "tuner": type(tuner).__name__,
        "params": params,
        "network": [card.architecture, dict(card.model_args), card.code, card.weights],
        "preprocessing": card.preprocessing.to_json(),
        "images": list(zip(ids.tolist(), body.images.sha256, strict=True)),
        "rows": rows.tolist(),
        "labels": [list(y.subjects), list(y.targets), list(y.times or ())] if isinstance(y, RDMs) else [],
    }
    values = np.ascontiguousarray(y.values if isinstance(y, RDMs) else y)
    digest = hashlib.sha256(canonical_json(about))
    digest.update(f"{values.dtype} {values.shape}".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()[:32]
