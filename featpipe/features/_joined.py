"""Several networks side by side: a transformer from ids to the layers of all of them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.base import TransformerMixin, clone
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted

from featpipe.blocks import LayerBlocks
from featpipe.errors import FeatpipeError, RequestError
from featpipe.features._cached import CachedFeatures, as_ids, check_output
from featpipe.spec import digest_of

_SHARED = ("cache", "stimuli", "mirror", "mirror_size")  # what the whole may say for all its parts


class JoinedFeatures(TransformerMixin, _BaseComposition):
    """Turn stimulus ids into the features of several networks, or of imported arrays, side by side.

    Layers are named ``NAME:LAYER``, in the order of the parts. Parameters of a part are set as in a
    `FeatureUnion`: ``mobilenet__layers``.

    Parameters
    ----------
    parts : list of (str, CachedFeatures)
        Names differ, and have neither ``__`` nor ``:`` in them.
    cache : str or Path, optional
        The folder or URL of all parts; by default each has its own.
    stimuli : str, optional
        Stimulus set to look ids up in, of all parts; by default each has its own.
    output : {"blocks", "matrix"}
        `LayerBlocks`, or a float32 matrix of shape (n_stimuli, n_features); the parts' own is not used.
    mirror : str or Path, optional
        Folder for copies of what is read from a URL, of all parts; by default each has its own.
    mirror_size : int, optional
        Bytes that it may hold.

    Attributes
    ----------
    parts_ : list of (str, CachedFeatures)
        Fitted.
    specs_ : list of FeatureSpec
    row_shapes_ : list of tuple of int
    dims_ : list of tuple of str
        One per layer, over all parts.

    Raises
    ------
    FeaturesNotCached, AmbiguousFeatures, StimulusNotCached
        As in `CachedFeatures`; the message begins with the part's name.
    """

    mirror = mirror_size = None  # of pipelines that were saved before there were mirrors

    def __init__(self, parts, *, cache=None, stimuli=None, output="blocks", mirror=None, mirror_size=None):
        self.parts = parts
        self.cache = cache
        self.stimuli = stimuli
        self.output = output
        self.mirror = mirror
        self.mirror_size = mirror_size

    def get_params(self, deep=True):
        """Return the parameters; with `deep` also those of the parts, as ``NAME__PARAMETER``."""
        return self._get_params("parts", deep=deep)

    def set_params(self, **params):
        """Set parameters, those of a part as ``NAME__PARAMETER``."""
        return self._set_params("parts", **params)

    def fit(self, X, y=None):
        """Settle which cached features each part means.

        Parameters
        ----------
        X : array-like of str, shape (n_stimuli,)
            Stimulus ids.
        y : ignored

        Returns
        -------
        self
        """
        self._check_parts()
        self.parts_ = [(name, _fitted(name, self._placed(clone(part)), X)) for name, part in self.parts]
        fitted = [part for _, part in self.parts_]
        self.specs_ = [spec for part in fitted for spec in part.specs_]
        self.row_shapes_ = [shape for part in fitted for shape in part.row_shapes_]
        self.dims_ = [dims for part in fitted for dims in part.dims_]
        return self

    def transform(self, X):
        """Return the rows of some stimuli.

        Parameters
        ----------
        X : array-like of str, shape (n_stimuli,)
            In any order, with repeats.

        Returns
        -------
        LayerBlocks, or ndarray of shape (n_stimuli, n_features), float32
        """
        check_is_fitted(self, "parts_")
        ids = as_ids(X)
        blocks = LayerBlocks.join([(name, part.transform(ids)) for name, part in parts_of(self)])
        return blocks.to_matrix() if self.output == "matrix" else blocks

    def get_feature_names_out(self, input_features=None):
        """Return one name a column: ``NAME:LAYER_i`` for vectors, ``NAME:LAYER_c_y_x`` for maps."""
        check_is_fitted(self, "parts_")
        names = [f"{name}:{column}" for name, part in self.parts_ for column in part.get_feature_names_out()]
        return np.asarray(names, dtype=object)

    @property
    def digest(self) -> str:
        """Digest of the settled features of all parts and of their names."""
        check_is_fitted(self, "parts_")
        return digest_of([[name, part.digest] for name, part in self.parts_])

    def _placed(self, part: CachedFeatures) -> CachedFeatures:
        """Let a part look where the whole does, and return it."""
        here = {name: value for name in _SHARED if (value := getattr(self, name)) is not None}
        return part.set_params(**here, output="blocks")

    def _check_parts(self):
        pairs = isinstance(self.parts, list | tuple) and all(
            isinstance(pair, list | tuple) and len(pair) == 2 for pair in self.parts
        )
        if not pairs or not self.parts or not all(isinstance(part, CachedFeatures) for _, part in self.parts):
            raise RequestError(f"parts must be a list of (name, CachedFeatures), got {self.parts!r}.")
        names = [name for name, _ in self.parts]
        own = {"parts", "output", *_SHARED}
        wrong = [n for n in names if not isinstance(n, str) or not n or "__" in n or ":" in n or n in own]
        if wrong or len(set(names)) < len(names):
            raise RequestError(
                f"Names of parts must differ, have neither '__' nor ':' in them, and be none of "
                f"{', '.join(sorted(own))}; got {names}."
            )
        if len({part.views for _, part in self.parts}) > 1:
            listed = ", ".join(f"features__{name}__views={part.views}" for name, part in self.parts)
            raise RequestError(f"Parts that are joined need as many views each, got {listed}.")
        check_output(self.output, self.parts[0][1].views)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _fitted(name: str, part: CachedFeatures, ids: Any) -> CachedFeatures:
    """Fit a part; its errors then say which one it is, and what its parameters are called in the whole."""
    try:
        return part.fit(ids)
    except FeatpipeError as error:
        said = str(error).replace("features__", f"features__{name}__")
        raise type(error)(f"Part {name!r}: {said}") from error


def parts_of(features: CachedFeatures | JoinedFeatures) -> list[tuple[str, CachedFeatures]]:
    """Return the parts that features are made of, each looking where the whole does.

    Of fitted features the parts are fitted. A `CachedFeatures` is its own only part, without a name.
    """
    if isinstance(features, CachedFeatures):
        return [("", features)]
    parts = getattr(features, "parts_", features.parts)
    return [(name, features._placed(copy.copy(part))) for name, part in parts]
