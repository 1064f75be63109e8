"""Extraction gives the rows of a plain forward pass, once, whatever happens on the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from featpipe import CachedFeatures
from featpipe.errors import BrokenImage, DeviceOutOfMemory, NonFiniteFeatures, SpecError
from featpipe.extraction import Means, Order, dry_run, extract
from featpipe.extraction import _run as extraction_module
from featpipe.extraction._forward import Forward
from featpipe.models import ModelRequest, apply_preprocessing, load, normalise
from featpipe.spec import LayerRequest
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache


@pytest.fixture
def order_of(tiny_backbone):
    def make(*layers, **fields):
        return Order(
            ModelRequest(tiny_backbone, trust=True), tuple(map(LayerRequest.parse, layers)), **fields
        )

    return make


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


def rows_of(cache, extraction, position=0):
    return cache.array(extraction.keys[position]).read()


def plain_features(request, stimuli, layer):
    """Features of a plain forward pass with one hook, all images at once."""
    backbone, kept = load(request), []
    pixels = torch.stack(
        [apply_preprocessing(stimuli.open(i), backbone.card.preprocessing) for i in range(len(stimuli))]
    )
    hook = backbone.module.get_submodule(layer).register_forward_hook(
        lambda _m, _i, out: kept.append(out.clone())
    )
    with torch.inference_mode():
        backbone.module(normalise(pixels, backbone.card.preprocessing))
    hook.remove()
    return kept[0].numpy()


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("timm:test_resnet", "layer2"),
        ("timm:test_vit", "blocks.3"),
        ("torchvision:squeezenet1_1", "features.5"),
    ],
)
def test_rows_equal_a_plain_forward_pass(cache, tiny_stimuli, model, layer):
    stimuli, request = StimulusSet.from_source(tiny_stimuli), ModelRequest(model, "random:0")
    done = extract(Order(request, (LayerRequest(layer),)), stimuli, cache)
    expected = plain_features(request, stimuli, layer)
    np.testing.assert_allclose(rows_of(cache, done), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_all_layers_come_from_one_pass_that_ends_at_the_deepest(cache, tiny_stimuli, order_of, monkeypatch):
    stimuli, batches = StimulusSet.from_source(tiny_stimuli), []
    monkeypatch.setattr(
        Forward, "__call__", lambda self, b, call=Forward.__call__: batches.append(len(b)) or call(self, b)
    )
    extract(order_of("stem:mean", "stem:max", "head:none"), stimuli, cache, means=Means(shard_rows=24))
    assert batches == [24]


def test_a_second_run_builds_no_network(cache, tiny_stimuli, order_of, monkeypatch):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    extract(order_of("stem:mean"), stimuli, cache)
    monkeypatch.setattr(extraction_module, "load", lambda *_: pytest.fail("a network was built"))
    done = extract(order_of("stem:mean"), stimuli, cache)
    assert (done.n_computed, done.n_reused) == (0, 0)


def test_a_run_with_nothing_to_do_does_without_torch(cache, tiny_stimuli):
    """Importing it is what such a run would spend its time on."""
    words = ["extract", "--model", "timm:test_resnet", "--weights", "random:0", "--layers", "layer1:mean"]
    words += ["--images", str(tiny_stimuli), "--cache", str(cache.root)]
    code = "import sys; from featpipe.cli import main; sys.argv = ['featpipe', *sys.argv[1:]]\n"
    code += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
    assert "Nothing to do" in done.stdout
    assert done.stdout.endswith("False\n")


def test_a_set_that_another_run_adds_meanwhile_keeps_its_shards(cache, tiny_stimuli, order_of, monkeypatch):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    first = extract(order_of("stem:mean"), stimuli, cache, means=Means(shard_rows=8))
    monkeypatch.setattr(extraction_module, "known_shard_rows", lambda *_: None)
    second = extract(order_of("head"), stimuli, cache, means=Means(shard_rows=16))
    assert {cache.array(key).shard_rows for key in (*first.keys, *second.keys)} == {8}


@pytest.fixture
def threads_of_torch():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_threads_workers_and_order_do_not_change_a_bit(
    cache, tmp_path, tiny_stimuli, order_of, threads_of_torch, threads
):
    stimuli, order = StimulusSet.from_source(tiny_stimuli), order_of("head:mean")
    threads_of_torch(threads)
    first = rows_of(cache, extract(order, stimuli, cache, means=Means(batch_size=8, workers=1)))
    threads_of_torch(2)
    backwards = stimuli.select(reversed(stimuli.ids))
    other = FeatureCache(tmp_path / "other")
    second = rows_of(other, extract(order, backwards, other, means=Means(batch_size=16, workers=3)))
    np.testing.assert_array_equal(first, second[::-1])


def interrupted(order, stimuli, cache, means):
    """Extract, and then lose every shard but the first."""
    (key,) = extract(order, stimuli, cache, means=means).keys
    for shard in sorted(cache.array(key).committed)[1:]:
        (cache.array(key).folder / f"commits/{shard}.json").unlink()
        shutil.rmtree(cache.array(key).shard_folder(shard))


def test_a_resumed_run_takes_the_batch_size_of_its_array(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    interrupted(order_of("head"), stimuli, cache, Means(batch_size=16, shard_rows=8))
    assert extract(order_of("head"), stimuli, cache).batch_size == 16


def test_another_batch_size_than_the_arrays_is_said(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    interrupted(order_of("head"), stimuli, cache, Means(batch_size=16, shard_rows=8))
    with pytest.warns(UserWarning, match="begun with batches of 16 .* --batch-size 8"):
        assert extract(order_of("head"), stimuli, cache, means=Means(batch_size=8)).batch_size == 8


def test_what_was_asked_for_is_recorded_with_absolute_paths(
    cache, tmp_path, tiny_stimuli, tiny_backbone, monkeypatch
):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    save_file(load(ModelRequest(tiny_backbone, trust=True)).module.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    request = ModelRequest("python:tiny.py:build", "w.safetensors", trust=True)
    done = extract(Order(request, (LayerRequest("stem"),)), stimuli, cache)
    provenance = cache.array(done.keys[0]).provenance
    assert provenance["model_asked"] == f"python:{tmp_path}/tiny.py:build"
    assert provenance["weights_asked"] == f"{tmp_path}/w.safetensors"
    assert CachedFeatures(cache.root, weights="w.safetensors").fit(stimuli.ids).specs_ == [
        done.targets[0].spec
    ]


def test_rows_of_other_sets_are_copied_not_computed(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    whole = extract(order_of("stem:mean", "head"), stimuli, cache, means=Means(shard_rows=8))
    part = stimuli.select(stimuli.ids[3:12]).rename(lambda name: f"other/{name}")
    copied = extract(order_of("stem:mean", "head"), part, cache, means=Means(shard_rows=8))
    assert (copied.n_computed, copied.n_reused) == (0, 9)
    for position in range(2):
        np.testing.assert_array_equal(rows_of(cache, copied, position), rows_of(cache, whole, position)[3:12])
    commit = cache.array(copied.keys[0]).commit(0)
    assert commit["reused"] == [{"array": whole.keys[0], "rows": 8}]


def test_a_mixed_shard_computes_only_what_is_missing(cache, tmp_path, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    extract(order_of("head"), stimuli.select(stimuli.ids[::2]), cache)
    mixed = extract(order_of("stem:mean", "head"), stimuli, cache)
    assert mixed.n_computed == 20  # stem is nowhere yet
    more = extract(order_of("head"), stimuli.select([*stimuli.ids[::-1]]), cache)
    fresh = FeatureCache(tmp_path / "fresh")
    np.testing.assert_array_equal(
        rows_of(cache, more), rows_of(fresh, extract(order_of("head"), stimuli, fresh))[::-1]
    )
    np.testing.assert_array_equal(rows_of(cache, mixed, 1), rows_of(cache, more)[::-1])


def test_a_damaged_shard_is_not_copied_from(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    done = extract(order_of("head"), stimuli, cache, means=Means(codec="none"))
    path = cache.array(done.keys[0]).shard_path(0)
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    again = extract(order_of("head"), stimuli.select(stimuli.ids[:9]), cache)
    assert again.n_computed == 9


@pytest.mark.parametrize("name", ["data.zarr/features/c/0/0/0/0", "commits/0.json"])
def test_a_shard_whose_file_or_record_is_lost_is_not_copied_from(cache, tiny_stimuli, order_of, name):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    done = extract(order_of("head"), stimuli, cache)
    path = cache.array(done.keys[0]).folder / name
    path.unlink() if name.startswith("data") else path.write_text("{}")
    assert extract(order_of("head"), stimuli.select(stimuli.ids[:9]), cache).n_computed == 9


def test_layers_added_later_get_the_same_shards(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    first = extract(order_of("stem:mean"), stimuli, cache, means=Means(shard_rows=8))
    second = extract(order_of("stem:mean", "head"), stimuli, cache)
    arrays = [cache.array(key) for key in (*first.keys, *second.keys)]
    assert {array.shard_rows for array in arrays} == {8}
    assert second.n_computed == 20


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(
    cache, tmp_path, tiny_stimuli, order_of, monkeypatch
):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    expected = rows_of(cache, extract(order_of("head"), stimuli, cache))
    call = Forward.__call__

    def tight(self, batch):
        if len(batch) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, batch)

    monkeypatch.setattr(Forward, "__call__", tight)
    other = FeatureCache(tmp_path / "other")
    with pytest.warns(UserWarning, match="going on with batches of 8"):
        done = extract(order_of("head"), stimuli, other, means=Means(batch_size=16, shard_rows=16))
    np.testing.assert_array_equal(rows_of(other, done), expected)


def test_too_little_memory_for_eight_images_says_what_helps(cache, tiny_stimuli, order_of, monkeypatch):
    def none(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Forward, "__call__", none)
    with pytest.raises(DeviceOutOfMemory, match="too little memory for 8 images"):
        extract(
            order_of("head"),
            StimulusSet.from_source(tiny_stimuli),
            cache,
            means=Means(batch_size=8, shard_rows=8),
        )


def test_overflow_in_float16_names_layer_and_stimulus_and_writes_nothing(cache, tmp_path, tiny_stimuli):
    path = tmp_path / "loud.py"
    path.write_text(
        "import torch\nclass Loud(torch.nn.Module):\n    def forward(self, x):\n        return 1e6 * (x.abs() + 1)\n"
        "def build():\n    size = {'resize': 8, 'crop': [8, 8], 'interpolation': 'bilinear'}\n"
        "    return torch.nn.Sequential(Loud()), {**size, 'mean': [0, 0, 0], 'std': [1, 1, 1]}\n"
    )
    order = Order(
        ModelRequest(f"python:{path}:build", trust=True), (LayerRequest("0"),), store_dtype="float16"
    )
    with pytest.raises(
        NonFiniteFeatures, match=r"Layer '0' .* float16, .*first for stimulus 'image_0'.*float32"
    ):
        extract(order, StimulusSet.from_source(tiny_stimuli), cache)
    assert cache.keys() == []


def test_a_broken_image_keeps_the_shards_before_it(cache, tiny_stimuli, order_of):
    last = tiny_stimuli / "image_19.png"
    last.write_bytes(last.read_bytes()[:-60])
    stimuli = StimulusSet.from_source(tiny_stimuli)
    with pytest.raises(BrokenImage, match=r"image_19\.png"):
        extract(order_of("head"), stimuli, cache, means=Means(shard_rows=8, batch_size=8))
    assert cache.arrays()[0].committed == {0, 1}


def test_an_image_that_changed_since_it_was_hashed_is_refused(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    shutil.copy(tiny_stimuli / "image_2.png", tiny_stimuli / "image_1.png")
    with pytest.raises(ValueError, match=r"image_1\.png.* changed"):
        extract(order_of("head"), stimuli, cache)


def test_bf16_is_another_key_and_close(cache, tiny_stimuli, order_of):
    stimuli = StimulusSet.from_source(tiny_stimuli)
    exact = extract(order_of("head"), stimuli, cache)
    short = extract(order_of("head", precision="bf16"), stimuli, cache)
    assert exact.keys != short.keys
    np.testing.assert_allclose(rows_of(cache, exact), rows_of(cache, short), atol=0.05)


def test_tf32_without_cuda_is_refused(cache, tiny_stimuli, order_of):
    with pytest.raises(SpecError, match="tf32 exists on CUDA devices only"):
        extract(
            order_of("head", precision="tf32"),
            StimulusSet.from_source(tiny_stimuli),
            cache,
            means=Means(device="cpu"),
        )


def test_dry_run_writes_nothing_and_tells_the_shapes(cache, tiny_stimuli, order_of):
    plan = dry_run(order_of("stem:mean", "head"), StimulusSet.from_source(tiny_stimuli), cache)
    assert plan.row_shapes == ((8,), (4, 7, 7))
    assert plan.bytes_on_disk == 20 * 4 * (8 + 4 * 49)
    assert plan.seconds > 0
    assert not cache.root.exists()


def test_large_layers_make_shards_small(cache, tiny_stimuli, order_of, monkeypatch):
    monkeypatch.setattr(extraction_module, "_SHARD_BYTES", 20 * 4 * 4 * 49)
    done = extract(order_of("head"), StimulusSet.from_source(tiny_stimuli), cache)
    assert cache.array(done.keys[0]).shard_rows == 16


@pytest.mark.parametrize("field", ["batch_size", "shard_rows"])
def test_sizes_that_are_no_multiple_of_eight_are_refused(field):
    with pytest.raises(SpecError, match="must be a multiple of 8"):
        Means(**{field: 12})


def test_images_of_any_mode_and_size_make_rows_of_one_shape(cache, tmp_path, order_of):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, (mode, size) in enumerate(
        [("L", (50, 40)), ("RGBA", (33, 90)), ("P", (64, 64)), ("CMYK", (20, 20))]
    ):
        image = Image.effect_noise(size, 50).convert(mode)
        image.save(folder / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    with warnings.catch_warnings():
        done = extract(order_of("stem:mean"), StimulusSet.from_source(folder), cache)
    assert rows_of(cache, done).shape == (4, 8)
