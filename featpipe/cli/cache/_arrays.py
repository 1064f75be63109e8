"""Arrays of a cache as its commands name and show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featpipe.cli._console import note

if TYPE_CHECKING:
    from featpipe.store import CachedArray, FeatureCache

WORDS = ("model", "weights", "layer", "reduce")

Keys = Annotated[list[str] | None, typer.Argument(help="Keys or their first digits; all arrays by default.")]


def opened(cache: str) -> FeatureCache:
    """Open a cache, and say on stderr when it holds nothing."""
    from featpipe.store import FeatureCache

    store = FeatureCache(cache)
    if not store.keys():
        note(f"featpipe: {cache} holds no arrays.")
    return store


def one_array(store: FeatureCache, key: str) -> CachedArray:
    """Open the one array whose key begins so."""
    return store.named(key)


def full_key(store: FeatureCache, key: str) -> str:
    """Return the one key that begins so, whether or not the array can be opened."""
    from featpipe.store import key_named

    return key_named(store, key)


def row_of(array: CachedArray) -> dict[str, Any]:
    """Return what commands show of an array, by name."""
    return {
        "key": array.key,
        "model": array.spec.model,
        "weights": array.provenance.get("weights_label") or array.spec.weights[:12],
        "layer": array.spec.layer_label,
        "reduce": str(array.spec.reduction),
        "view": array.spec.view,
        "shape": list(array.row_shape),
        "dtype": str(array.dtype),
        "stimuli": f"{array.manifest.name} ({array.stimuli_digest[:8]})",
        "rows": array.n_stimuli,
        "rows_there": sum(len(array.layout.rows_of(shard)) for shard in array.committed),
        "complete": array.complete,
        "bytes": array.nbytes,
    }
