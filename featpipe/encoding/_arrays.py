"""The one seam between NumPy and torch: solvers ask an array for its namespace and never say ``torch``.

Arrays of NumPy and of torch follow the array API standard through array-api-compat, so that one text of a
solver runs on a processor and on a GPU. torch is imported only where somebody names a device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from featpipe.errors import MissingDependency, RequestError

__all__ = ["array_namespace", "check_device", "on_device", "to_numpy"]


def check_device(device: Any) -> None:
    """Raise `RequestError` unless a device is ``"cpu"``, ``"cuda"`` or ``"cuda:N"``, and there."""
    if device == "cpu":
        return
    if not isinstance(device, str) or device.partition(":")[0] != "cuda":
        raise RequestError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}.")
    torch = _torch(device)
    if not torch.cuda.is_available():
        raise RequestError(f"device is {device!r}, but torch sees no CUDA device here. Set device='cpu'.")
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise RequestError(f"device is {device!r}, but there are {torch.cuda.device_count()} CUDA devices.")


def on_device(array: np.ndarray, device: str) -> Any:
    """Return the array itself for ``"cpu"``, or a torch tensor of the same dtype on a GPU."""
    if device == "cpu":
        return array
    torch = _torch(device)
    return torch.as_tensor(np.ascontiguousarray(array), device=device)


def to_numpy(array: Any) -> np.ndarray:
    """Return an array of either kind as ndarray."""
    return array.detach().cpu().numpy() if is_torch_array(array) else np.asarray(array)


def _torch(device: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"device {device!r} needs torch: install featpipe[extract], or set device='cpu'."
        ) from error
    return torch
