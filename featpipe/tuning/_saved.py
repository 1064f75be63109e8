"""The state of a training: killed at any moment, it goes on from its last epoch as if nothing had been.

What can change is kept: ``now/NAME``, ``best/NAME`` (left out where it is as now), ``moment/KEY/NAME`` of the
optimiser and ``history/NAME``; and beside it what decides the outcome, which another training is refused by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from featpipe.errors import CacheWriteError, RequestError
from featpipe.tuning._history import History
from featpipe.tuning._parts import Parts, Tensors
from featpipe.tuning._saved_file import digest, read, sweep, write
from featpipe.tuning._training import Training

_SHOWN = 3


class Saved:
    """Where a training is kept, if anywhere.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    optimiser : torch.optim.Optimizer
    parts : Parts
    history : History
    training : Training
    seen : mapping
        What else decides the outcome, as `train` was given it.
    """

    def __init__(
        self,
        path: Path | None,
        optimiser: torch.optim.Optimizer,
        parts: Parts,
        history: History,
        training: Training,
        seen: Mapping[str, Any],
    ) -> None:
        self._path = None if path is None else Path(path)
        self._optimiser, self._parts, self._history = optimiser, parts, history
        self._training = training
        self._names = {p: name for name, p in parts.module.named_parameters()}
        if self._path is not None:
            self._problem = self._describe(seen)

    def resume(self) -> bool:
        """Take up the state of the file; False where there is none.

        Raises
        ------
        RequestError
            The file belongs to another training.
        CacheCorrupt
            The file is damaged.
        """
        if self._path is None or not self._path.exists():
            return False
        sweep(self._path)
        about, tensors = read(self._path)
        self._check(about["problem"], len(tensors["history/learning_rate"]))
        now, best, moments, history = (_under(tensors, key) for key in ("now", "best", "moment", "history"))
        self._history.restore({name: tensor.numpy() for name, tensor in history.items()})
        module = self._parts.module
        if now:
            running = torch.as_tensor(self._history.running, device=next(module.parameters()).device)
            self._parts.cut(running, self._optimiser)
        self._parts.load(now, now | best)
        self._load_moments(moments)
        for group, kept in zip(self._optimiser.param_groups, about["groups"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})
        for name, p in module.named_parameters():
            p.requires_grad_(name in about["trainable"])
        return True

    def save(self) -> None:
        """Write the present state in place of the former.

        Raises
        ------
        CacheWriteError
            It cannot be written; the former is still there.
        """
        if self._path is None:
            return
        parameters = self._parts.module.named_parameters()
        about = {
            "problem": self._problem,
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in self._optimiser.param_groups],
            "trainable": [name for name, p in parameters if p.requires_grad],
        }
        history = {f"history/{k}": torch.as_tensor(v) for k, v in self._history.arrays().items()}
        try:
            write(self._path, about, {**self._weights(), **self._moments(), **history})
        except (OSError, SafetensorError) as error:
            raise CacheWriteError(
                f"The training cannot be saved to {self._path} after epoch {self._history.n_epochs}: {error}. What "
                "was saved before is still there: make room, or give a folder that can be written, and run it again."
            ) from error

    def _weights(self) -> Tensors:
        """Return what can change, now (while a part still runs) and at its best, where it has changed."""
        found: Tensors = {}
        present = self._parts.present() if self._history.running.any() else {}
        buffers = dict(self._parts.module.named_buffers())
        for name, best in self._parts.best.items():
            now = present.get(name)
            started = self._problem.get(f"tensor {name}")
            if name in buffers and all(t is None or digest(t) == started for t in (now, best)):
                continue
            if now is not None:
                found[f"now/{name}"] = now
            if now is None or not torch.equal(now, best):
                found[f"best/{name}"] = best
        return found

    def _moments(self) -> Tensors:
        if not self._history.running.any():
            return {}
        return {
            f"moment/{key}/{self._names[p]}": value
            for p, values in self._optimiser.state.items()
            for key, value in values.items()
            if torch.is_tensor(value)
        }

    def _load_moments(self, moments: Tensors) -> None:
        """Give them to the optimiser as it would have made them: counters where it wants them, else as weights."""
        named = {name: p for p, name in self._names.items()}
        fused = {p: bool(g.get("fused")) for g in self._optimiser.param_groups for p in g["params"]}
        for text, value in moments.items():
            key, name = text.split("/", 1)
            p = named[name]
            own = value.to(p.device if fused[p] else "cpu") if key == "step" else torch.empty_like(p.detach())
            self._optimiser.state[p][key] = own.copy_(value)

    def _describe(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """Return all that decides the outcome, as texts and numbers by name."""
        about = {
            **self._training.essentials(),
            "parts": list(self._history.names),
            "fingerprint": seen["fingerprint"],
        }
        about["from_start"] = self._history.from_start
        for name in ("rows", "held_out"):
            about[name] = "a function" if callable(seen[name]) else digest(seen[name])
        for name, owner in (seen["owners"] or {}).items():
            about[f"owners of {name}"] = digest(owner)
        for number, group in enumerate(self._optimiser.param_groups):
            about[f"parameters of group {number}"] = [self._name(p) for p in group["params"]]
            about[f"learning rate of group {number}"] = group["lr"]
            about[f"from_epoch of group {number}"] = group.get("from_epoch")
        for name, p in self._parts.module.named_parameters():
            about[f"tensor {name}"] = f"{digest(p)} {'trained' if p.requires_grad else 'frozen'}"
        buffers = self._parts.module.named_buffers()
        return about | {f"tensor {name}": digest(buffer) for name, buffer in buffers}

    def _name(self, parameter: nn.Parameter) -> str:
        if parameter not in self._names:
            raise RequestError(
                f"groups has a parameter of shape {tuple(parameter.shape)} that is not in the module, so it cannot be "
                "saved. Make it part of the module."
            )
        return self._names[parameter]

    def _check(self, there: Mapping[str, Any], n_epochs: int) -> None:
        here = json.loads(json.dumps(self._problem))
        missing = "nothing"
        differ = [name for name in {**there, **here} if there.get(name, missing) != here.get(name, missing)]
        if differ:
            said = [f"{n} was {there.get(n, missing)} and is {here.get(n, missing)}" for n in differ[:_SHOWN]]
            more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
            raise RequestError(
                f"{self._path} holds another training: {'; '.join(said)}{more}. Name another file for this one, or "
                "delete that file to begin anew."
            )
        if n_epochs > self._training.max_epochs:
            raise RequestError(
                f"{self._path} holds {n_epochs} epochs, more than max_epochs={self._training.max_epochs}. Raise "
                "max_epochs, or name another file."
            )


def _under(tensors: Tensors, key: str) -> Tensors:
    return {name.removeprefix(f"{key}/"): t for name, t in tensors.items() if name.startswith(f"{key}/")}
