"""Parts of a module that stop by themselves: whose best weights are kept, and who leaves the computation.

The entries of axis 0 of each parameter and buffer belong to parts (the ROIs of a head: rows of one weight
matrix, layers of a stack). An optimiser that works element by element then trains every part as if it were
alone, and a part that has stopped can be cut out of the module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]


class Parts:
    """The parts of a module in training.

    Only what can change is kept: parameters that require gradients, and buffers.

    Parameters
    ----------
    module : nn.Module
    owners : mapping of str to int64 tensor of shape (size of axis 0,), optional
        By name of every parameter and buffer, the part that each entry belongs to. None: the module is one
        part, kept or not as a whole.
    n_parts : int

    Attributes
    ----------
    best : dict of str to tensor
        By name.
    """

    def __init__(self, module: nn.Module, owners: Mapping[str, torch.Tensor] | None, n_parts: int) -> None:
        self.module = module
        self.n_parts = n_parts
        self._all = None if owners is None else dict(owners)
        self._now = self._all
        self.best: Tensors = {}
        self.watch()

    def watch(self) -> None:
        """Take in what can change from here on, as it is: it was so at the best epoch, too."""
        for name, tensor in self.present().items():
            if name not in self.best:
                self.best[name] = tensor.clone()

    def present(self) -> Tensors:
        """Return what can change by name, as it is now."""
        found = {
            name: p.detach()
            for name, p in self.module.named_parameters()
            if p.requires_grad or name in self.best or self._all is not None
        }
        return found | {name: buffer.detach() for name, buffer in self.module.named_buffers()}

    def keep(self, improved: torch.Tensor) -> None:
        """Remember the present weights of some parts, a bool tensor of shape (n_parts,), as their best."""
        if not bool(improved.any()):
            return
        whole = bool(improved.all())
        self.watch()  # buffers may have come
        for name, tensor in self.present().items():
            if whole or self._all is None or self._now is None:
                self.best[name].copy_(tensor)
            else:
                self.best[name][improved[self._all[name]]] = tensor[improved[self._now[name]]]

    def cut(self, running: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Take parts that have stopped out of the module and the optimiser: they cost nothing from here on."""
        if self._now is None:
            return
        stay = {name: running[owner] for name, owner in self._now.items()}
        if all(rows.all() for rows in stay.values()):
            return
        for name, tensor in _tensors(self.module).items():
            moments = optimiser.state.get(tensor, {})
            for key, value in moments.items():
                if torch.is_tensor(value) and value.shape == tensor.shape:
                    moments[key] = value[stay[name]]
            tensor.grad = None
            tensor.data = tensor.data[stay[name]]
        self._now = {name: owner[stay[name]] for name, owner in self._now.items()}

    def clip(self, limit: float, optimiser: torch.optim.Optimizer) -> None:
        """Scale the gradient of each part to a norm of at most `limit`."""
        if self._now is None:
            trained = [p for group in optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, limit)
            return
        parameters = {name: p for name, p in self.module.named_parameters() if p.grad is not None}
        first = next(iter(parameters.values()))
        squares = torch.zeros(self.n_parts, device=first.device)
        for name, p in parameters.items():
            squares.index_add_(0, self._now[name], p.grad.reshape(len(p), -1).square().sum(1))
        scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for name, p in parameters.items():
            p.grad *= scale[self._now[name]].reshape(-1, *[1] * (p.ndim - 1))

    def load(self, present: Tensors, best: Tensors) -> None:
        """Take up weights, and their best, from a file; one that is in neither is as it was at the start."""
        device = next(self.module.parameters()).device
        for name, tensor in _tensors(self.module).items():
            if name in present:
                tensor.detach().copy_(present[name])
            if name in best:
                self.best[name] = best[name].to(device)
        self.watch()

    def restore(self) -> None:
        """Put every part back, at its best."""
        for name, tensor in _tensors(self.module).items():
            tensor.grad = None
            if name in self.best and tensor.shape == self.best[name].shape:
                tensor.detach().copy_(self.best[name])
            elif name in self.best:
                tensor.data = self.best[name]
        self._now = self._all


def _tensors(module: nn.Module) -> Tensors:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
