"""What is minimised, and what chooses the epoch, against references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe import LayerScaler, RidgeEncoder
from featpipe.errors import RequestError
from featpipe.metrics import pearson_r
from featpipe.tuning.responses import ContrastiveTuner, ResponseTuner
from featpipe.tuning.responses._measured import Measured
from featpipe.tuning.responses._start import principal_axes
from featpipe.tuning.responses._stopping import held_out_correlation

IDS = slice(None, 60)


def plan_of(Tuner, world, y=None, held_out=None, **params):
    """Return what a tuner would train on 60 stimuli."""
    tuner = Tuner(**world.network, **{"device": "cpu", **params})
    y = world.y[IDS] if y is None else y
    ids = world.ids[IDS]
    body = tuner._body(_backbone(tuner), ids, tuner._taps)
    rows = np.arange(60) if held_out is None else np.setdiff1d(np.arange(60), held_out)
    return tuner._plan(body, ids, y, rows, held_out)


def _backbone(tuner):
    from featpipe.models import load
    from featpipe.tuning._tuned import network_request

    return load(network_request(tuner))


def step(plan):
    """Return the loss of one batch of all rows, and every gradient."""
    plan.module.train()
    losses, weights = plan.objective(torch.as_tensor(plan.batches), torch.Generator().manual_seed(0))
    (losses / weights).sum().backward()
    named = plan.module.named_parameters()
    return float((losses / weights).detach()), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize("Tuner", [ContrastiveTuner, ResponseTuner])
@pytest.mark.parametrize("micro_batch", [7, 20])
def test_micro_batches_give_loss_and_gradient_of_the_whole_batch(small_world, Tuner, micro_batch):
    loss, gradients = step(plan_of(Tuner, small_world))
    in_parts, found = step(plan_of(Tuner, small_world, micro_batch=micro_batch))
    assert in_parts == pytest.approx(loss, rel=1e-6)
    assert found.keys() == gradients.keys()
    assert "body.network.stem.0.weight" in found
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_squared_error_is_the_mean_over_measured_responses(small_world):
    y = small_world.y[IDS].copy()
    y[np.random.default_rng(0).random(y.shape) < 0.2] = np.nan
    plan = plan_of(ResponseTuner, small_world, y)
    loss, _ = step(plan)
    predicted = plan.module(torch.arange(60), None).detach().numpy()
    standard = (y - np.nanmean(y, axis=0)) / np.nanstd(y, axis=0)
    assert loss == pytest.approx(np.nanmean((predicted - standard) ** 2), rel=1e-5)


def test_the_readout_begins_at_ridge(small_world):
    """Before any step `predict` is ridge on the untuned features of the training stimuli."""
    ids, y = small_world.ids[:100], small_world.y[:100]
    tuner = ResponseTuner(**small_world.network, max_epochs=0, validation_fraction=0, device="cpu").fit(
        ids, y
    )
    scaler = LayerScaler().fit(tuner.transform(ids))
    ridge = RidgeEncoder().fit(scaler.transform(tuner.transform(ids)), (y - y.mean(0)) / y.std(0))
    new = small_world.ids[100:120]
    wanted = ridge.predict(scaler.transform(tuner.transform(new))) * y.std(0) + y.mean(0)
    np.testing.assert_allclose(tuner.predict(new), wanted, rtol=1e-3, atol=1e-3)


def test_zeros_predict_the_mean_at_first(small_world):
    ids, y = small_world.ids[IDS], small_world.y[IDS]
    tuner = ResponseTuner(
        **small_world.network, start="zeros", max_epochs=0, validation_fraction=0, device="cpu"
    )
    np.testing.assert_allclose(tuner.fit(ids, y).predict(ids[:2]), y.mean(0)[None].repeat(2, 0), rtol=1e-5)


def test_predictions_of_a_vector_are_a_vector(small_world):
    tuner = ResponseTuner(**small_world.network, max_epochs=1, device="cpu")
    assert tuner.fit(small_world.ids[IDS], small_world.y[IDS, 0]).predict(small_world.ids[:4]).shape == (4,)


def test_both_modalities_begin_near_each_other(small_world):
    """What ridge starts: responses and images of a stimulus enter the head alike, unlike from random maps."""
    correlation = {}
    for start in ("ridge", "random"):
        module = plan_of(ContrastiveTuner, small_world, start=start).module
        measured = Measured.of(small_world.y[IDS], np.arange(60), None)
        with torch.no_grad():
            images = module.projection.of_features(module.standardised(module.body(torch.arange(60))))
            responses = module.projection.of_responses(torch.as_tensor(measured.filled))
        correlation[start] = pearson_r(responses.numpy(), images.numpy()).mean()
    assert correlation["ridge"] > 0.5 > correlation["random"] + 0.2


@pytest.mark.parametrize("n_axes", [2, 6])
def test_principal_axes_of_predictions(rng, n_axes):
    """Those of a decomposition of the predictions themselves, as far as these reach: two stimuli too few for six."""
    features, weight = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal((6, 7))
    weight = torch.as_tensor(weight, dtype=torch.float32)
    axes = principal_axes(features, weight, n_axes, torch.Generator().manual_seed(0))
    predicted = features @ weight.numpy().T
    wanted = np.linalg.svd(predicted - predicted.mean(0))[2][: min(n_axes, 4)]
    np.testing.assert_allclose(np.abs(np.sum(axes.numpy()[: len(wanted)] * wanted, axis=1)), 1, atol=1e-4)
    torch.testing.assert_close(axes @ axes.T, torch.eye(n_axes), rtol=1e-4, atol=1e-5)


def test_the_ridge_that_stops_is_scikit_learns(rng):
    """The best penalty for all targets together, each a fit to the first stimuli alone."""
    from sklearn.linear_model import Ridge

    from featpipe.encoding.ridge._encoder import ALPHAS

    features = rng.standard_normal((50, 8)).astype(np.float32)
    Y = features @ rng.standard_normal((8, 3)) + rng.standard_normal((50, 3))
    scaled = LayerScaler().fit(features[:40]).transform(features)
    wanted = max(
        pearson_r(Y[40:], Ridge(alpha=alpha).fit(scaled[:40], Y[:40]).predict(scaled[40:])).mean()
        for alpha in ALPHAS
    )
    assert held_out_correlation(features, Y, 40) == pytest.approx(wanted, abs=1e-5)


def test_features_that_are_no_numbers_have_no_score():
    assert np.isnan(held_out_correlation(np.full((10, 2), np.nan, dtype=np.float32), np.ones((10, 1)), 8))


def test_what_stops_by_ridge_is_minus_r_of_the_features(small_world):
    held_out = np.arange(5, 60, 4)
    plan = plan_of(ResponseTuner, small_world, held_out=held_out)
    measured = Measured.of(small_world.y[IDS], plan.batches, held_out)
    rows = np.concatenate([plan.batches, held_out])
    with torch.no_grad():
        features = plan.module.body(torch.as_tensor(rows))[0].flatten(1).numpy()
    wanted = held_out_correlation(features, measured.filled[rows], len(plan.batches))
    assert plan.held_out()[0] == pytest.approx(-wanted, abs=1e-5)


@pytest.mark.parametrize("Tuner", [ContrastiveTuner, ResponseTuner])
def test_stopping_by_loss_watches_the_objective_itself(small_world, Tuner):
    held_out = np.arange(5, 60, 4)
    plan = plan_of(Tuner, small_world, held_out=held_out, stop_by="loss")
    plan.module.eval()
    with torch.no_grad():
        losses, weights = plan.objective(torch.as_tensor(held_out), None)
        watched = plan.held_out() if callable(plan.held_out) else None
    if watched is None:
        np.testing.assert_array_equal(plan.held_out, held_out)
    else:
        assert watched[0] == pytest.approx(float(losses / weights), rel=1e-6)


def test_moments_come_from_fitted_stimuli_alone():
    Y = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0], [np.nan, np.nan], [100.0, 100.0], [9.0, 9.0]])
    measured = Measured.of(Y.astype(np.float32), np.array([0, 1, 2, 3]), np.array([4, 5]))
    np.testing.assert_allclose(measured.mean, [3, 4])
    np.testing.assert_allclose(measured.scale, [np.sqrt(8 / 3), 2])
    np.testing.assert_array_equal(measured.rows, [0, 1, 2])
    assert measured.filled[1, 1] == 0


def test_stimuli_to_stop_by_must_have_responses():
    Y = np.ones((6, 1), dtype=np.float32)
    Y[4:] = np.nan
    with pytest.raises(RequestError, match="0 of the stimuli held out for early stopping have responses"):
        Measured.of(Y, np.arange(4), np.array([4, 5]))


def test_the_reports_recipe_declares_its_three_networks():
    from featpipe.recipes import load_recipe

    recipe = load_recipe("mulrooney2023_contrastive")
    contrastive = recipe.pipeline["tuner"]
    assert (contrastive.batch_size, contrastive.include_positive, contrastive.symmetric) == (
        1024,
        False,
        False,
    )
    assert recipe.variants["untuned"]["tuner"].max_epochs == 0
    assert isinstance(recipe.variants["regression"]["tuner"], ResponseTuner)
    assert {p["tuner"].layer for p in (recipe.pipeline, *recipe.variants.values())} == {"output"}
