"""What the tuners to responses have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from featpipe.errors import RequestError
from featpipe.tuning._training import number, one_of
from featpipe.tuning._tuner import Tuner
from featpipe.tuning.responses._measured import Measured, responses_of

STOP_BY = ("ridge", "loss")


class FitsResponses(Tuner):
    """A tuner whose y is responses: (n_stimuli, n_targets) or (n_stimuli,), NaN where missing."""

    def _check_y(self, y: Any, ids: np.ndarray) -> np.ndarray:
        one_of("stop_by", self.stop_by, STOP_BY)
        if self.head_learning_rate is not None:
            number("head_learning_rate", self.head_learning_rate, above=0.0)
        Y = responses_of(y, len(ids), type(self).__name__)
        self.single_ = Y.ndim == 1
        return Y.reshape(len(Y), -1)

    def _measured(self, Y: np.ndarray, rows: np.ndarray, held_out: np.ndarray | None, least: int) -> Measured:
        """Return the responses that are fitted; raises `RequestError` where a batch would be too small."""
        measured = Measured.of(Y, rows, held_out)
        n = len(measured.rows)
        if n // max(1, -(-n // self.batch_size)) < least:
            raise RequestError(
                f"{type(self).__name__} needs {least} stimuli in each batch: batch_size is {self.batch_size} and {n} "
                f"stimuli with responses are fitted. Set batch_size >= {2 * least - 1} and give more stimuli."
            )
        return measured

    def _groups(self, module: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """Return the head as a group with its own learning rate, where it has one."""
        if self.head_learning_rate is None:
            return None
        named = [(name.startswith("body."), p) for name, p in module.named_parameters() if p.requires_grad]
        body, head = ([p for own, p in named if own is wanted] for wanted in (True, False))
        groups = [{"params": body}] if body else []
        return [*groups, {"params": head, "lr": self.head_learning_rate}]
