"""Weights files: reading them without executing code, fitting them to a network, and their digest."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from featpipe.errors import ModelError, WeightsMismatch
from featpipe.models._architecture import State

_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 4


def read_state(path: str | os.PathLike[str]) -> State:
    """Read the tensors of a ``.safetensors`` file, or of a ``.pth``/``.pt``/``.bin`` without executing code.

    A dictionary inside a checkpoint under ``state_dict``, ``model_state_dict``, ``model``,
    ``state_dict_ema`` or ``model_ema`` is unwrapped, in this order.

    Raises
    ------
    ModelError
        When the file is no such file, is torn, or would have to execute code.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except FileNotFoundError as error:
        raise ModelError(f"There is no weights file {path}. Check --weights.") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as weights: {type(error).__name__}: {str(error).splitlines()[0]}. It "
            "must be a .safetensors file, or a .pth that holds tensors alone; save its state_dict() again "
            "if it holds whole objects."
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a ``.safetensors`` file; raises `ModelError` when it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a .safetensors file that can be read: {error}.") from error


def _tensors(value: Any, path: Path) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
            break
    found = (
        {str(k): v for k, v in value.items() if isinstance(v, torch.Tensor)}
        if isinstance(value, Mapping)
        else {}
    )
    if not found:
        raise ModelError(f"{path} holds no tensors by name, only a {type(value).__name__}.")
    return found


def load_state(module: nn.Module, state: State, *, source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Copy tensors into a network and return the names of the parameters that are missing.

    A prefix that all names share (``module.``, ``_orig_mod.``, ``model.``) is dropped if the names fit
    better without it. A file may hold a part of the network, as its features without the classifier; one of
    which less than half fits is refused. Counters of batches (``num_batches_tracked``) and integer
    buffers, which a network computes itself, are not required.

    Raises
    ------
    WeightsMismatch
        When shapes differ, or most of the file does not belong to this network.
    """
    wanted = {name: tensor for name, tensor in module.state_dict().items() if _counts(name)}
    given = {name: tensor for name, tensor in _best_prefix(state, wanted).items() if _counts(name)}
    matched = [name for name in wanted if name in given]
    missing = [name for name in wanted if name not in given and wanted[name].is_floating_point()]
    unexpected = [name for name in given if name not in wanted]
    conflicts = [name for name in matched if given[name].shape != wanted[name].shape]
    if conflicts or len(matched) <= len(unexpected):
        shapes = [f"{n} {tuple(given[n].shape)} instead of {tuple(wanted[n].shape)}" for n in conflicts]
        raise WeightsMismatch(
            f"{Path(source).name} does not fit this network: {len(matched)} of {len(wanted)} tensors "
            f"matched; {_some('missing', missing)}; {_some('unexpected', unexpected)}; "
            f"{_some('of another shape', shapes)}. Check the model's name and --model-arg, or take the "
            "weights that belong to it."
        )
    module.load_state_dict({name: given[name] for name in matched}, strict=False)
    return tuple(missing)


def weights_digest(module: nn.Module, missing: Sequence[str] = ()) -> str:
    """Return the SHA-256 over sorted (name, dtype, shape, little-endian bytes) of what was loaded.

    It is taken from the network itself, so that the container of the weights does not matter. Missing
    parameters and counters of batches are left out.
    """
    absent = set(missing)
    return state_digest({name: tensor for name, tensor in module.state_dict().items() if name not in absent})


def state_digest(state: State) -> str:
    """Return the digest of tensors by name, see `weights_digest`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if _counts(name):
            dtype = str(tensor.dtype).removeprefix("torch.")
            digest.update(f"{name}\0{dtype}\0{list(tensor.shape)}\0".encode())
            digest.update(_little_endian(tensor))
    return digest.hexdigest()


def _little_endian(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else flat.new_empty(0, dtype=torch.uint8).numpy()
    if sys.byteorder == "big":
        data = data.reshape(-1, tensor.element_size())[:, ::-1].copy().reshape(-1)
    return memoryview(data)


def _counts(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _best_prefix(state: State, wanted: Iterable[str]) -> State:
    """Return the state without a prefix that all its names share, where that fits better."""
    names = set(wanted)
    candidates = [state]
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            candidates.append({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return max(candidates, key=lambda candidate: len(names & candidate.keys()))


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
