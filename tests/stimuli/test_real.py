"""Real images: archives of an experiment, photographs, an official folder layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featpipe.stimuli import StimulusSet

pytestmark = pytest.mark.data


def test_an_archive_of_an_experiment(real_data):
    """Rows of the responses are sorted by file name, so ids have to come in that order."""
    stimuli = StimulusSet.from_source(real_data / "v4" / "190923" / "images.zip")
    responses = np.load(real_data / "v4" / "190923" / "responses.npy", mmap_mode="r")
    assert len(stimuli) == len(responses) == 1200
    assert stimuli.ids == tuple(f"image{n:04}" for n in range(1, 1201))
    assert {stimuli.open(row).size for row in range(0, 1200, 100)} == {(112, 112)}


def test_photographs_look_as_pillow_shows_them(real_data):
    stimuli = StimulusSet.from_source(real_data / "photos", skip_broken=True)
    assert not stimuli.skipped
    for row, name in enumerate(stimuli.ids):
        file = next((real_data / "photos").glob(f"{name}.*"))
        with Image.open(file) as image:
            assert image.getexif().get(0x0112, 1) == 1
            np.testing.assert_array_equal(np.asarray(stimuli.open(row)), np.asarray(image.convert("RGB")))


def test_an_official_layout_with_two_sets(real_data):
    stimuli = StimulusSet.from_source(real_data / "algonauts2019" / "Training_Data")
    assert len(stimuli) == 92 + 118
    assert stimuli.ids[0] == "92_Image_Set/92images/image_01"
    assert stimuli.ids[-1] == "118_Image_Set/118images/image_118"
