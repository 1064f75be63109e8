"""Values that are NaN or infinite are refused by name, or kept and counted when that is asked for."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest

from featpipe import CachedFeatures
from featpipe.errors import NonFiniteFeatures, SpecError
from featpipe.extraction import Means, Order, extract
from featpipe.features import _finite
from featpipe.models import ModelRequest
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

NET = """
import torch
from torch import nn

class Calm(nn.Module):
    def forward(self, x):
        return x.abs() + 1

class Holey(nn.Module):  # NaN in two places of bright images
    def forward(self, x):
        x = x.clone()
        x[x.mean((1, 2, 3)) > 1.52, 0, 0, :2] = float("nan")
        return x

class Loud(nn.Module):  # beyond float16
    def forward(self, x):
        return 1e5 * x

def build():
    net = nn.Sequential()
    for name, module in {"calm": Calm(), "holey": Holey(), "loud": Loud()}.items():
        net.add_module(name, module)
    size = {"resize": 8, "crop": [8, 8], "interpolation": "bilinear"}
    return net, {**size, "mean": [0, 0, 0], "std": [1, 1, 1]}
"""
KEEP = Means(batch_size=8, shard_rows=8, non_finite="keep")
REFUSE = Means(batch_size=8, shard_rows=8)


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"python:{tmp_path / 'net.py'}:build"


@pytest.fixture
def order_of(net):
    def make(*layers, **fields):
        return Order(ModelRequest(net, trust=True), tuple(map(LayerRequest.parse, layers)), **fields)

    return make


@pytest.fixture
def stimuli(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


def test_what_is_refused_is_counted_and_named(cache, stimuli, order_of):
    with pytest.raises(NonFiniteFeatures) as refused:
        extract(order_of("calm", "holey", "loud", store_dtype="float16"), stimuli, cache, means=REFUSE)
    message = str(refused.value)
    holey, loud = re.findall(
        r"Layer '(\w+)' \(none\) has (\d+) values that are NaN and (\d+) that are infinite", message
    )
    assert holey[0] == "holey"
    assert int(holey[1]) > 0
    assert holey[2] == "0"
    assert loud == ("loud", holey[1], str(8 * 192 - int(holey[1])))
    for words in (
        "65504",
        "of 8 images",
        "--store-dtype float32",
        "--non-finite keep",
        "Leave these layers out",
    ):
        assert words in message
    (calm,) = cache.arrays()  # the sound layer of the shard is kept, and the message says so
    assert (calm.spec.layer, calm.committed) == ("calm", {0})
    assert "the other layer of this shard was written" in message


def test_the_first_stimulus_named_is_the_first_that_is_bad(cache, stimuli, order_of):
    done = extract(order_of("holey"), stimuli, cache, means=KEEP)
    rows = cache.array(done.keys[0]).read()
    bad = np.isnan(rows).reshape(len(rows), -1).any(axis=1)
    assert 0 < bad.sum() < len(rows)  # bright images only
    first = stimuli.ids[int(np.argmax(bad))]
    assert (done.non_finite[0].first, done.non_finite[0].n_images) == (first, bad.sum())
    with pytest.raises(NonFiniteFeatures, match=f"first for stimulus '{first}'"):
        extract(order_of("holey"), stimuli, FeatureCache(cache.root / "other"), means=REFUSE)


def test_what_is_kept_is_stored_as_it_is_and_counted(cache, stimuli, order_of):
    order = order_of("calm", "holey", "loud", store_dtype="float16")
    done = extract(order, stimuli, cache, means=KEEP)
    calm, holey, loud = (cache.array(key) for key in done.keys)
    assert calm.non_finite() == {}
    assert [bad.target.spec.layer for bad in done.non_finite] == ["holey", "loud"]
    for array, bad in zip((holey, loud), done.non_finite, strict=True):
        rows = array.read()
        assert (bad.n_nan, bad.n_infinite) == (np.isnan(rows).sum(), np.isinf(rows).sum())
        counts = {commit["shard"]: commit["non_finite"] for commit in array.commits() if commit["non_finite"]}
        assert array.non_finite() == counts
        assert sum(counts.values()) == bad.n_nan + bad.n_infinite
    assert cache.verify() == []


def test_keeping_is_no_part_of_the_key_and_a_later_run_tells_again(cache, stimuli, order_of):
    with pytest.raises(NonFiniteFeatures):
        extract(order_of("calm", "holey"), stimuli, cache, means=REFUSE)
    first = extract(order_of("calm", "holey"), stimuli, cache, means=KEEP)
    assert set(first.keys) == set(cache.keys())
    again = extract(order_of("calm", "holey"), stimuli, cache, means=KEEP)
    assert (again.n_computed, again.non_finite) == (0, first.non_finite)
    assert extract(order_of("calm"), stimuli, cache).non_finite is None


def test_kept_rows_of_another_set_are_refused_when_copied(cache, stimuli, order_of):
    extract(order_of("holey"), stimuli, cache, means=KEEP)
    with pytest.raises(NonFiniteFeatures, match="NaN"):
        extract(order_of("holey"), stimuli.select(stimuli.ids[::-1]), cache, means=REFUSE)


def test_low_precision_is_told_from_narrow_storage(cache, stimuli, order_of):
    with pytest.raises(NonFiniteFeatures, match="compute it with --precision fp32"):
        extract(order_of("holey", precision="bf16"), stimuli, cache, means=REFUSE)
    with pytest.raises(NonFiniteFeatures, match="look at the weights"):
        extract(order_of("holey"), stimuli, cache, means=REFUSE)


def test_another_policy_is_refused():
    with pytest.raises(SpecError, match="'drop' is not known: refuse"):
        Means(non_finite="drop")


def test_features_warn_once_of_what_was_kept(cache, stimuli, order_of, monkeypatch):
    monkeypatch.setattr(_finite, "_SAID", set())
    extract(order_of("calm", "holey"), stimuli, cache, means=KEEP)
    with pytest.warns(
        UserWarning, match=r"Layer 'holey' holds \d+ values that are NaN or infinite in 20 cached rows"
    ):
        CachedFeatures(cache.root, layers="holey").fit(stimuli.ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CachedFeatures(cache.root, layers="holey").fit(stimuli.ids)
        CachedFeatures(cache.root, layers="calm").fit(stimuli.ids)


def test_the_command_reports_what_it_kept(tmp_path, capfd, net, tiny_stimuli):
    from featpipe.cli import main

    words = ["extract", "--model", net, "--trust", "--layers", "holey", "--images", str(tiny_stimuli)]
    words += ["--cache", str(tmp_path / "cache"), "--non-finite", "keep"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    text = capfd.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    (bad,) = json.loads(capfd.readouterr().out)["non_finite"]
    assert (bad["layer"], bad["infinite"]) == ("holey", 0)
    line = next(line for line in text.splitlines() if line.startswith("holey") and bad["first"] in line)
    assert line.split()[2:] == [str(bad[name]) for name in ("nan", "infinite", "images", "first")]
