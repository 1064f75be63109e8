"""Made-up recordings have the ceiling that they claim."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from featpipe.datasets import (
    colour_fields,
    load_dataset,
    load_stimuli,
    make_synthetic_subject,
    simulate_responses,
)
from featpipe.errors import DatasetError


@pytest.mark.parametrize("ceiling", [0.2, 0.5, 1.0])
def test_perfect_model_reaches_the_ceiling(rng, ceiling):
    features = rng.standard_normal((4000, 6))
    responses, targets = simulate_responses(features, rois={"V1v": 20}, noise_ceiling=ceiling, seed=3)
    X = np.column_stack([features, np.ones(4000)])
    residual = responses - X @ np.linalg.lstsq(X, responses, rcond=None)[0]
    explained = 1 - residual.var(axis=0) / responses.var(axis=0)
    np.testing.assert_allclose(explained, targets["noise_ceiling"], atol=0.05)


def test_ceilings_per_region(rng):
    rois = {"V1v": 3, "PPA": 2}
    _, targets = simulate_responses(rng.random((30, 4)), rois=rois, noise_ceiling={"V1v": 0.8, "PPA": 0.3})
    assert targets.groupby("roi")["noise_ceiling"].unique().to_dict() == {"V1v": 0.8, "PPA": 0.3}
    assert targets["hemisphere"].value_counts().to_dict() == {"lh": 5, "rh": 5}


def test_few_components_span_the_signal(rng):
    features = rng.standard_normal((50, 200))
    responses, _ = simulate_responses(features, rois={"V1v": 30}, noise_ceiling=1.0, n_components=5)
    s = np.linalg.svd(responses.astype(float), compute_uv=False)
    assert s[5] < 1e-4 * s[4]


def test_same_seed_same_recordings():
    text = "synthetic:n=20,targets=8,seed={}"
    first, again, other = (load_dataset(text.format(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.responses, again.responses)
    assert first.stimuli.digest == again.stimuli.digest == load_stimuli(text.format(1)).digest
    assert not np.array_equal(first.responses, other.responses)
    assert first.stimuli.digest != other.stimuli.digest


def test_synthetic_has_two_hemispheres_and_four_regions():
    dataset = load_dataset("synthetic:n=12,targets=16,noise=2,size=16")
    assert list(dataset.masks) == [
        "lh.V1v",
        "rh.V1v",
        "lh.hV4",
        "rh.hV4",
        "lh.FFA-1",
        "rh.FFA-1",
        "lh.PPA",
        "rh.PPA",
    ]
    np.testing.assert_allclose(dataset.noise_ceiling, 0.2)
    assert dataset.stimuli.open(0).size == (16, 16)


def test_responses_follow_what_the_images_show():
    """Mean colour of each cell of the picture predicts noiseless responses."""
    dataset = load_dataset("synthetic:n=150,targets=8,noise=0")
    pixels = np.stack([np.asarray(dataset.stimuli.open(row), dtype=float) for row in range(150)])
    cells = pixels.reshape(150, 4, 16, 4, 16, 3).mean(axis=(2, 4)).reshape(150, -1)
    X = np.column_stack([cells, np.ones(150)])
    weights = np.linalg.lstsq(X[:120], dataset.responses[:120], rcond=None)[0]
    predicted = X[120:] @ weights
    r = [np.corrcoef(p, y)[0, 1] for p, y in zip(predicted.T, dataset.responses[120:].T, strict=True)]
    assert min(r) > 0.9


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.ones((5, 2)), {}, "same for all stimuli"),
        (np.full((5, 2), np.nan), {}, "must be a finite matrix"),
        (np.eye(5), {"noise_ceiling": 0.0}, "noise ceilings above 0"),
        (np.eye(5), {"noise_ceiling": {"V1v": 0.5}}, "for every region"),
        (np.eye(5), {"rois": {}}, "at least one region"),
    ],
)
def test_what_cannot_be_simulated(features, options, message):
    with pytest.raises(DatasetError, match=message):
        simulate_responses(features, **{"rois": {"V1v": 2, "PPA": 1}, **options})


def test_dataset_survives_pickling():
    dataset = make_synthetic_subject(
        load_stimuli("synthetic:n=10,size=8"), colour_fields(10)[1], rois={"V1v": 1}, subject="subj02"
    )
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.masks["lh.V1v"], dataset.masks["lh.V1v"])
    assert again.subject == "subj02"
