"""Layers side by side, with their channels still in place: what lies between the first two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.errors import RequestError
from featpipe.spec import match_names


class LayerBlocks:
    """The rows of some stimuli in several layers, read when asked for.

    Presents one sample axis, ``len(blocks) == n_stimuli``. Selecting rows selects ids and reads nothing.

    Parameters
    ----------
    ids : sequence of str, length n_stimuli
    names : sequence of str, length n_layers
        Layer labels.
    shapes : sequence of tuple of int
        Shape of one row per layer, channels first where a layer has channels.
    dims : sequence of tuple of str
        Name of each axis of a row per layer, such as ``("channel", "height", "width")``.
    digests : sequence of str
        Digest of each layer's `FeatureSpec`, for whoever keeps statistics per (features, stimuli).
    read : callable (layer position, ids) -> ndarray of shape (len(ids), *shape), float32
    stream : callable like `read`, optional
        Reads without keeping the layer in memory for the next reader, and gives new arrays; copies of what
        `read` gives by default.
    views : sequence of LayerBlocks, optional
        Augmented views 1, 2, … of the same stimuli in the same layers.
    images : callable (layer position, ids) -> sequence of str, optional
        Digest of the image behind each row, for whoever keeps statistics by id: elsewhere an id may mean another
        image. Raises `LookupError` as `read` does.
    held_out : sequence of str, optional
        Of layers that were fitted to the responses to these stimuli, as a tuner's: ids that were not fitted to. Only
        on them may a penalty be chosen. None: the layers know nothing of responses.
    """

    def __init__(
        self,
        ids: Sequence[str] | np.ndarray,
        *,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dims: Sequence[tuple[str, ...]],
        digests: Sequence[str],
        read: Callable[[int, np.ndarray], np.ndarray],
        stream: Callable[[int, np.ndarray], np.ndarray] | None = None,
        views: Sequence[LayerBlocks] = (),
        images: Callable[[int, np.ndarray], Sequence[str]] | None = None,
        held_out: Sequence[str] | np.ndarray | None = None,
    ) -> None:
        self.ids = np.asarray(ids)
        self.names = tuple(names)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.dims = tuple(tuple(axes) for axes in dims)
        self.digests = tuple(digests)
        self._read = read
        self._stream = stream or _Copies(read).stream
        self.images = images
        self.held_out = None if held_out is None else np.asarray(held_out, dtype=str)
        self.views = tuple(views)
        for number, view in enumerate(self.views, 1):
            if view.names != self.names or not np.array_equal(view.ids, self.ids):
                raise RequestError(
                    f"View {number} has {len(view)} stimuli in layers {', '.join(view.names)}; it must have the ids "
                    f"and the layers of the images themselves, {len(self)} stimuli in {', '.join(self.names)}."
                )

    @classmethod
    def join(cls, parts: Sequence[tuple[str, LayerBlocks]]) -> LayerBlocks:
        """Put the layers of several blocks of the same stimuli side by side.

        Parameters
        ----------
        parts : sequence of (str, LayerBlocks)
            Layers become ``NAME:LAYER``; views are joined by their number.

        Raises
        ------
        RequestError
            The parts have other ids, in another order, or not equally many views, or are of tuned networks.
        """
        if not parts:
            raise RequestError("There is nothing to join; give at least one (name, LayerBlocks).")
        (first, one), *others = parts
        for name, other in others:
            if not np.array_equal(one.ids, other.ids) or len(one.views) != len(other.views):
                raise RequestError(
                    f"{first!r} has {len(one)} stimuli in {len(one.views)} views and {name!r} has {len(other)} in "
                    f"{len(other.views)}: to be joined, they need the same ids in the same order, and as many views."
                )
        if any(blocks.held_out is not None for _, blocks in parts):
            raise RequestError(
                "Layers of a tuned network cannot be joined with others: extract and cache them first."
            )
        places = [(blocks, position) for _, blocks in parts for position in range(len(blocks.names))]
        return cls(
            one.ids,
            names=[f"{name}:{layer}" for name, blocks in parts for layer in blocks.names],
            shapes=[blocks.shapes[position] for blocks, position in places],
            dims=[blocks.dims[position] for blocks, position in places],
            digests=[blocks.digests[position] for blocks, position in places],
            read=_Places(places).read,
            stream=_Places(places).stream,
            images=_images_of(places),
            views=[
                cls.join([(name, blocks.views[number]) for name, blocks in parts])
                for number in range(len(one.views))
            ],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_stimuli, n_features) of `to_matrix`."""
        return len(self), sum(self.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of features per layer."""
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def slices(self) -> dict[str, slice]:
        """The columns of `to_matrix` that each layer takes."""
        stops = np.cumsum(self.widths)
        return {
            name: slice(int(stop) - width, int(stop))
            for name, width, stop in zip(self.names, self.widths, stops, strict=True)
        }

    def __getitem__(self, rows: Any) -> LayerBlocks:
        """Select stimuli, also in the views, by integers, booleans or a slice; a tuple's first entry selects."""
        rows = rows[0] if isinstance(rows, tuple) else rows
        ids = np.atleast_1d(self.ids[rows])
        return LayerBlocks(
            ids,
            names=self.names,
            shapes=self.shapes,
            dims=self.dims,
            digests=self.digests,
            read=self._read,
            stream=self._stream,
            views=[view[rows] for view in self.views],
            images=self.images,
            held_out=self.held_out,
        )

    def select(self, layers: Sequence[str]) -> LayerBlocks:
        """Return the same stimuli, also in the views, in some of the layers.

        Parameters
        ----------
        layers : str or sequence of str
            Labels, or globs as in ``featpipe extract --layers``. Layers keep the order that they have here.

        Raises
        ------
        RequestError
            A label that matches nothing.
        """
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not match_names(pattern, self.names):
                raise RequestError(f"There is no layer {pattern!r} here, only {', '.join(self.names)}.")
        wanted = {name for pattern in patterns for name in match_names(pattern, self.names)}
        keep = [position for position, name in enumerate(self.names) if name in wanted]
        places = [(self, position) for position in keep]
        return LayerBlocks(
            self.ids,
            names=[self.names[position] for position in keep],
            shapes=[self.shapes[position] for position in keep],
            dims=[self.dims[position] for position in keep],
            digests=[self.digests[position] for position in keep],
            read=_Places(places).read,
            stream=_Places(places).stream,
            images=_images_of(places),
            views=[view.select(layers) for view in self.views],
            held_out=self.held_out,
        )

    def read(self, layer: int, ids: np.ndarray) -> np.ndarray:
        """Read any stimuli that the source of these knows: ndarray of shape (len(ids), *shape), float32."""
        return self._read(layer, ids)

    def block(self, layer: str | int) -> np.ndarray:
        """Read one layer: ndarray of shape (n_stimuli, *shape), float32."""
        return self._read(self._position(layer), self.ids)

    def stream(self, layer: str | int, rows: Any) -> np.ndarray:
        """Read some rows of one layer: ndarray of shape (n_rows, *shape), float32.

        The layer is not kept in memory, for whoever reads layers larger than that piece by piece. The array is
        the caller's, to write into.
        """
        return self._stream(self._position(layer), self.ids[rows])

    def _position(self, layer: str | int) -> int:
        if isinstance(layer, int):
            return layer
        if layer not in self.names:
            raise RequestError(f"There is no layer {layer!r} here, only {', '.join(self.names)}.")
        return self.names.index(layer)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, ndarray of shape (n_stimuli, *shape)) one layer at a time."""
        return ((name, self.block(position)) for position, name in enumerate(self.names))

    def to_matrix(self) -> np.ndarray:
        """Return all layers flattened and side by side: ndarray of shape (n_stimuli, n_features)."""
        matrix = np.empty(self.shape, dtype=np.float32)
        for position, columns in enumerate(self.slices.values()):
            matrix[:, columns] = self.block(position).reshape(len(self), -1)
        return matrix

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Refuse: rows of layers are no array or data frame until someone puts the layers side by side."""
        raise RequestError(
            "LayerBlocks are read layer by layer and are no array or data frame. Set output='matrix' in "
            "CachedFeatures, or call to_matrix()."
        )

    def __repr__(self) -> str:
        layers = ", ".join(f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True))
        views = f" and {len(self.views)} views" if self.views else ""
        return f"LayerBlocks({len(self)} stimuli{views}; {layers})"


@dataclass(frozen=True, eq=False)
class _Copies:
    """What streams rows that others may hold; of a class, as all readers, so that they travel to workers."""

    read: Callable[[int, np.ndarray], np.ndarray]

    def stream(self, layer: int, ids: np.ndarray) -> np.ndarray:
        return np.array(self.read(layer, ids))


@dataclass(frozen=True, eq=False)
class _Places:
    """Layers, each a place in some blocks."""

    places: Sequence[tuple[LayerBlocks, int]]

    def read(self, layer: int, ids: np.ndarray) -> np.ndarray:
        blocks, position = self.places[layer]
        return blocks._read(position, ids)

    def stream(self, layer: int, ids: np.ndarray) -> np.ndarray:
        blocks, position = self.places[layer]
        return blocks._stream(position, ids)

    def images(self, layer: int, ids: np.ndarray) -> Sequence[str]:
        blocks, position = self.places[layer]
        assert blocks.images is not None
        return blocks.images(position, ids)


def _images_of(
    places: Sequence[tuple[LayerBlocks, int]],
) -> Callable[[int, np.ndarray], Sequence[str]] | None:
    """Return what tells the images of joined layers, where each of them can tell."""
    return _Places(places).images if all(blocks.images is not None for blocks, _ in places) else None
