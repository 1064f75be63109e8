"""What is kept of a layer's output: reductions that ignore the data, and so belong to the spec.

An output is (n, channels, height, width), (n, tokens, channels), (n, channels), or anything else whose
first axis is the image. Outputs with channels last are turned first. The matrix of ``srp`` comes from
integers alone, so that it is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from featpipe.errors import UnsupportedOutput
from featpipe.spec import Reduction

Reducer = Callable[[torch.Tensor], torch.Tensor]

_GRIDS = {"none", "mean", "max", "grid", "srp"}
_POSSIBLE = {2: {"none", "srp"}, 3: {"none", "mean", "max", "cls", "grid", "srp"}, 4: _GRIDS}
_NATURAL = {2: ("channel",), 3: ("token", "channel"), 4: ("channel", "height", "width")}
_BATCH_BYTES = 1 << 27  # of the transposed copy that a projection reads


def dims(reduction: Reduction, ndim: int) -> tuple[str, ...]:
    """Return the name of each axis of a row, for an output of ``ndim`` axes including the image's."""
    if reduction.kind == "none":
        return _NATURAL.get(ndim) or tuple(f"dim_{axis}" for axis in range(ndim - 1)) or ("channel",)
    return {"grid": ("channel", "height", "width"), "srp": ("component",)}.get(reduction.kind, ("channel",))


def make_reducer(
    reduction: Reduction,
    *,
    prefix_tokens: int = 0,
    class_token: bool = True,
    layout: str = "channels_first",
    name: str = "this layer",
    input_size: tuple[int, int] = (1, 1),
) -> Reducer:
    """Return a function from a layer's output to its rows: float32, on the same device, never a view.

    Parameters
    ----------
    reduction : Reduction
    prefix_tokens : int
        Tokens before the spatial ones; left out of ``mean``, ``max`` and ``grid``. A layer before the network
        puts them there, known by a number of tokens that fills the image without them, has none.
    class_token : bool
        Whether the first prefix token is a class token, which ``cls`` keeps.
    layout : {"channels_first", "channels_last"}
        Where four-dimensional outputs have their channels.
    name : str
        Of the layer, for messages.
    input_size : (height, width), optional
        Of the network's input in pixels; square by default.

    Raises
    ------
    UnsupportedOutput
        From the function, when the output has no axis to reduce, no class token, or a map that is smaller than
        the grid.
    """
    tokens = _Tokens(prefix_tokens, *input_size)
    arithmetic = _arithmetic(reduction, tokens)

    def reduce(output: torch.Tensor) -> torch.Tensor:
        rows = output.movedim(-1, 1) if output.ndim == 4 and layout == "channels_last" else output
        possible = _possible(rows, tokens, class_token)
        if reduction.kind not in possible:
            raise UnsupportedOutput(
                f"{reduction} cannot be taken of {name}, whose output is {tuple(rows.shape)} with "
                f"{prefix_tokens} prefix tokens. Possible here: {', '.join(sorted(possible))}."
            )
        if reduction.kind == "grid":
            _require_no_finer(reduction, _map(rows, tokens.before(rows)).shape[2:], name)
        kept = arithmetic(rows.float()).contiguous()
        shared = kept.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        return kept.clone() if shared else kept

    return reduce


def _require_no_finer(reduction: Reduction, size: Sequence[int], name: str) -> None:
    if reduction.size > min(size):
        raise UnsupportedOutput(
            f"{reduction} cannot be taken of {name}: its map is {size[0]}×{size[1]}, and a finer grid would only "
            f"repeat values. Write grid:{min(size)} or less, or none for the map itself."
        )


def _arithmetic(reduction: Reduction, tokens: _Tokens) -> Reducer:
    if reduction.kind == "srp":
        projection = SparseProjection(reduction.size, reduction.seed)
        return lambda rows: projection(rows.reshape(len(rows), -1))
    plain: dict[str, Reducer] = {
        "none": lambda rows: rows if rows.ndim > 1 else rows[:, None],
        "cls": lambda rows: rows[:, 0],
        "mean": lambda rows: _positions(rows, tokens.before(rows)).mean(-1),
        "max": lambda rows: _positions(rows, tokens.before(rows)).amax(-1),
        "grid": lambda rows: F.adaptive_avg_pool2d(_map(rows, tokens.before(rows)), reduction.size),
    }
    return plain[reduction.kind]


