"""Images by row: the pixels of extraction, decoded once, drawn from one generator."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from featpipe.errors import BrokenImage, RequestError, SpecError
from featpipe.extraction._images import ImageBatches
from featpipe.models import normalise
from featpipe.spec import Preprocessing
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images import Images
from featpipe.tuning.images._pixels import PIXELS
from featpipe.views import ITSELF, Augmentation, View

WHOLE = Preprocessing((32, 36), None, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CENTRE = Preprocessing(36, (32, 32), "bicubic", (0.5,) * 3, (0.5,) * 3)
IMAGE_BYTES = 32 * 36 * 3


@pytest.fixture(autouse=True)
def _nothing_held():
    PIXELS.clear()
    yield
    PIXELS.clear()


@pytest.fixture
def stimuli(tiny_stimuli):
    return StimulusSet.from_source(tiny_stimuli)


@pytest.fixture
def decoded(monkeypatch):
    """Row numbers in the order in which they were decoded."""
    rows = []
    opened = StimulusSet.open

    def counting(self, row):
        rows.append(row)
        return opened(self, row)

    monkeypatch.setattr(StimulusSet, "open", counting)
    return rows


def images_of(stimuli, preprocessing=WHOLE, ids=None, **options):
    return Images(
        stimuli, stimuli.ids if ids is None else ids, preprocessing, device=torch.device("cpu"), **options
    )


def whole(images, rows):
    rows = torch.as_tensor(rows)
    return images(rows, images.choose(rows, None), None)


def drawn(images, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.as_tensor(rows)
    return images(rows, images.choose(rows, generator), generator)


def extracted(stimuli, preprocessing, rows, view=ITSELF):
    with ImageBatches(stimuli, preprocessing, workers=1, pin=False, view=view) as batches:
        (batch,) = batches.of([np.asarray(rows)])
    return normalise(batch, preprocessing)


# What a network sees


@pytest.mark.parametrize("preprocessing", [WHOLE, CENTRE])
def test_pixels_are_those_of_extraction(stimuli, preprocessing):
    images = images_of(stimuli, preprocessing, augmentation="crop:0.875")
    rows = [3, 0, 3, 19]
    for _ in range(2):  # decoded, then held
        assert torch.equal(whole(images, rows), extracted(stimuli, preprocessing, rows))


@pytest.mark.parametrize("augmentation", ["crop:0.875", "crop:0.5:flip"])
def test_cached_views_are_those_of_extraction(stimuli, augmentation):
    images = images_of(stimuli, CENTRE, augmentation=augmentation, views=3, view_seed=7)
    rows = torch.arange(20)
    for number in range(4):
        view = View(number, Augmentation.parse(augmentation), seed=7)
        found = images(rows, torch.full((20,), number))
        assert torch.equal(found, extracted(stimuli, CENTRE, rows, view))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_batch_has_the_memory_format_of_the_network(stimuli, memory_format):
    images = images_of(stimuli, memory_format=memory_format, augmentation="crop:0.875:flip")
    assert whole(images, [1, 2]).is_contiguous(memory_format=memory_format)
    assert drawn(images, [1, 2], seed=0).is_contiguous(memory_format=memory_format)


def test_row_i_is_the_image_of_id_i(stimuli):
    ids = [stimuli.ids[5], stimuli.ids[2]]
    images = images_of(stimuli, ids=ids)
    assert len(images) == 2
    assert images.sha256 == (stimuli.sha256[5], stimuli.sha256[2])
    assert torch.equal(whole(images, [1, 0]), extracted(stimuli, WHOLE, [2, 5]))


# What is drawn


def test_a_fresh_crop_is_cut_mirrored_and_resized(stimuli):
    """Crop number 1 + 2 (y n_x + x) + flip of 28×32 out of 32×36, written out."""
    images = images_of(stimuli, augmentation="crop:0.875:flip")
    plain = replace(WHOLE, mean=(0.0,) * 3, std=(1.0,) * 3)
    whole_images = (extracted(stimuli, plain, range(20)) * 255).round()
    crops = torch.tensor([0, 1, 2, 50, 5 * 5 * 2])  # 5 × 5 positions
    found = images(torch.arange(5), crops)
    for row, crop in enumerate(crops.tolist()):
        top, left, flip = (crop - 1) // 10, (crop - 1) // 2 % 5, (crop - 1) % 2
        seen = whole_images[row : row + 1, :, top : top + 28, left : left + 32]
        seen = seen.flip(3) if flip else seen
        large = F.interpolate(seen, size=(32, 36), mode="bilinear") if crop else whole_images[row : row + 1]
        torch.testing.assert_close(found[row : row + 1], normalise(large, WHOLE))


def test_crops_are_uniform_over_positions_and_half_are_mirrored(stimuli):
    images = images_of(stimuli, augmentation="crop:0.875:flip")
    rows = torch.zeros(50_000, dtype=torch.long)
    drawn_crops = images.choose(rows, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn_crops, minlength=51)
    assert counts[0] == 0
    assert len(counts) == 51  # nothing beyond 5 × 5 positions, each plain and mirrored
    chi_squared = ((counts[1:] - 1000) ** 2 / 1000).sum()
    assert chi_squared < 85.4  # p = .001 with 49 degrees of freedom


def test_cached_views_are_drawn_uniformly_with_the_image_itself(stimuli):
    images = images_of(stimuli, views=3)
    views = images.choose(torch.zeros(40_000, dtype=torch.long), torch.Generator().manual_seed(0))
    counts = torch.bincount(views)
    assert len(counts) == 4
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 16.3  # p = .001 with 3 degrees of freedom


@pytest.mark.parametrize("options", [{"augmentation": "crop:0.8:flip"}, {"views": 4}])
def test_a_seed_gives_the_same_bits_and_another_gives_others(stimuli, options):
    images = images_of(stimuli, **options)
    rows = torch.arange(20)
    assert torch.equal(drawn(images, rows, seed=1), drawn(images, rows, seed=1))
    assert not torch.equal(drawn(images, rows, seed=1), drawn(images, rows, seed=2))
    assert not torch.equal(drawn(images, rows, seed=1), whole(images, rows))


@pytest.mark.parametrize("options", [{"augmentation": "crop:0.8:flip"}, {"views": 4}])
def test_a_batch_in_parts_has_the_draws_of_the_whole(stimuli, options):
    images = images_of(stimuli, **options)
    generator = torch.Generator().manual_seed(3)
    parts = [images.choose(rows, generator) for rows in torch.arange(20).split(7)]
    at_once = images.choose(torch.arange(20), torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat(parts), at_once)


@pytest.mark.parametrize("options", [{}, {"augmentation": "crop:0.8"}, {"views": 4}])
def test_evaluation_draws_nothing(stimuli, options):
    images = images_of(stimuli, **options)
    before = torch.get_rng_state()
    assert not images.choose(torch.arange(20), None).any()
    assert torch.equal(whole(images, range(20)), extracted(stimuli, WHOLE, range(20)))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_may_be_kept(stimuli):
    assert images_of(stimuli).reusable
    assert images_of(stimuli, augmentation="crop:0.875", views=2).reusable
    assert not images_of(stimuli, augmentation="crop:0.875").reusable


# What is held


@pytest.mark.parametrize("options", [{}, {"augmentation": "crop:0.8:flip"}, {"views": 4}])
@pytest.mark.parametrize("limit", [0, 7 * IMAGE_BYTES])
def test_a_limit_changes_no_bit_and_is_kept_to(stimuli, options, limit):
    unlimited = images_of(stimuli, **options)
    wanted = [drawn(unlimited, range(20), seed) for seed in range(3)]
    PIXELS.clear()
    images = images_of(stimuli, memory_limit=limit, **options)
    for seed in range(3):
        assert torch.equal(drawn(images, range(20), seed), wanted[seed])
        assert PIXELS.nbytes <= limit


def test_nothing_is_decoded_before_it_is_asked_for_and_then_once(stimuli, decoded):
    images = images_of(stimuli, augmentation="crop:0.875")
    assert decoded == []
    drawn(images, [4, 4, 1, 4], seed=0)
    assert sorted(decoded) == [1, 4]
    for epoch in range(5):
        for rows in torch.randperm(20).split(6):
            drawn(images, rows, seed=epoch)
    assert sorted(decoded) == list(range(20))


def test_an_epoch_of_a_thousand_images_decodes_nothing_after_the_first(tmp_path, rng, decoded):
    np.save(tmp_path / "many.npy", rng.integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8))
    stimuli = StimulusSet.from_source(tmp_path / "many.npy")
    images = images_of(stimuli, replace(WHOLE, resize=(8, 8)), augmentation="crop:0.75:flip")
    for epoch in range(3):
        for rows in torch.randperm(1000).split(100):
            assert drawn(images, rows, seed=epoch).isfinite().all()
        assert len(decoded) == 1000


def test_images_without_room_are_decoded_for_every_batch(stimuli, decoded):
    images = images_of(stimuli, memory_limit=15 * IMAGE_BYTES)
    for _ in range(3):
        whole(images, range(20))
    assert len(decoded) == 20 + 5 + 5  # those that found room stay


def test_sets_and_folds_share_pixels_by_their_bytes(stimuli, tiny_stimuli, tmp_path, decoded):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny_stimuli / "image_3.png", other / "a.png")
    whole(images_of(stimuli, ids=stimuli.ids[:12]), range(12))
    decoded.clear()
    whole(images_of(stimuli, ids=stimuli.ids[5:15]), range(10))
    assert sorted(decoded) == [12, 13, 14]
    decoded.clear()
    renamed = images_of(StimulusSet.from_source(other))
    assert torch.equal(whole(renamed, [0]), extracted(stimuli, WHOLE, [stimuli.manifest.rows["image_3"]]))
    assert len(decoded) == 1  # by the reference


def test_colour_statistics_share_pixels_and_sizes_do_not(stimuli, decoded):
    whole(images_of(stimuli), [0])
    whole(images_of(stimuli, replace(WHOLE, mean=(0.0,) * 3)), [0])
    assert decoded == [0]
    whole(images_of(stimuli, CENTRE), [0])
    assert decoded == [0, 0]


def test_an_old_fit_makes_room_for_a_new_one(stimuli):
    limit = 12 * IMAGE_BYTES
    whole(images_of(stimuli, ids=stimuli.ids[:10], memory_limit=limit), range(10))
    images = images_of(stimuli, ids=stimuli.ids[10:], memory_limit=limit)
    whole(images, range(10))
    assert images._pixels._store.known(images.labels(torch.arange(10), torch.zeros(10).long())).all()
    assert PIXELS.nbytes <= limit


def test_threads_decode_each_image_once(stimuli, decoded):
    wanted = extracted(stimuli, WHOLE, range(20))
    decoded.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: whole(images_of(stimuli), range(20)), range(8)))
    assert all(torch.equal(batch, wanted) for batch in found)
    assert sorted(decoded) == list(range(20))


def test_labels_name_bytes_and_views(stimuli):
    rows, views = torch.tensor([0, 1, 0]), torch.tensor([0, 0, 2])
    images = images_of(stimuli, views=2)
    labels = images.labels(rows, views)
    assert len(set(labels)) == 3
    backwards = images_of(stimuli, ids=stimuli.ids[::-1], views=5)
    assert backwards.labels(19 - rows, views) == labels
    other_seed = images_of(stimuli, views=2, view_seed=1).labels(rows, views)
    assert other_seed[:2] == labels[:2]
    assert other_seed[2] != labels[2]


# What is wrong


def test_a_broken_image_is_named(tiny_stimuli):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tiny_stimuli / "image_7.png")
    data = (tiny_stimuli / "image_7.png").read_bytes()
    (tiny_stimuli / "image_7.png").write_bytes(data[: len(data) // 2])
    stimuli = StimulusSet.from_source(tiny_stimuli)
    images = images_of(stimuli)
    row = stimuli.manifest.rows["image_7"]
    assert whole(images, [r for r in range(20) if r != row]).isfinite().all()
    with pytest.raises(BrokenImage, match=r"image_7\.png"):
        whole(images, range(20))


def test_an_id_without_an_image_is_named(stimuli):
    with pytest.raises(RequestError, match="1 of 2 stimuli have no image in 'images', first 'face'"):
        images_of(stimuli, ids=np.array([stimuli.ids[0], "face"]))


def test_a_size_that_follows_the_image_is_refused(stimuli):
    with pytest.raises(SpecError, match="keeps the shape of each image"):
        images_of(stimuli, replace(WHOLE, resize=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "turn:90"}, "Augmentation 'turn:90' is not known"),
        ({"views": -1}, "views is -1; give a whole number from 0 on"),
        ({"views": 1.5}, "views is 1.5"),
        ({"memory_limit": -5}, "memory_limit is -5"),
    ],
)
def test_wrong_options_say_what_would_be_right(stimuli, options, message):
    with pytest.raises(RequestError, match=message):
        images_of(stimuli, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("limit", [0, 7 * IMAGE_BYTES, None])
def test_a_gpu_gets_the_pixels_of_the_cpu(stimuli, limit):
    device = torch.device("cuda:0")
    images = Images(stimuli, stimuli.ids, WHOLE, device=device, memory_limit=limit)
    for _ in range(2):
        found = whole(images, range(20))
        assert found.device == device
        torch.testing.assert_close(found.cpu(), extracted(stimuli, WHOLE, range(20)))
