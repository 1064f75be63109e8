"""Augmented views: crops that depend on the image's bytes, the view's number and the seed, and on nothing else."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from featpipe.cli import main
from featpipe.errors import SpecError
from featpipe.extraction import Means, Order, dry_run, extract
from featpipe.extraction import _run as run_module
from featpipe.models import ModelRequest, apply_preprocessing, load, normalise
from featpipe.recipes import load_recipe
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache
from featpipe.views import USUAL, Augmentation, View

SHA = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]


@pytest.fixture
def order_of(tiny_backbone):
    def make(n_views, *layers, **fields):
        request = ModelRequest(tiny_backbone, trust=True)
        wanted = tuple(map(LayerRequest.parse, layers or ["head"]))
        return Order(request, wanted, n_views=n_views, **fields)

    return make


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def stimuli(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


def places(width, height):
    """An image whose red and green say where a pixel lies."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def box(view, sha256, size=(48, 40)):
    seen = np.asarray(view.of(places(*size), sha256))
    return *map(int, seen[0, 0, :2]), *map(int, seen[-1, -1, :2])


def test_a_crop_has_its_share_of_both_sides_and_lies_anywhere():
    boxes = np.array([box(View(1, USUAL, 0), sha256) for sha256 in SHA])
    assert {tuple(b[2:] - b[:2] + 1) for b in boxes} == {(42, 35)}
    for axis, slack in enumerate((6, 5)):
        counts = np.bincount(boxes[:, axis], minlength=slack + 1)
        assert len(counts) == slack + 1
        assert counts.min() > 10  # of 200 / 7 and 200 / 6 expected


def test_crops_are_pinned():
    """A change here puts other crops under old keys: raise the version of the augmentation on purpose."""
    assert [box(View(number, USUAL, 3), SHA[0])[:2] for number in (1, 2, 3)] == [(5, 4), (0, 1), (3, 5)]
    assert str(USUAL) == "crop:0.875:1"


def test_another_image_number_or_seed_is_another_crop():
    alike = [View(1, USUAL, 0), View(2, USUAL, 0), View(1, USUAL, 1)]
    boxes = [tuple(box(view, sha256) for sha256 in SHA[:20]) for view in alike]
    assert len(set(boxes)) == 3
    assert len(set(boxes[0])) > 5
    assert boxes[0] == tuple(box(View(1, Augmentation(0.875), 0), sha256) for sha256 in SHA[:20])


def test_view_0_is_the_image_itself():
    image = places(48, 40)
    assert View(0, USUAL, 5).of(image, SHA[0]) is image


def test_a_flip_mirrors_half_of_the_crops():
    plain, flipped = (View(1, Augmentation(0.875, flip), 0) for flip in (False, True))
    same = [box(plain, sha256) == box(flipped, sha256) for sha256 in SHA]
    assert 60 < sum(same) < 140
    left, top, right, bottom = box(plain, SHA[same.index(False)])
    assert box(flipped, SHA[same.index(False)]) == (right, top, left, bottom)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 9)])
def test_tiny_images_have_crops_too(size):
    assert min(View(1, Augmentation(0.3), 0).of(places(*size), SHA[0]).size) >= 1


@pytest.mark.parametrize(
    ("text", "augmentation"), [("crop:0.875", USUAL), ("crop:.5:flip", Augmentation(0.5, True))]
)
def test_an_augmentation_is_read_as_it_is_written(text, augmentation):
    assert Augmentation.parse(text) == augmentation
    assert Augmentation.parse(str(augmentation)) == augmentation


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zoom:2", r"'zoom:2' is not known. Write crop:FRACTION"),
        ("crop:1.5", "between 0 and 1 of each side, got 1.5"),
        ("crop:0.875:2", "is of version 2; this featpipe makes version 1"),
    ],
)
def test_augmentations_that_cannot_be_made(text, said):
    with pytest.raises(SpecError, match=said):
        Augmentation.parse(text)


