"""What follows a tuner chooses on stimuli that the network was not tuned to, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import Pipeline

from featpipe import (
    BandedRidge,
    LayerBlocks,
    LayerScaler,
    LinearHead,
    ResponseTuner,
    RidgeEncoder,
    StackedLayers,
)
from featpipe.errors import RequestError
from featpipe.stimuli import StimulusSet


@pytest.fixture
def tuner(tiny_stimuli):
    return ResponseTuner(
        "timm:test_resnet",
        "layer2:mean",
        weights="random:0",
        image_size=32,
        stimuli=StimulusSet.from_source(tiny_stimuli),
        max_epochs=1,
        validation_fraction=0.25,
        output="blocks",
        cross_fit=None,
        device="cpu",
    )


@pytest.fixture
def responses(rng):
    return rng.standard_normal((20, 3)).astype(np.float32)


def ids_of(tuner):
    return np.asarray(tuner.stimuli.ids)


def test_a_penalty_is_chosen_on_what_the_tuner_held_out(tuner, responses):
    ids = ids_of(tuner)
    blocks = tuner.fit_transform(ids, responses)
    assert set(blocks.held_out) == set(tuner.validation_ids_)
    ridge = RidgeEncoder(cv="held-out").fit(blocks, responses)
    out = np.isin(ids, tuner.validation_ids_)
    split = [(np.flatnonzero(~out), np.flatnonzero(out))]
    naive = RidgeEncoder(cv=split).fit(blocks.to_matrix(), responses)
    assert np.array_equal(ridge.alpha_, naive.alpha_)
    assert np.allclose(ridge.coef_, naive.coef_)


def test_rows_scaled_or_selected_still_know(tuner, responses):
    blocks = tuner.fit_transform(ids_of(tuner), responses)
    scaled = LayerScaler(output="blocks").fit_transform(blocks)
    for kept in (scaled, blocks[5:], blocks.select(["layer2:mean"])):
        assert kept.held_out.tolist() == blocks.held_out.tolist()


def test_a_pipeline_predicts_new_stimuli(tuner, responses):
    ridge = BandedRidge(cv="held-out", n_iter=4, random_state=0)
    pipeline = Pipeline([("tuner", tuner), ("scale", LayerScaler(output="blocks")), ("ridge", ridge)])
    ids = ids_of(tuner)
    predicted = pipeline.fit(ids[:16], responses[:16]).predict(ids[16:])
    assert predicted.shape == (4, 3)
    assert pipeline[0].transform(ids[16:]).held_out is None


@pytest.mark.parametrize(
    "step", [RidgeEncoder(), RidgeEncoder(cv="loo"), StackedLayers(), LinearHead(max_epochs=1)]
)
def test_a_choice_on_tuned_features_is_refused(tuner, responses, step):
    blocks = tuner.fit_transform(ids_of(tuner), responses)
    with pytest.raises(RequestError, match="tuned to these very responses"):
        step.fit(blocks, responses)


def test_a_given_penalty_chooses_nothing(tuner, responses):
    blocks = tuner.fit_transform(ids_of(tuner), responses)
    assert RidgeEncoder(10.0).fit(blocks, responses).coef_.shape == (3, blocks.shape[1])


def test_a_matrix_would_forget(tuner, responses):
    blocks = tuner.fit_transform(ids_of(tuner), responses)
    with pytest.raises(RequestError, match="output='blocks' in the scaler"):
        LayerScaler().fit(blocks)
    with pytest.raises(RequestError, match="cross_fit=None"):
        tuner.set_params(output="matrix").fit_transform(ids_of(tuner), responses)


@pytest.mark.parametrize("fraction", [0, None])
def test_nothing_held_out_is_an_error(tuner, responses, fraction):
    changed = {"validation_fraction": 0} if fraction == 0 else {"validation_folds": 2}
    blocks = tuner.set_params(**changed).fit_transform(ids_of(tuner), responses)
    with pytest.raises(RequestError, match="At least two are needed"):
        RidgeEncoder(cv="held-out").fit(blocks, responses)


def test_features_of_no_tuner_have_nothing_held_out(rng, responses):
    with pytest.raises(RequestError, match="these features come from none"):
        RidgeEncoder(cv="held-out").fit(rng.standard_normal((20, 4)), responses)


def test_blocks_of_folds_know_no_responses(tuner, responses):
    blocks = tuner.set_params(cross_fit=2).fit_transform(ids_of(tuner), responses)
    assert isinstance(blocks, LayerBlocks)
    assert blocks.held_out is None
    assert np.array_equal(
        blocks.to_matrix(), tuner.set_params(output="matrix").fit_transform(ids_of(tuner), responses)
    )