@dataclass(frozen=True)
class _Tokens:
    """What is known of a network's sequences: prefix tokens, and the size of the image that they cover."""

    prefix: int
    height: int
    width: int

    def before(self, rows: torch.Tensor) -> int:
        """Return how many prefix tokens a sequence has: none before the network has put them there.

        Such a layer shows by its number of tokens, which fills the image only without a prefix.
        """
        tokens = rows.shape[1]
        return 0 if not self._fill(tokens - self.prefix) and self._fill(tokens) else self.prefix

    def are_square(self, spatial: int) -> bool:
        return self.height == self.width and _is_square(spatial)

    def _fill(self, number: int) -> bool:
        """Whether so many square patches of one size fill the image."""
        if self.height == self.width:
            return _is_square(number)
        patches = range(1, min(self.height, self.width) + 1)
        return any(number == (self.height // side) * (self.width // side) for side in patches)


def _is_square(number: int) -> bool:
    return number >= 0 and math.isqrt(number) ** 2 == number


def _positions(rows: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """Return (n, channels, positions) of a map, or of the spatial tokens of a sequence."""
    return rows.flatten(2) if rows.ndim == 4 else rows[:, prefix_tokens:].transpose(1, 2)


def _map(rows: torch.Tensor, prefix_tokens: int) -> torch.Tensor:
    """Return (n, channels, height, width), also of a sequence whose spatial tokens are a square."""
    if rows.ndim == 4:
        return rows
    side = math.isqrt(rows.shape[1] - prefix_tokens)
    return _positions(rows, prefix_tokens).unflatten(2, (side, side))


def _possible(rows: torch.Tensor, tokens: _Tokens, class_token: bool) -> set[str]:
    """Return the kinds of reduction that an output of this shape has axes for."""
    possible = set(_POSSIBLE.get(rows.ndim, {"none", "srp"}))
    if rows.ndim == 3:
        present = tokens.before(rows)
        spatial = rows.shape[1] - present
        possible -= set() if class_token and present else {"cls"}
        possible -= {"mean", "max", "grid"} if spatial < 1 else set()
        possible -= set() if tokens.are_square(spatial) else {"grid"}
    return possible


class SparseProjection:
    """Project onto ``size`` components by a very sparse random matrix.

    Each entry of R (n_features, size) is 0 with probability ``1 - 1/s`` and otherwise ``±√(s/size)`` with
    equal probability, ``s = ⌊√n_features⌋``. Inner products are kept in expectation, ``E⟨Rᵀx, Rᵀy⟩ =
    ⟨x, y⟩``, and the squared length of ``Rᵀx`` has variance ``(2‖x‖⁴ + (s - 3) Σᵢ xᵢ⁴) / size``.

    The matrix depends on seed and n_features alone; with more components the first ones are the same up
    to the scale ``1/√size``. It is made when the first batch shows n_features, and kept per device.

    References
    ----------
    Li, Hastie & Church (2006), Very sparse random projections, section 3.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._kept: dict[tuple[int, torch.device], tuple[torch.Tensor, ...]] = {}

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Project rows of shape (n, n_features): float32 tensor of shape (n, size)."""
        n_features = rows.shape[1]
        indices, starts, signs = self._matrix(n_features, rows.device)
        scale = math.sqrt(math.isqrt(n_features) / self.size)
        step = max(8, _BATCH_BYTES // (4 * n_features) // 8 * 8)
        with torch.autocast(rows.device.type, enabled=False):
            parts = [
                F.embedding_bag(
                    indices, part.t().contiguous(), starts, mode="sum", per_sample_weights=signs
                ).t()
                for part in rows.float().split(step)
            ]
        return torch.cat(parts) * scale

    def _matrix(self, n_features: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        if (n_features, device) not in self._kept:
            positions, signs = sparse_signs(n_features, self.size, self.seed)
            component, feature = np.divmod(positions, n_features)
            starts = np.searchsorted(component, np.arange(self.size))
            made = (feature.astype(np.int32), starts.astype(np.int32), signs.astype(np.float32))
            self._kept[n_features, device] = tuple(torch.from_numpy(part).to(device) for part in made)
        return self._kept[n_features, device]


def sparse_signs(n_features: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where a sparse sign matrix of shape (size, n_features) is not zero, and its signs.

    Entries are independent and not zero with probability ``1/s``, ``s = ⌊√n_features⌋``. The gap before
    the next one is geometric and read off one 64-bit draw, ``P(gap ≥ k) = (1 - 1/s)ᵏ`` in 63-bit fixed
    point; the draw's lowest bit is the sign. Integers alone decide, so no machine's logarithm matters.

    Returns
    -------
    positions : ndarray of int64
        Ascending positions in the flattened matrix, component by component.
    signs : ndarray of int8
        -1 or 1 at each.
    """
    thresholds = _gap_thresholds(math.isqrt(n_features))
    total = n_features * size
    positions, signs, at = [], [], -1
    for draws in _raw_draws(seed, n_features):
        gaps = len(thresholds) - np.searchsorted(thresholds, draws >> np.uint64(1), side="right")
        places = at + np.cumsum(gaps + 1, dtype=np.int64)
        positions.append(places)
        signs.append(((draws & np.uint64(1)).astype(np.int8) << 1) - np.int8(1))
        at = int(places[-1])
        if at >= total:
            break
    found = np.concatenate(positions)
    end = int(np.searchsorted(found, total))
    return found[:end], np.concatenate(signs)[:end]


def _gap_thresholds(s: int) -> np.ndarray:
    """Return ``⌊2⁶³ (1 - 1/s)ᵏ⌋`` for k = 1, 2, … while positive, ascending, as uint64."""
    thresholds = []
    power = (s - 1 << 127) // s  # 64 bits below the point, so that rounding does not add up
    while power >> 64:
        thresholds.append(power >> 64)
        power = power * (s - 1) // s
    return np.array(thresholds[::-1], dtype=np.uint64)


def _raw_draws(seed: int, n_features: int) -> Iterator[np.ndarray]:
    """Yield blocks of a Philox stream, whose raw numbers NumPy keeps stable, as its distributions are not."""
    stream = np.random.Philox(key=np.array([seed, n_features], dtype=np.uint64), counter=0)
    while True:
        yield stream.random_raw(1 << 16)
