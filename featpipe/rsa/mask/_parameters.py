"""What the parameters of a `ChannelMask` may be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.rsa.mask._apply import RESOLUTIONS
from featpipe.rsa.mask._objective import LOSSES

_CHOICES = {
    "resolution": RESOLUTIONS,
    "loss": LOSSES,
    "solver": ("adam", "lbfgs"),
    "validation": (None, "stimuli", "pairs"),
    "time_sampling": (None, "mean", "gaussian"),
    "target": ("rdms", "responses"),
}

# Kind, lowest value, and whether that one is allowed
_NUMBERS = {
    "alpha": (Real, 0, True),
    "beta": (Real, 0, True),
    "shrinkage": (Real, 0, True),
    "learning_rate": (Real, 0, False),
    "tol": (Real, 0, True),
    "validation_fraction": (Real, 0, False),
    "batch_size": (Integral, 1, True),
    "epochs": (Integral, 1, True),
    "max_iter": (Integral, 1, True),
    "patience": (Integral, 1, True),
    "cross_fit": (Integral, 2, True),
}


def check_parameters(mask: Any) -> None:
    """Refuse parameters that do not exist or make no sense, before anything is computed.

    Raises
    ------
    RequestError
        Names the parameter, what came and what would be right.
    """
    for name, allowed in _CHOICES.items():
        if getattr(mask, name) not in allowed:
            raise RequestError(f"{name} is {getattr(mask, name)!r}; it must be one of {allowed}.")
    for name, (kind, lowest, inclusive) in _NUMBERS.items():
        value = getattr(mask, name)
        known = isinstance(value, kind) and not isinstance(value, bool)
        if not known or value < lowest or (value == lowest and not inclusive):
            what = "a whole number" if kind is Integral else "a number"
            bound = f"of at least {lowest}" if inclusive else f"above {lowest}"
            raise RequestError(f"{name} is {value!r}; it must be {what} {bound}.")
    for name in ("reliability", "line", "non_negative"):
        if not isinstance(getattr(mask, name), bool | np.bool_):
            raise RequestError(f"{name} is {getattr(mask, name)!r}; it must be true or false.")
    if not mask.validation_fraction < 1:
        raise RequestError(f"validation_fraction is {mask.validation_fraction!r}; it must be below 1.")
    if mask.resolution == "feature" and mask.solver != "adam":
        raise RequestError("resolution='feature' reads features batch by batch: it needs solver='adam'.")
