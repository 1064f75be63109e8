"""The one seam between NumPy and torch: solvers ask an array for its namespace and never say ``torch``.

Arrays of NumPy and of torch follow the array API standard through array-api-compat, so that one text of a
solver runs on a processor and on a GPU. torch is imported only where somebody names a device. The small
functions below are what the standard lacks, or what NumPy does in place and the standard does not. Rows are
always named by integer ndarrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from scipy import linalg

from featpipe.errors import MissingDependency, RequestError

__all__ = [
    "add_products",
    "array_namespace",
    "check_device",
    "column_dots",
    "double",
    "eigh",
    "float_type",
    "like",
    "mirror",
    "moved_if_it_fits",
    "on_device",
    "product",
    "solve_symmetric",
    "submatrix",
    "take",
    "take_columns",
    "to_numpy",
    "transposed_product",
]

# NumPy and SciPy each come with a BLAS of their own, whose threads wait for work in a loop: whoever takes turns between
# them has both loops on the same processors. Large matrices do not notice, and are worked on in place by SciPy.
_SMALL = 1536
_ROWS_AT_A_TIME = 1024  # of a sum of float32 products


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
    return torch.asarray(np.ascontiguousarray(array), device=device, copy=True)  # read-only arrays too


def moved_if_it_fits(array: np.ndarray, device: str) -> Any:
    """Return an array as `on_device` does where a GPU's free memory holds it twice, else as it is."""
    if device == "cpu" or 2 * array.nbytes > _torch(device).cuda.mem_get_info(device)[0]:
        return array
    return on_device(array, device)


def to_numpy(array: Any) -> np.ndarray:
    """Return an array of either kind as ndarray."""
    return array.detach().cpu().numpy() if is_torch_array(array) else np.asarray(array)


def like(values: Any, reference: Any) -> Any:
    """Return values, in their own dtype, as an array of the kind and on the device of another."""
    if not is_torch_array(reference):
        return to_numpy(values)
    if is_torch_array(values):
        return values.to(reference.device)
    values = np.ascontiguousarray(values)
    return array_namespace(reference).asarray(values, device=reference.device, copy=True)


def float_type(dtype: Any, reference: Any) -> Any:
    """Return float32 or float64 of either kind as the dtype of another array's kind."""
    xp = array_namespace(reference)
    return xp.float64 if "64" in str(dtype) else xp.float32


def double(values: Any) -> Any:
    """Return a float64 copy."""
    xp = array_namespace(values)
    return xp.astype(values, xp.float64, copy=True)


def take(values: Any, rows: np.ndarray) -> Any:
    """Return some rows: ``values[rows]`` of either kind."""
    if not is_torch_array(values):
        return values[rows]
    xp = array_namespace(values)
    return xp.take(values, like(np.asarray(rows, dtype=np.int64), values), axis=0)


def take_columns(values: Any, columns: Any) -> Any:
    """Return some columns: ``values[:, columns]`` of either kind, columns a slice or an integer ndarray."""
    if isinstance(columns, slice) or not is_torch_array(values):
        return values[:, columns]
    xp = array_namespace(values)
    return xp.take(values, like(np.asarray(columns, dtype=np.int64), values), axis=1)


def submatrix(values: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """Return ``values[rows][:, columns]`` of either kind."""
    if not is_torch_array(values):
        return values[np.ix_(rows, columns)]
    xp = array_namespace(values)
    return xp.take(take(values, rows), like(np.asarray(columns, dtype=np.int64), values), axis=1)


def column_dots(left: Any, right: Any) -> Any:
    """Return the inner product of every pair of columns, (n_columns,), float64; float32 is summed in pieces."""
    xp = array_namespace(left, right)
    total = like(np.zeros(left.shape[1]), left)
    for start in range(0, left.shape[0], _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        if is_torch_array(left):
            total += xp.sum(left[rows] * right[rows], axis=0)
        else:
            total += np.einsum("vt,vt->t", left[rows], right[rows])  # makes no array of products
    return total


def add_products(total: Any, rows: Any) -> None:
    """Add ``rows @ rows.T`` in place; of NumPy's at least the upper triangle, which `mirror` copies at the end."""
    if is_torch_array(total) or len(total) <= _SMALL:
        total += rows @ rows.T
    elif rows.flags.c_contiguous:
        linalg.blas.dsyrk(1.0, rows.T, trans=1, beta=1.0, c=total.T, lower=1, overwrite_c=1)
    else:
        linalg.blas.dsyrk(1.0, rows, beta=1.0, c=total.T, lower=1, overwrite_c=1)


def mirror(total: Any) -> Any:
    """Copy the upper triangle of NumPy's matrix to the lower one, in place."""
    if not is_torch_array(total):
        for start in range(0, len(total), _ROWS_AT_A_TIME // 4):
            rows = slice(start, start + _ROWS_AT_A_TIME // 4)
            total[rows, :start] = total[:start, rows].T
            square = total[rows, rows]
            square[...] = np.triu(square) + np.triu(square, 1).T
    return total


def product(left: Any, right: Any) -> Any:
    """Return ``left @ right`` in the dtype of `right`; NumPy's left is turned into it a few rows at a time."""
    if is_torch_array(left) or left.dtype == right.dtype:
        return array_namespace(right).astype(left, right.dtype, copy=False) @ right
    found = np.empty((left.shape[0], right.shape[1]), dtype=right.dtype)
    for start in range(0, len(left), _ROWS_AT_A_TIME // 2):
        rows = slice(start, start + _ROWS_AT_A_TIME // 2)
        np.matmul(left[rows].astype(right.dtype), right, out=found[rows])
    return found


def transposed_product(left: Any, right: Any) -> Any:
    """Return ``left.T @ right`` as `product` does."""
    if left.shape[0] < left.shape[1] * 2:
        return product(left.T, right)
    if is_torch_array(left) or left.dtype == right.dtype:
        return array_namespace(right).astype(left, right.dtype, copy=False).T @ right
    found = np.zeros((left.shape[1], right.shape[1]), dtype=right.dtype)
    for start in range(0, len(left), 2 * _ROWS_AT_A_TIME):
        rows = slice(start, start + 2 * _ROWS_AT_A_TIME)
        found += left[rows].astype(right.dtype).T @ right[rows]
    return found


def eigh(matrix: Any, *, overwrite: bool = False) -> tuple[Any, Any]:
    """Return ascending eigenvalues and eigenvectors of a symmetric matrix of either kind."""
    if is_torch_array(matrix):
        return array_namespace(matrix).linalg.eigh(matrix)
    if len(matrix) <= _SMALL:
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors
    # the transpose of a symmetric matrix is itself, in the order of LAPACK: no copy
    return linalg.eigh(matrix.T, overwrite_a=overwrite, check_finite=False, driver="evd")


def solve_symmetric(matrix: Any, right: Any) -> Any:
    """Solve with a symmetric positive definite matrix of either kind; NumPy's two arrays may be overwritten."""
    if is_torch_array(matrix):
        xp = array_namespace(matrix)
        factor = xp.linalg.cholesky(matrix)
        return xp.cholesky_solve(right, factor)  # torch's own: the standard has no such solve
    if len(matrix) <= _SMALL:
        return np.linalg.solve(matrix, right)
    factor = linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    return linalg.cho_solve(factor, right, overwrite_b=True, check_finite=False)


def _torch(device: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            f"device {device!r} needs torch: install featpipe[extract], or set device='cpu'."
        ) from error
    return torch