def test_fewer_views_than_none_are_refused(order_of):
    with pytest.raises(SpecError, match="number of views is -1"):
        order_of(-1)


def test_views_leave_the_keys_of_the_images_alone(cache, stimuli, order_of):
    plain = extract(order_of(0, "stem:mean", "head"), stimuli, cache)
    seen = extract(order_of(2, "stem:mean", "head"), stimuli, cache)
    assert seen.keys[:2] == plain.keys
    assert len(set(seen.keys)) == 6
    assert "view" not in plain.targets[0].spec.to_json()
    assert [t.spec.view for t in seen.targets] == [0, 0, 1, 1, 2, 2]
    assert (seen.n_computed, seen.n_reused) == (40, 0)


@pytest.mark.parametrize("change", [{"view_seed": 1}, {"augmentation": Augmentation(0.5)}])
def test_seed_and_augmentation_are_in_the_keys_of_views_only(cache, stimuli, order_of, change):
    one, other = (extract(order_of(1, **fields), stimuli, cache) for fields in ({}, change))
    assert one.keys[0] == other.keys[0]
    assert one.keys[1] != other.keys[1]
    assert not np.array_equal(cache.array(one.keys[1]).read(), cache.array(other.keys[1]).read())


def test_rows_of_a_view_are_those_of_a_plain_pass_over_the_crops(cache, stimuli, order_of):
    order = order_of(2)
    done = extract(order, stimuli, cache)
    backbone = load(order.model)
    for key, view in zip(done.keys, order.views, strict=True):
        crops = [view.of(stimuli.open(row), sha) for row, sha in enumerate(stimuli.sha256)]
        pixels = torch.stack([apply_preprocessing(crop, backbone.card.preprocessing) for crop in crops])
        with torch.inference_mode():
            expected = backbone.module(normalise(pixels, backbone.card.preprocessing)).numpy()
        np.testing.assert_allclose(cache.array(key).read(), expected, rtol=1e-5, atol=1e-5)


def test_ids_order_and_batches_do_not_change_a_bit(cache, tmp_path, stimuli, order_of):
    first = extract(order_of(1), stimuli, cache, means=Means(batch_size=8, shard_rows=8, workers=1))
    backwards = stimuli.select(reversed(stimuli.ids)).rename(lambda name: f"other/{name}")
    other = FeatureCache(tmp_path / "other")
    second = extract(order_of(1), backwards, other, means=Means(batch_size=16, workers=3))
    np.testing.assert_array_equal(cache.array(first.keys[1]).read(), other.array(second.keys[1]).read()[::-1])


def test_views_of_other_sets_are_copied(cache, stimuli, order_of):
    whole = extract(order_of(2), stimuli, cache)
    copied = extract(order_of(2), stimuli.select(stimuli.ids[3:12]), cache)
    assert (copied.n_computed, copied.n_reused) == (0, 27)
    np.testing.assert_array_equal(cache.array(copied.keys[2]).read(), cache.array(whole.keys[2]).read()[3:12])


def test_one_network_serves_all_views(cache, stimuli, order_of, monkeypatch):
    loads = []
    monkeypatch.setattr(run_module, "load", lambda request: loads.append(request) or load(request))
    extract(order_of(3), stimuli, cache)
    assert len(loads) == 1


def test_a_view_goes_on_where_it_stopped(cache, stimuli, order_of, monkeypatch):
    done = extract(order_of(2), stimuli, cache, means=Means(batch_size=8, shard_rows=8))
    array = cache.array(done.keys[2])
    before = array.read()
    (array.folder / "commits/1.json").unlink()
    shutil.rmtree(array.shard_folder(1))
    again = extract(order_of(2), stimuli, cache)
    assert (again.n_computed, again.batch_size) == (8, 8)
    np.testing.assert_array_equal(cache.array(done.keys[2]).read(), before)
    monkeypatch.setattr(run_module, "load", lambda *_: pytest.fail("a network was built"))
    assert extract(order_of(2), stimuli, cache).n_computed == 0


