"""Which arrays of a cache a transfer is about: by key, model, layer and stimulus set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from featpipe.errors import AmbiguousFeatures, CacheCorrupt, FeaturesNotCached
from featpipe.spec import FeatureSpec, match_names
from featpipe.store._array import array_folder, parse_spec, read_spec
from featpipe.store._cache import FeatureCache
from featpipe.store._index import INDEX
from featpipe.store._names import begins, is_name
from featpipe.store._static import SPEC
from featpipe.store.copying._published import read_index

_SHOWN = 5  # names in a message
_Specs = dict[str, tuple[FeatureSpec, str]]  # key → spec, digest of the stimulus set


@dataclass(frozen=True)
class ArrayChoice:
    """A part of a cache; an array belongs to it if all conditions hold.

    Parameters
    ----------
    keys : sequence of str
        Keys or their first digits; all arrays by default.
    model : str, optional
        A name or a glob.
    layers : sequence of str
        Names or globs, of which one has to match.
    stimuli : str, optional
        Name of a stimulus set, a glob, or the first digits of its digest.
    """

    keys: Sequence[str] = ()
    model: str | None = None
    layers: Sequence[str] = ()
    stimuli: str | None = None

    def of(self, cache: FeatureCache) -> tuple[list[str], dict[str, str]]:
        """Return the keys of the arrays that are meant; specs are read for it, of a published cache the index.

        Returns
        -------
        keys : list of str
            Sorted.
        damaged : dict of str to str
            Arrays of which that cannot be said, by key, and why.

        Raises
        ------
        FeaturesNotCached
            A key, a glob or another condition matches nothing that the ones before it leave.
        AmbiguousFeatures
            Several keys begin with the digits given.
        """
        there = cache.keys()
        if not there:
            raise FeaturesNotCached(
                f"{cache.root} holds no arrays, so there is nothing to copy. Check the name of the cache."
            )
        chosen = sorted({_named(cache, there, key) for key in self.keys}) if self.keys else there
        if self.model is None and not self.layers and self.stimuli is None:
            return chosen, {}
        specs, damaged = _specs(cache, chosen)
        if self.model is not None:
            specs = _of_model(cache, specs, self.model)
        if self.layers:
            specs = _of_layers(cache, specs, self.layers)
        if self.stimuli is not None:
            specs = _of_stimuli(cache, specs, self.stimuli)
        return sorted(specs), damaged


def _named(cache: FeatureCache, there: Sequence[str], key: str) -> str:
    found = [full for full in there if full.startswith(key)]
    if not found:
        raise _nothing(cache, f"array {key!r}", "arrays", (full[:12] for full in there))
    if len(found) > 1:
        raise AmbiguousFeatures(f"{len(found)} keys of {cache.root} begin with {key!r}: give more digits.")
    return found[0]


def _specs(cache: FeatureCache, keys: Sequence[str]) -> tuple[_Specs, dict[str, str]]:
    """Read the specs of arrays; the digest of one in the index is its key, so it is as good as the file."""
    known = read_index(cache.location) if cache.location.remote else None
    damaged: dict[str, str] = {}

    def spec(key: str) -> tuple[FeatureSpec, str] | None:
        try:
            if known is not None and (content := known.spec(key)) is not None:
                return parse_spec(f"{cache.root}/{INDEX}", content, key)
            return read_spec(cache.location, f"{array_folder(key)}/{SPEC}", key) if cache.has(key) else None
        except CacheCorrupt as error:
            damaged[key] = str(error)
            return None

    with ThreadPoolExecutor(cache.location.threads) as pool:
        found = zip(keys, pool.map(spec, keys), strict=True)
        return {key: pair for key, pair in found if pair is not None}, damaged


def _of_model(cache: FeatureCache, specs: _Specs, model: str) -> _Specs:
    kept = {key: pair for key, pair in specs.items() if is_name(pair[0].model, model)}
    if not kept:
        raise _nothing(cache, f"model {model!r}", "models", (spec.model for spec, _ in specs.values()))
    return kept


def _of_layers(cache: FeatureCache, specs: _Specs, patterns: Sequence[str]) -> _Specs:
    names = sorted({spec.layer_label for spec, _ in specs.values()})
    wanted: set[str] = set()
    for pattern in patterns:
        found = match_names(pattern, names)
        if not found:
            raise _nothing(cache, f"layer {pattern!r}", "layers", names)
        wanted.update(found)
    return {key: pair for key, pair in specs.items() if pair[0].layer_label in wanted}


def _of_stimuli(cache: FeatureCache, specs: _Specs, wanted: str) -> _Specs:
    digests = {digest for _, digest in specs.values()}
    names = {digest: cache.stimuli(digest).manifest.name for digest in digests}
    found = {d for d, name in names.items() if is_name(name, wanted) or begins(d, wanted)}
    if not found:
        shown = (f"{name} ({digest[:8]})" for digest, name in names.items())
        raise _nothing(cache, f"stimulus set {wanted!r}", "stimulus sets", shown)
    return {key: pair for key, pair in specs.items() if pair[1] in found}


def _nothing(cache: FeatureCache, wanted: str, what: str, names: Iterable[str]) -> FeaturesNotCached:
    there = sorted(set(names))
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    shown = ", ".join(there[:_SHOWN]) + more
    return FeaturesNotCached(
        f"{cache.root} has no {wanted} among the {what} to choose from: {shown or 'none'}. `featpipe cache ls` "
        "lists all arrays."
    )
