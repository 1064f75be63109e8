"""What a cache holds as one HTML page on which people find arrays and the command that reads each."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from featpipe import __version__
from featpipe.errors import FeatpipeError, RequestError
from featpipe.files import written_whole
from featpipe.report._write import environment
from featpipe.store import CachedArray, FeatureCache, is_url, last_written, shown_url

# What may be read by whoever gets the page; paths of the people who wrote the features are not among it.
_TOLD = ("device", "precision", "batch_size", "memory_format", "mode", "threads", "python", "host", "adopted")
_CHOICES = ("precision", "store_dtype", "model_args")  # of `CachedFeatures`, named where a layer has several


def write_catalog(
    cache: FeatureCache,
    out: str | Path,
    *,
    url: str | None = None,
    unreadable: Callable[[str, FeatpipeError], None] | None = None,
) -> Path:
    """Write a page that lists the arrays of a cache and needs nothing else, neither network nor server.

    Parameters
    ----------
    cache : FeatureCache
    out : path
        The file.
    url : str, optional
        Where readers of the page find the cache; where it lies now by default. Shown without user and query.
    unreadable : callable (key, error), optional
        Is told of each array that is damaged, which is then left out.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        `out` is a folder.
    CacheCorrupt
        An array is damaged and `unreadable` is not given.
    MissingDependency
        jinja2 is not installed.
    """
    target = Path(out)
    if target.is_dir():
        raise RequestError(f"--out {target} is a folder; name a file, such as {target / 'index.html'}.")
    place = _place(cache, url)
    page = _render(place, catalog_entries(cache, place, unreadable))
    with written_whole(target) as file:
        file.write(page.encode())
    return target


def catalog_entries(
    cache: FeatureCache, place: str, unreadable: Callable[[str, FeatpipeError], None] | None = None
) -> list[dict[str, Any]]:
    """Return what the page says of each array, as JSON values, in the order of `FeatureCache.find`."""
    arrays = cache.find(unreadable=unreadable)
    several = _choices(arrays)
    entries = []
    for array in arrays:
        try:
            entries.append(_entry(array, place, several[_layer(array)]))
        except FeatpipeError as error:
            if unreadable is None:
                raise
            unreadable(array.key, error)
    return entries


def _place(cache: FeatureCache, url: str | None) -> str:
    place = str(url or cache.root)
    return shown_url(place) if is_url(place) else os.path.abspath(place)


def _render(place: str, entries: list[dict[str, Any]]) -> str:
    script = files("featpipe.report").joinpath("catalog.js").read_text("utf-8")
    page: str = (
        environment()
        .get_template("catalog.html")
        .render(
            place=place,
            entries=entries,
            n_sets=len({entry["stimuli_digest"] for entry in entries}),
            n_models=len({entry["model"] for entry in entries}),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            made=datetime.now(UTC).strftime("%Y-%m-%d"),
            version=__version__,
        )
    )
    return page


def _entry(array: CachedArray, place: str, several: set[str]) -> dict[str, Any]:
    spec, provenance = array.spec, array.provenance
    written = last_written(array)
    missing = sum(len(array.layout.rows_of(shard)) for shard in array.missing)
    return {
        "key": array.key,
        "model": spec.model,
        "weights": str(provenance.get("weights_label") or spec.weights[:12]),
        "layer": spec.layer_label,
        "reduce": str(spec.reduction),
        "view": spec.view,
        "shape": list(array.row_shape),
        "dims": list(array.dims),
        "dtype": str(array.dtype),
        "stimuli": array.manifest.name,
        "stimuli_digest": array.stimuli_digest,
        "rows": array.n_stimuli,
        "missing": missing,
        "bytes": array.nbytes,
        "raw_bytes": (array.n_stimuli - missing) * array.layout.row_bytes,
        "codec": array.codec,
        "written": written.strftime("%Y-%m-%d") if written else "",
        "facts": _facts(array, provenance),
        "python": _python(array, place, several),
        "shell": _shell(array, place),
    }


def _facts(array: CachedArray, provenance: Mapping[str, Any]) -> list[list[str]]:
    spec = array.spec
    facts = [["Weights digest", spec.weights]]
    if spec.preprocessing is not None:
        facts.append(["Preprocessing", _words(spec.preprocessing.to_json())])
    if spec.model_args:
        facts.append(["Model arguments", _words(dict(spec.model_args))])
    if spec.view:
        facts.append(["View", f"{spec.view} of {spec.augmentation}, seed {spec.view_seed}"])
    facts += [
        [name.replace("_", " ").capitalize(), str(provenance[name])] for name in _TOLD if name in provenance
    ]
    if isinstance(provenance.get("versions"), Mapping):
        facts.append(["Versions", _words(provenance["versions"])])
    return facts


def _words(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _layer(array: CachedArray) -> tuple[str, str]:
    return array.spec.model, array.spec.layer_label


def _choices(arrays: list[CachedArray]) -> dict[tuple[str, str], set[str]]:
    """Return, for each layer of a model, which fields its arrays differ in."""
    seen: dict[tuple[str, str], dict[str, set[str]]] = {}
    for array in arrays:
        values = seen.setdefault(_layer(array), {name: set() for name in (*_CHOICES, "preprocess")})
        for name in _CHOICES:
            values[name].add(str(getattr(array.spec, name)))
        values["preprocess"].add(str(array.spec.preprocessing))
    return {layer: {n for n, found in values.items() if len(found) > 1} for layer, values in seen.items()}


def _python(array: CachedArray, place: str, several: set[str]) -> str:
    """Return Python that reads the rows: by ids, and as they lie in the cache."""
    by_key = (
        "from featpipe.store import FeatureCache\n\n"
        f'rows = FeatureCache({place!r}).open({array.key[:16]!r}, as_="xarray")'
    )
    if array.spec.view:
        return by_key  # `CachedFeatures` reads views beside the images, not by themselves
    spec = array.spec
    fields: dict[str, Any] = {
        "model": spec.model,
        "layers": [spec.layer_label],
        "reduce": str(spec.reduction),
        "weights": spec.weights[:12],
        "stimuli": array.stimuli_digest[:12],
    }
    fields |= {name: getattr(spec, name) for name in ("precision", "store_dtype") if name in several}
    if "model_args" in several:
        fields["model_args"] = dict(spec.model_args)
    if "preprocess" in several and spec.preprocessing is not None:
        fields["preprocess"] = spec.preprocessing.to_json()
    lines = "".join(f"    {name}={value!r},\n" for name, value in {"cache": place, **fields}.items())
    by_id = f"from featpipe import CachedFeatures\n\nfeatures = CachedFeatures(\n{lines})\n"
    return f"{by_id}X = features.fit_transform(ids)\n\n# or all rows, with their ids\n{by_key}"


def _shell(array: CachedArray, place: str) -> str:
    there, key = shlex.quote(place), array.key[:16]
    export = f"featpipe cache export {key} --cache {there} --to h5" + (" --partial" if array.missing else "")
    pull = f"featpipe cache pull {there} {key} --cache cache\n" if is_url(place) else ""
    return pull + export