def test_progress_counts_all_views(cache, stimuli, order_of):
    seen = []
    extract(order_of(2), stimuli, cache, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (60, 60)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_dry_run_counts_all_views(cache, stimuli, order_of):
    extract(order_of(1), stimuli, cache)
    plan, plain = (dry_run(order_of(n), stimuli, cache) for n in (3, 0))
    assert plan.cached == (True, True, False, False)
    assert plan.row_shapes == ((4, 7, 7),) * 4
    assert plan.bytes_on_disk == 4 * plain.bytes_on_disk
    assert (plain.seconds == 0, plan.seconds > 0) == (True, True)


@pytest.fixture
def command(tmp_path, tiny_stimuli, tiny_backbone, capfd):
    """Return a function that runs a command in a cache: (exit code, stdout, stderr)."""

    def run(words):
        capfd.readouterr()
        words = words.replace("extract", f"extract --trust --model {tiny_backbone} --images {tiny_stimuli}")
        try:
            main([*shlex.split(words), "--cache", str(tmp_path / "cli")])
        except SystemExit as end:
            return int(end.code or 0), *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


def test_views_from_the_command_line(command):
    code, out, err = command("extract --layers head:mean --views 2 --view-seed 4")
    assert (code, err) == (0, "")
    assert "60 images computed and 0 copied of 20 stimuli in 3 views" in out
    again = json.loads(command("extract --layers head:mean --views 2 --view-seed 4 --json")[1])
    assert [array["view"] for array in again["arrays"]] == [0, 1, 2]
    assert [array["spec"].get("view_seed") for array in again["arrays"]] == [None, 4, 4]
    plan = json.loads(command("extract --layers head:mean --views 3 --view-seed 4 --dry-run --json")[1])
    assert [layer["cached"] for layer in plan["layers"]] == [True, True, True, False]
    assert "20 stimuli in 3 views" in command("extract --layers head --views 2 --dry-run")[1]
    listed = json.loads(command("cache ls --json")[1])["arrays"]
    assert [array["view"] for array in listed] == [0, 1, 2]
    assert command("cache ls")[1].splitlines()[0].split()[4:6] == ["reduce", "view"]
    assert "crop:0.875:1" in command(f"cache show {listed[1]['key']}")[1]
    assert command("cache verify")[0] == 0


def test_a_seed_without_views_is_refused(command):
    code, _, err = command("extract --layers head --view-seed 0")
    assert code == 2
    assert "go with --views" in err


def test_what_makes_a_view_is_a_field_of_its_spec(cache, stimuli, order_of):
    done = extract(order_of(1, view_seed=7, augmentation=Augmentation(0.5, True)), stimuli, cache)
    spec = done.targets[1].spec
    assert (spec.view, spec.augmentation, spec.view_seed) == (1, "crop:0.5:flip:1", 7)
    assert replace(spec, view=0, augmentation="", view_seed=0) == done.targets[0].spec


RECIPE = """
from sklearn.pipeline import Pipeline
from featpipe import CachedFeatures
from featpipe.recipes import Recipe

features = CachedFeatures(
    model={model!r}, layers=["head"], reduce="mean", output="blocks", views=2, augmentation="crop:0.5", view_seed=3
)
RECIPE = Recipe("Views.", "Nobody (2026), section 1.", Pipeline([("features", features)]))
"""


def test_a_recipe_says_which_views_it_needs(cache, stimuli, tmp_path, tiny_backbone):
    (tmp_path / "seen.py").write_text(RECIPE.format(model=tiny_backbone))
    recipe = load_recipe(str(tmp_path / "seen.py"))
    done = extract(recipe.orders(trust=True)[0], stimuli, cache)
    assert [t.spec.view for t in done.targets] == [0, 1, 2]
    features = recipe.pipeline.named_steps["features"].set_params(cache=cache.root)
    blocks = features.fit_transform(stimuli.ids)
    np.testing.assert_array_equal(blocks.views[1].block("head"), cache.array(done.keys[2]).read())
