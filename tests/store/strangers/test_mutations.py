"""A document changed at random is refused, or what it says is what was written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featpipe.errors import FeatpipeError
from featpipe.spec import canonical_json, digest_of
from featpipe.store import FeatureCache

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FILES = ["spec.json", "data.zarr/features/zarr.json", "commits/0.json", "sealed.json", "stimuli.json"]


def places(value, path=()):
    """Return the way to each value within a value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        found += places(item, (*path, name))
    return found


def changed(value, path, new):
    """Put another value at a place; a list or object may also lose it."""
    at = value
    for name in path[:-1]:
        at = at[name]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new


def everything(root):
    """Return all that is read of a cache."""
    cache = FeatureCache(root)
    array = cache.array(cache.keys()[0])
    return (
        array.read(),
        array.ids,
        array.manifest.ids,
        array.commits(),
        array.nbytes,
        array.complete,
        array.provenance,
    )


@pytest.mark.parametrize("file", FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_value_is_refused_or_harmless(tiny_cache, tmp_path_factory, file, data):
    array, rows = tiny_cache
    root = shutil.copytree(array.root, tmp_path_factory.mktemp("mutated") / "cache")
    path = next(root.rglob(file))
    value = json.loads(path.read_bytes())
    place = data.draw(st.sampled_from(places(value)))
    changed(value, place, data.draw(VALUES | st.just(...)))
    if "checksum" in value and data.draw(st.booleans()):  # a stranger knows how to make one
        value["checksum"] = digest_of({name: item for name, item in value.items() if name != "checksum"})
    path.write_bytes(canonical_json(value))
    try:
        found = everything(root)
        FeatureCache(root).verify()
    except FeatpipeError:
        return
    finally:
        shutil.rmtree(root)
    assert np.array_equal(found[0], rows)
    assert found[1] == array.ids
