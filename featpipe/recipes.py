"""Recipes: what a file in ``pipelines/`` declares, and what follows from it.

A recipe is Python that defines ``RECIPE``. ``extract`` and ``fit`` read the same one, so that they cannot
disagree about the layers.
"""

from __future__ import annotations

import ast
import hashlib
import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from sklearn.base import clone
from sklearn.pipeline import Pipeline

import featpipe
from featpipe.errors import RecipeError
from featpipe.extraction import Order
from featpipe.features import CachedFeatures, JoinedFeatures, layer_patterns, parts_of
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest, Reduction
from featpipe.views import USUAL, Augmentation


@dataclass(frozen=True)
class Recipe:
    """An analysis, from features to scores.

    Parameters
    ----------
    summary : str
        One line.
    citation : str
        The report that it follows, with the section.
    pipeline : Pipeline
        Its first step is named ``features`` and is a `CachedFeatures` or a `JoinedFeatures`; or is named ``tuner``
        and changes a network: an estimator with ``takes_images``, which the runner gives the images of the data.
    data : tuple of str
        Kinds of DATA that it takes.
    scoring : tuple of str
        Metrics, the first one leads.
    cv : int or str
        Outer folds where the data bring no splits: a number, ``group``, ``splits`` or ``set``.
    search : mapping of str to sequence
        Parameters to choose inside each training set, as in `GridSearchCV`; empty for none.
    search_scoring : str
        What the search looks at.
    per_target : mapping of str to mapping
        Parameters of the pipeline that belong to one target, such as the configuration that a report gives for
        one region; see `for_target`.
    variants : mapping of str to Pipeline
        Other pipelines of the same report, by name; see `with_variant`.
    name, path, sha256 : str
        Filled by `load_recipe`.
    """

    summary: str
    citation: str
    pipeline: Pipeline
    data: tuple[str, ...] = ("table", "algonauts2023", "synthetic")
    scoring: tuple[str, ...] = ("pearson_r", "r2")
    cv: int | str = 5
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    search_scoring: str = "pearson_r"
    per_target: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, Pipeline] = field(default_factory=dict)
    name: str = ""
    path: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        for pipeline in (self.pipeline, *self.variants.values()):
            first = pipeline.steps[0] if isinstance(pipeline, Pipeline) else ("", None)
            features = first[0] == "features" and isinstance(first[1], CachedFeatures | JoinedFeatures)
            if not features and not (first[0] == "tuner" and getattr(first[1], "takes_images", False)):
                raise RecipeError(
                    "A recipe's pipeline must begin with a step 'features' that is a CachedFeatures or a "
                    "JoinedFeatures, or with a step 'tuner' that takes images, such as a SiameseTuner."
                )

    @property
    def predicts(self) -> Literal["responses", "rdms"]:
        """What comes out of the pipeline, as its leading metric tells."""
        return "rdms" if self.scoring[0].startswith("rdm_") else "responses"

    @property
    def tuner(self) -> Any:
        """The first step where it is one that changes a network, and reads images; None where it reads a cache."""
        return tuner_of(self.pipeline)

    def for_target(self, target: str | None) -> Recipe:
        """Return the recipe with the parameters that it gives for a target, if it gives any."""
        return self.with_params(self.per_target.get(target, {})) if target is not None else self

    def with_variant(self, variant: str | None) -> Recipe:
        """Return the recipe with another pipeline of the same report, or itself for None.

        Raises
        ------
        RecipeError
            Lists the variants there are.
        """
        if variant is None:
            return self
        if variant not in self.variants:
            there = f"There are {', '.join(self.variants)}" if self.variants else "It has none"
            raise RecipeError(
                f"Recipe {self.name!r} has no variant {variant!r}. {there}; leave it out for its own."
            )
        return replace(self, pipeline=self.variants[variant])

    def with_params(self, params: Mapping[str, Any]) -> Recipe:
        """Return the recipe with parameters of its pipeline set, as ``--set`` does.

        Raises
        ------
        RecipeError
            Names a parameter that the pipeline does not have.
        """
        self._check_names(params)
        steps = dict(self.pipeline.steps)
        for name in params.keys() & (steps.keys() | {"steps", "memory", "verbose", "transform_input"}):
            raise RecipeError(
                f"{name!r} is a step of the pipeline or the pipeline's own; set a parameter of a step, such as "
                f"{', '.join(n for n in self.pipeline.get_params() if '__' in n)}."
            )
        return replace(self, pipeline=clone(self.pipeline).set_params(**params))

    def with_search(self, search: Mapping[str, Sequence[Any]]) -> Recipe:
        """Return the recipe with more parameters to choose inside each training set."""
        self._check_names(search)
        for name, values in search.items():
            if not isinstance(values, list) or not values:
                raise RecipeError(f"A search over {name} needs a list of values, got {values!r}.")
        return replace(self, search={**self.search, **search})

    def orders(self, *, trust: bool = False) -> list[Order]:
        """Return what has to be extracted for this recipe: an order per network, none where images are read.

        Raises
        ------
        RecipeError
            The recipe leaves model or layers to the cache, or asks for preprocessing by its fields.
        """
        if self.tuner is not None:
            return []
        parts = parts_of(self.pipeline.named_steps["features"])
        return [self._order(name, features, trust) for name, features in parts]

    def _order(self, part: str, features: CachedFeatures, trust: bool) -> Order:
        prefix = f"features__{part}__" if part else "features__"
        if features.model is None or features.layers is None:
            raise RecipeError(
                f"Recipe {self.name!r} leaves model or layers to what is cached. Give both, such as "
                f"--set {prefix}model=timm:resnet50 --set {prefix}layers='[\"layer3\"]'."
            )
        if not isinstance(features.model, str):
            raise RecipeError(f"{prefix}model must be a text, got {features.model!r}.")
        if not isinstance(features.preprocess, str | None):
            raise RecipeError(f"To extract for a recipe, {prefix}preprocess must be 'model' or 'whole'.")
        reduction = Reduction.parse(str(features.reduce or "none"))
        return Order(
            model=ModelRequest(
                model=features.model,
                weights=features.weights or "default",
                model_args=tuple((features.model_args or {}).items()),
                preprocess=features.preprocess or "model",
                trust=trust,
            ),
            layers=tuple(LayerRequest(layer, reduction) for layer in self._layers(prefix, features)),
            store_dtype=features.store_dtype or "float32",
            precision=features.precision or "fp32",
            n_views=features.views,
            augmentation=Augmentation.parse(features.augmentation or str(USUAL)),
            view_seed=features.view_seed or 0,
        )

    def _layers(self, prefix: str, features: CachedFeatures) -> list[str]:
        candidates = [features.layers, *self.search.get(f"{prefix}layers", ())]
        return list(dict.fromkeys(layer for layers in candidates for layer in layer_patterns(layers)))

    def _check_names(self, names: Mapping[str, Any]) -> None:
        known = self.pipeline.get_params()
        for name in names:
            if name not in known:
                close = get_close_matches(name, known, 3) or [n for n in known if "__" in n][:8]
                raise RecipeError(
                    f"Recipe {self.name!r} has no parameter {name!r}; there are {', '.join(close)}."
                )


