"""Checkpoints that say which network they belong to: ``local:CHECKPOINT``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from featpipe.errors import ModelError
from featpipe.files import written_whole
from featpipe.models._backbone import Backbone
from featpipe.models._card import ModelRequest
from featpipe.models._weights import read_metadata, read_state, state_digest
from featpipe.spec import Preprocessing


def save_checkpoint(
    path: str | os.PathLike[str], backbone: Backbone, *, tuned_on: Sequence[str] = ()
) -> None:
    """Write a network's weights and what it takes to build it again, in one ``.safetensors`` file.

    The file appears whole or not at all. Its metadata has, under ``featpipe``, a JSON object of ``model``,
    ``model_args``, ``preprocessing`` and the digest of the ``weights``.

    Parameters
    ----------
    path : str or path
    backbone : Backbone
    tuned_on : sequence of str, optional
        Digests of the images that the weights were fitted to, so that nobody scores the network on them.

    Raises
    ------
    ModelError
        For a network from a user's own Python file, which a checkpoint cannot name.
    """
    card = backbone.card
    if card.code:
        raise ModelError(f"{card.architecture} is built by your own code, so a checkpoint cannot name it.")
    about: dict[str, Any] = {
        "model": backbone.model,
        "model_args": dict(card.model_args),
        "preprocessing": card.preprocessing.to_json(),
    }
    absent = set(card.missing)
    state = {
        k: v.detach().cpu().contiguous().clone()
        for k, v in backbone.module.state_dict().items()
        if k not in absent
    }
    about["weights"] = state_digest(state)
    if tuned_on:
        about["tuned_on"] = sorted(set(tuned_on))
    _publish(Path(path), save(state, metadata={"featpipe": json.dumps(about, sort_keys=True)}))


def underlying(request: ModelRequest, name: str) -> tuple[ModelRequest, Preprocessing | None, Path]:
    """Return the request for the network inside a checkpoint, its own preprocessing, and the file.

    Raises
    ------
    ModelError
        When the file does not say which network it belongs to, or its weights are not those that were saved.
    """
    file = _one_file(Path(name))
    about = _about(file)
    if (
        request.weights == "default"
        and "weights" in about
        and about["weights"] != state_digest(read_state(file))
    ):
        raise ModelError(
            f"{file} is damaged: its weights are not those that were saved. Copy it again, or fit again."
        )
    args = {**about["model_args"], **dict(request.model_args)}
    weights = str(file) if request.weights == "default" else request.weights
    inner = replace(request, model=about["model"], weights=weights, model_args=tuple(args.items()))
    unset = {k: v for k, v in about.get("overrides", {}).items() if getattr(request, k) is None}
    inner = replace(inner, **unset)
    native = about.get("preprocessing")
    return inner, Preprocessing.from_json(native) if native else None, file


def _one_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise ModelError(f"There is no checkpoint {path}. Write local:FILE.safetensors or local:FOLDER.")
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelError(
            f"{path} holds {len(files)} .safetensors files; a checkpoint folder holds exactly one."
        )
    return files[0]


def _about(file: Path) -> dict[str, Any]:
    metadata = read_metadata(file)
    try:
        about = json.loads(metadata["featpipe"]) if "featpipe" in metadata else _plain(metadata)
        return {**about, "model": str(about["model"]), "model_args": dict(about.get("model_args") or {})}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{file} does not say which network it belongs to (no usable `featpipe` in its metadata). "
            f"Name it: --model ZOO:NAME --weights {file}"
        ) from error


def _plain(metadata: dict[str, str]) -> dict[str, Any]:
    """Read a file that has ``model`` and ``model_args`` as strings of their own, and perhaps mean and std.

    Preprocessing in words has no agreed form, so it is refused rather than overlooked.
    """
    if "preprocess" in metadata:
        raise ValueError("its preprocessing is described in words")
    about: dict[str, Any] = {"model": metadata["model"], "overrides": {}}
    about["model_args"] = json.loads(metadata.get("model_args", "{}"))
    for name in {"mean", "std"} & metadata.keys():
        about["overrides"][name] = tuple(float(part) for part in metadata[name].split(","))
    if "input_size" in metadata:
        about["overrides"]["image_size"] = int(metadata["input_size"])
    return about


def _publish(path: Path, data: bytes) -> None:
    with written_whole(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
