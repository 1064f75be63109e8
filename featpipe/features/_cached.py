"""The transformer from ids to features."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError, StimulusNotCached
from featpipe.features._finite import say_non_finite
from featpipe.features._memory import READS
from featpipe.features._settle import candidates, settle
from featpipe.features._stored_rows import StoredRows
from featpipe.features._views import arrays_of_views, settle_views
from featpipe.spec import FeatureSpec, digest_of
from featpipe.store import CachedArray, Root, mirrored
from featpipe.views import Augmentation, View, spec_of_view


class CachedFeatures(TransformerMixin, BaseEstimator):
    """Turn stimulus ids into the features that a cache holds for them.

    Fields left at None are taken from the cache if exactly one value matches; several are an error that
    lists them. ``fit`` settles which features are meant and reads nothing else; it pins no stimulus set
    unless `stimuli` names one, so that a fitted pipeline predicts new images. Each layer is read once per
    process, however many folds and candidates ask for it, as long as it fits in memory. No torch is needed.

    Parameters
    ----------
    cache : str or Path
        The cache's folder, or its URL.
    model : str, optional
        ``ZOO:NAME``, with a tag of pretrained weights if several are cached.
    layers : str or sequence of str, optional
        Layer names or globs as in ``featpipe extract --layers``, without reductions.
    reduce : str, optional
        The reduction that the features were cached under, such as ``"mean"`` or ``"grid:4"``.
    weights : str, optional
        What was given to ``extract --weights``, the tag that it resolved to, or a weights digest (its first
        eight digits or more).
    preprocess : {"model", "whole"} or mapping, optional
        Or fields of `Preprocessing` that must have these values, such as ``{"mean": [0.5, 0.5, 0.5]}``.
    precision : {"fp32", "tf32", "bf16", "fp16"}, optional
    store_dtype : {"float32", "float16"}, optional
    model_args : mapping, optional
        Arguments of the model that must match exactly.
    stimuli : str, optional
        Digest (its first eight digits or more) or name of one stimulus set: the only one to look ids up in.
    output : {"matrix", "blocks"}
        A float32 matrix of shape (n_stimuli, n_features), layers side by side, or `LayerBlocks`.
    views : int
        Augmented views of every image, ``featpipe extract --views``, that stand in `LayerBlocks.views` for
        whoever fits on them. `fit` looks whether the cache has them; rows are read when used.
    augmentation : str, optional
        How the views were made, such as ``"crop:0.875"``.
    view_seed : int, optional
    mirror : str or Path, optional
        Folder for copies of what is read from a URL, see `FeatureCache`.
    mirror_size : int, optional
        Bytes that it may hold.

    Attributes
    ----------
    specs_ : list of FeatureSpec
        The features that were meant, one per layer, in the order of `layers` and of the network.
    row_shapes_ : list of tuple of int
        Natural shape of a row per layer.
    dims_ : list of tuple of str
        Name of each axis of a row per layer.
    augmentation_ : str
        How the views are made, where there are any.
    view_seed_ : int

    Warns
    -----
    UserWarning
        A layer holds values that are NaN or infinite, which ``extract --non-finite keep`` stored.

    Raises
    ------
    FeaturesNotCached
        Nothing in the cache matches; the message lists what is there.
    AmbiguousFeatures
        Several models, weights, reductions … match.
    StimulusNotCached
        Some ids have no row.
    """

    mirror = mirror_size = None  # of pipelines that were saved before there were mirrors

    def __init__(
        self,
        cache="cache",
        model=None,
        layers=None,
        reduce=None,
        *,
        weights=None,
        preprocess=None,
        precision=None,
        store_dtype=None,
        model_args=None,
        stimuli=None,
        output="matrix",
        views=0,
        augmentation=None,
        view_seed=None,
        mirror=None,
        mirror_size=None,
    ):
        self.cache = cache
        self.model = model
        self.layers = layers
        self.reduce = reduce
        self.weights = weights
        self.preprocess = preprocess
        self.precision = precision
        self.store_dtype = store_dtype
        self.model_args = model_args
        self.stimuli = stimuli
        self.output = output
        self.views = views
        self.augmentation = augmentation
        self.view_seed = view_seed
        self.mirror = mirror
        self.mirror_size = mirror_size

    def fit(self, X, y=None):
        """Settle which cached features are meant.

        Parameters
        ----------
        X : array-like of str, shape (n_stimuli,)
            Stimulus ids; only arrays that hold some of them are considered.
        y : ignored

        Returns
        -------
        self
        """
        self._check_parameters()
        ids = as_ids(X).tolist()
        arrays = _holding(self._candidates(), ids)
        if not arrays:
            raise StimulusNotCached(
                f"None of {len(ids)} stimuli, first {ids[0]!r}, has a row under the features asked for. "
                "Run `featpipe extract` for this stimulus set, or check that the ids match its manifest."
            )
        chosen = settle(arrays, self.layers)
        self.specs_ = [array.spec for array in chosen]
        say_non_finite([array for array in arrays if array.spec in self.specs_])
        self.row_shapes_ = [array.row_shape for array in chosen]
        self.dims_ = [array.dims for array in chosen]
        if self.views:
            self.augmentation_, self.view_seed_ = settle_views(
                _holding(arrays_of_views(self.root, self.specs_, self.stimuli), ids),
                self.specs_,
                self.views,
                augmentation=self.augmentation,
                seed=self.view_seed,
            )
        return self

    def transform(self, X):
        """Return the rows of some stimuli.

        Parameters
        ----------
        X : array-like of str, shape (n_stimuli,)
            In any order, with repeats.

        Returns
        -------
        ndarray of shape (n_stimuli, n_features), float32, or LayerBlocks
        """
        check_is_fitted(self, "specs_")
        ids = as_ids(X)
        views = [self._blocks(ids, specs) for specs in self.view_specs_]
        blocks = self._blocks(ids, self.specs_, views)
        return blocks.to_matrix() if self.output == "matrix" else blocks

    def _blocks(self, ids, specs, views=()):
        rows = StoredRows(self.root, specs, self.stimuli)
        return LayerBlocks(
            ids,
            names=[spec.layer_label for spec in specs],
            shapes=self.row_shapes_,
            dims=self.dims_,
            digests=[spec.digest() for spec in specs],
            read=rows.read,
            stream=rows.stream,
            views=views,
            images=rows.images,
        )

    def get_feature_names_out(self, input_features=None):
        """Return one name a column: ``LAYER_i`` for vectors, ``LAYER_c_y_x`` for maps."""
        check_is_fitted(self, "specs_")
        names = []
        for spec, shape in zip(self.specs_, self.row_shapes_, strict=True):
            places = np.ndindex(*shape)
            names += [f"{spec.layer_label}_{'_'.join(map(str, place))}" for place in places]
        return np.asarray(names, dtype=object)

    @property
    def root(self) -> Root:
        """The cache with its mirror, if it has one, as `FeatureCache` takes it."""
        return mirrored(self.cache, self.mirror, self.mirror_size)

    @property
    def view_specs_(self) -> list[list[FeatureSpec]]:
        """The features of views 1, 2, …, each one per layer."""
        check_is_fitted(self, ["specs_", "augmentation_"] if self.views else "specs_")
        if not self.views:
            return []
        made_by = Augmentation.parse(self.augmentation_)
        views = [View(number, made_by, self.view_seed_) for number in range(1, self.views + 1)]
        return [[spec_of_view(spec, view) for spec in self.specs_] for view in views]

    @property
    def digest(self) -> str:
        """Digest of the settled features of all layers, and of their views."""
        check_is_fitted(self, "specs_")
        return digest_of([spec.digest() for specs in (self.specs_, *self.view_specs_) for spec in specs])

    def _check_parameters(self):
        check_output(self.output, self.views)
        for name in ("model", "weights", "reduce", "precision", "store_dtype", "stimuli", "augmentation"):
            if not isinstance(value := getattr(self, name), str | None):
                raise RequestError(f"{name} must be a text, got {value!r}.")
        for name, value in (("views", self.views), ("view_seed", self.view_seed or 0)):
            if not isinstance(value, Integral) or value < 0:
                raise RequestError(f"{name} must be a number from 0, got {value!r}.")

    def _candidates(self):
        asked = ("model", "weights", "reduce", "preprocess", "precision", "store_dtype", "model_args")
        given = {name: value for name in asked if (value := getattr(self, name)) is not None}
        return candidates(self.root, given, self.stimuli)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def check_output(output: Any, views: Any) -> None:
    """Raise `RequestError` unless an output is one of those known and has a place for the views."""
    if output not in ("matrix", "blocks"):
        raise RequestError(f"output is {output!r}; it must be 'matrix' or 'blocks'.")
    if views and output == "matrix":
        raise RequestError(
            f"A matrix has no place for {views} views of each image. Set features__output='blocks' for estimators "
            "that fit on views, or features__views=0."
        )


def _holding(arrays: Sequence[CachedArray], ids: Sequence[str]) -> list[CachedArray]:
    """Return the arrays that hold some of the ids."""
    return [array for array in arrays if not READS.index(array).keys().isdisjoint(ids)]


def as_ids(X: Any) -> np.ndarray:
    """Return stimulus ids as an array of str, one dimension; raises `RequestError`."""
    ids = np.asarray(X, dtype=str) if len(X) else np.asarray([], dtype=str)
    if ids.ndim != 1 or not len(ids):
        raise RequestError(
            f"Stimulus ids must be a non-empty array of one dimension, got shape {ids.shape}. "
            "X of a featpipe pipeline is the ids themselves."
        )
    return ids


def arrays_meant(features: CachedFeatures) -> list[CachedArray]:
    """Return the cached arrays that features may settle on, whichever layers a search chooses among them.

    Raises
    ------
    FeaturesNotCached
        There is none.
    RequestError
        Parameters that do not exist.
    """
    features._check_parameters()
    return list(features._candidates())