def tuner_of(pipeline: Pipeline) -> Any:
    """Return a pipeline's first step where that is a tuner, which takes images and not a cache, else None."""
    name, first = pipeline.steps[0]
    return first if name == "tuner" else None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE``; the value is JSON, a Python literal, or else the text itself.

    Raises
    ------
    RecipeError
        There is no ``=``, or the value begins like a list, tuple or dict and is none.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"{text!r} is not KEY=VALUE, such as ridge__alphas='[1, 10, 100]'.")
    for read in (json.loads, ast.literal_eval):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    if value.startswith(("[", "(", "{")):
        raise RecipeError(
            f"The value of {name} looks like a list but cannot be read: {value!r}. Quote it for the shell and its "
            f"""texts inside, such as --set {name}='["layer3"]'."""
        )
    return name, value


def recipe_folders() -> list[Path]:
    """Return where recipes are looked for by name: ``./pipelines`` and those that came with featpipe."""
    package = Path(featpipe.__file__).parent
    return [Path("pipelines"), package / "pipelines", package.parent / "pipelines"]


def recipe_files() -> list[Path]:
    """Return one file per recipe name, the first folder first."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("[!_]*.py")):
            found.setdefault(path.stem, path)
    return sorted(found.values(), key=lambda path: path.stem)


def find_recipe(text: str) -> Path:
    """Return the file of a recipe given as a path or by its name.

    Raises
    ------
    RecipeError
        Lists the recipes there are.
    """
    if Path(text).is_file():
        return Path(text)
    by_name = {path.stem: path for path in recipe_files()}
    if Path(text).stem in by_name and Path(text).parent in (Path(), Path("pipelines")):
        return by_name[Path(text).stem]
    raise RecipeError(f"There is no recipe {text!r}. There are {', '.join(by_name)}; or give a path.")


def load_recipe(text: str) -> Recipe:
    """Run a recipe's file and return its ``RECIPE``.

    Raises
    ------
    RecipeError
        There is no such file, it is not Python, it imports what is not there, or it does not define ``RECIPE``.
    """
    path = find_recipe(text)
    source = path.read_bytes()
    try:
        defined = runpy.run_path(str(path), run_name=f"featpipe_recipe_{path.stem}")
    except (SyntaxError, ImportError) as error:
        raise RecipeError(
            f"{path} is not a recipe that can be run ({type(error).__name__}: {error}). A recipe is a Python file "
            "that defines RECIPE."
        ) from error
    recipe = defined.get("RECIPE")
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{path} must define RECIPE = featpipe.recipes.Recipe(…); it defines {recipe!r}.")
    return replace(recipe, name=path.stem, path=str(path), sha256=hashlib.sha256(source).hexdigest())
