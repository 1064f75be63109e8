"""Which cached features a request means: what it names, and what the cache leaves no choice about."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import AmbiguousFeatures, FeaturesNotCached, RequestError
from featpipe.spec import FeatureSpec, ModelRef, Reduction, from_anywhere, match_names
from featpipe.store import CachedArray, FeatureCache, MirroredURL, Root, is_url


@lru_cache(maxsize=16_384)
def _opened(root: str | MirroredURL, key: str, version: Any) -> CachedArray:
    """Open an array once: but for its commits, which are looked up afresh, it never changes."""
    return _cache(root).array(key)


@lru_cache(maxsize=16)
def _remote_cache(root: str | MirroredURL) -> FeatureCache:
    """Return a cache somewhere else, the same one for all its arrays: they share the ids of their stimuli."""
    return FeatureCache(root)


def _cache(root: str | MirroredURL) -> FeatureCache:
    return _remote_cache(root) if is_url(root) else FeatureCache(root)


def cached_arrays(cache: Root) -> list[CachedArray]:
    """Return all arrays of a cache."""
    root = _root(cache)
    there = _cache(root)
    if not is_url(root):
        return [_open(root, key) for key in there.keys() if there.has(key)]
    with ThreadPoolExecutor(
        there.location.threads
    ) as pool:  # each asks a few times, and waits for the answers
        found = pool.map(lambda key: _if_there(root, key), there.keys())
        return [array for array in found if array is not None]


def _if_there(root: str | MirroredURL, key: str) -> CachedArray | None:
    """Open an array; None where it was removed, or is being created."""
    try:
        array = _open(root, key)
        array.provenance  # noqa: B018 - whoever chooses asks for it next, of one after the other
    except FeaturesNotCached:
        return None
    return array


def _root(cache: Root) -> str | MirroredURL:
    if isinstance(cache, MirroredURL):
        return cache
    return str(cache) if is_url(cache) else os.path.realpath(cache)


def _open(root: str | MirroredURL, key: str) -> CachedArray:
    if not is_url(root):
        return _opened(root, key, os.stat(f"{root}/arrays/{key}").st_ino)
    array = _opened(root, key, None)
    array.look_again()
    return array


def arrays_of(cache: Root, spec: FeatureSpec, stimuli: str | None) -> list[CachedArray]:
    """Return the arrays that hold these features, one a stimulus set, of the sets that may be looked at."""
    root = _root(cache)
    arrays = [_open(root, key) for key in _cache(root).keys_of(spec)]
    return [array for array in arrays if stimuli is None or is_set(array, stimuli)]


def candidates(cache: Root, given: Mapping[str, Any], stimuli: str | None) -> list[CachedArray]:
    """Return the arrays that have all fields given; raises `FeaturesNotCached` when none has.

    Only those of the images themselves: augmented views are read beside them, never instead.

    Parameters
    ----------
    cache : path
    given : mapping
        Parameters of `CachedFeatures` that were set.
    stimuli : str or None
        The one stimulus set to look at.
    """
    of_images = [a for a in cached_arrays(cache) if a.spec.view == 0]
    arrays = [a for a in of_images if stimuli is None or is_set(a, stimuli)]
    fields = dict(given)
    if {"weights", "model"} <= fields.keys():  # weights that were named outrank the tag in the model's name
        fields["model"] = ModelRef.parse(fields["model"]).architecture
    found = [a for a in arrays if all(_matches(a, name, value) for name, value in fields.items())]
    if found:
        return found
    wanted = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "any features"
    where = f"the cache at {cache}" + (f" for stimulus set {stimuli[:12]}" if stimuli else "")
    raise FeaturesNotCached(
        f"There is nothing with {wanted} in {where}. It holds: {_summary(arrays)}. "
        "Run `featpipe extract` (or `fit --extract`), or correct the field that differs."
    )


def settle(arrays: Sequence[CachedArray], layers: str | Iterable[str] | None) -> list[CachedArray]:
    """Return one array per layer, if the arrays of these layers agree in everything but layer and stimuli."""
    if layers is None:
        return _only_layer(_settle_fields(arrays))
    wanted = layer_patterns(layers)
    there = _by_label(arrays)
    labels = [label for pattern in wanted for label in _matching(pattern, list(there))]
    agreeing = _settle_fields([array for array in arrays if array.spec.layer_label in labels])
    chosen = _by_label(agreeing)
    return [chosen[label] for label in dict.fromkeys(labels)]


def is_set(array: CachedArray, wanted: str) -> bool:
    """Whether an array is of the stimulus set that a digest or a name means."""
    if array.spec.preprocessing is None:
        return True  # an imported array is known by ids, in whichever set they came
    if re.fullmatch(r"[0-9a-f]{8,64}", wanted) and array.stimuli_digest.startswith(wanted):
        return True
    return len(wanted) < 64 and wanted == array.manifest.name  # a whole digest is no name; spare the manifest


def _matches(array: CachedArray, name: str, value: Any) -> bool:
    spec = array.spec
    if name == "model":
        return _is_model(array, ModelRef.parse(value))
    if name == "weights":
        return (len(value) >= 8 and spec.weights.startswith(value)) or _has_label(array, value)
    if name == "reduce":
        return spec.reduction == Reduction.parse(value)
    if name == "preprocess":
        return _has_preprocessing(array, value)
    if name == "model_args":
        return dict(spec.model_args) == dict(value)
    return bool(getattr(spec, name) == value)


def _is_model(array: CachedArray, asked: ModelRef) -> bool:
    if asked.zoo == "local":  # keys have the network's name, so a checkpoint is known by what was asked for
        return array.provenance.get("model_asked") in (str(asked), from_anywhere(str(asked)))
    name = asked.architecture
    if asked.zoo == "python":  # a key has the file's name and digest, wherever the file lies
        path, _, function = asked.name.rpartition(":")
        name = f"python:{Path(path).name}:{function}"
    return array.spec.model == name and (asked.tag is None or _has_label(array, asked.tag))


def _has_preprocessing(array: CachedArray, wanted: str | Mapping[str, Any]) -> bool:
    prep = array.spec.preprocessing
    if prep is None or isinstance(wanted, str):
        return prep is not None and prep.mode == wanted
    there = prep.to_json()
    return all(name in there and there[name] == _listed(value) for name, value in wanted.items())


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _has_label(array: CachedArray, label: str) -> bool:
    """Whether the weights were once asked for, or resolved, under this name."""
    provenance = array.provenance
    asked = provenance.get("weights_asked")  # of a file the absolute path
    return label in (provenance.get("weights_label"), asked) or os.path.abspath(label) == asked


_SETTLED = (
    "model",
    "weights",
    "model_args",
    "code",
    "preprocessing",
    "precision",
    "store_dtype",
    "reduction",
)


def _settle_fields(arrays: Sequence[CachedArray]) -> list[CachedArray]:
    """Return the arrays if they agree in everything but layer and stimuli; raise otherwise."""
    several: dict[str, list[str]] = {}
    for name in (*_SETTLED, "reduction_version"):
        values = {getattr(array.spec, name): _shown(array, name) for array in arrays}
        if len(values) > 1:
            several[name] = sorted(values.values())
    if several:
        listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in several.items())
        settable = ["features__" + _PARAMETER[name] for name in several if name in _PARAMETER]
        choose = (
            f"set {', '.join(settable)}" if settable else "remove the others with `featpipe cache rm KEY`"
        )
        raise AmbiguousFeatures(
            f"Several cached features match and differ in {listed}. Choose one: {choose}."
        )
    return list(arrays)


_PARAMETER = {name: name for name in ("model", "weights", "model_args", "precision", "store_dtype")} | {
    "reduction": "reduce",
    "preprocessing": "preprocess",
}


def _shown(array: CachedArray, name: str) -> str:
    value = getattr(array.spec, name)
    if name == "weights":
        return f"{value[:12]} ({array.provenance.get('weights_label', 'label unknown')})"
    if name == "preprocessing" and value is not None:
        return f"{value.mode} ({value.to_json()})"
    return repr(dict(value)) if name == "model_args" else str(value)


def layer_patterns(layers: Any) -> list[str]:
    """Return `layers` as a list; raises `RequestError` when it is not one of texts, or empty."""
    wanted = [layers] if isinstance(layers, str) else layers
    if not isinstance(wanted, Sequence | np.ndarray) or not all(isinstance(name, str) for name in wanted):
        raise RequestError(
            f"layers must be a name or a list of names, got {layers!r}. A name of digits is quoted, such as '[\"3\"]'."
        )
    if not len(wanted):
        raise RequestError("layers is empty; name at least one layer.")
    return [str(name) for name in wanted]


def _only_layer(arrays: Sequence[CachedArray]) -> list[CachedArray]:
    there = _by_label(arrays)
    if len(there) > 1:
        raise AmbiguousFeatures(
            f"{len(there)} layers are cached: {', '.join(there)}. Choose with features__layers, such as "
            f"--set features__layers='[\"{next(iter(there))}\"]'."
        )
    return list(there.values())


def _matching(pattern: str, labels: Sequence[str]) -> list[str]:
    found = match_names(pattern, labels)
    if not found:
        raise FeaturesNotCached(
            f"No cached layer matches {pattern!r}; cached are {', '.join(labels)}. "
            "Name one of these, or run `featpipe extract` with this layer."
        )
    return found


def _by_label(arrays: Sequence[CachedArray]) -> dict[str, CachedArray]:
    """Return one array per layer, as the network runs them by what extraction recorded; unknown ones by name."""
    first: dict[str, CachedArray] = {}
    for array in arrays:
        first.setdefault(array.spec.layer_label, array)
    order = sorted(first, key=lambda label: (first[label].provenance.get("layer_order", 1 << 30), label))
    return {label: first[label] for label in order}


def _summary(arrays: Sequence[CachedArray]) -> str:
    if not arrays:
        return "nothing"
    kinds = sorted({f"{a.spec.model} {a.spec.layer_label}:{a.spec.reduction}" for a in arrays})
    return ", ".join(kinds[:12]) + (f" and {len(kinds) - 12} more" if len(kinds) > 12 else "")
