"""`ChannelMask`: recovers a planted mask, finds nothing in noise, and is a scikit-learn estimator."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.model_selection import evaluate
from featpipe.rsa import RDMs, concat
from featpipe.rsa._threads import n_blas_threads
from featpipe.rsa.mask._apply import masked_blocks
from featpipe.rsa.mask._channel_mask import ChannelMask
from featpipe.rsa.mask._stage_tuning import plot_stage_tuning
from featpipe.rsa.statistics._held import STATISTICS

SHAPES = [(6, 5, 5), (10, 3, 3), (8,)]
QUICK = {"solver": "lbfgs", "loss": "squared", "random_state": 0}


@pytest.fixture(autouse=True)
def _nothing_held():
    STATISTICS.clear()
    yield
    STATISTICS.clear()


def blocks_of(n_stimuli, name="s", seed=0, views=0):
    """LayerBlocks of noise, with views that are the image and some noise more."""
    rng = np.random.default_rng(seed)
    layers = [rng.standard_normal((n_stimuli, *shape)).astype(np.float32) for shape in SHAPES]
    ids = np.array([f"{name}/{number:02d}" for number in range(n_stimuli)])
    crops = [
        [v + 0.3 * rng.standard_normal(v.shape).astype(np.float32) for v in layers] for _ in range(views)
    ]
    return as_blocks(ids, layers, [as_blocks(ids, crop, (), f"view{k}") for k, crop in enumerate(crops)])


def as_blocks(ids, layers, views=(), digest="net"):
    place = {label: row for row, label in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=[f"stage{number}" for number in range(len(layers))],
        shapes=[layer.shape[1:] for layer in layers],
        dims=[("channel", "height", "width")[: layer.ndim - 1] for layer in layers],
        digests=[f"{digest}{number}" for number in range(len(layers))],
        read=lambda layer, asked: layers[layer][[place[label] for label in asked.tolist()]],
        views=views,
    )


def two_sets(n_first=18, n_second=22, **options):
    """LayerBlocks over the sets "a" and "b"."""
    first, second = blocks_of(n_first, "a", **options), blocks_of(n_second, "b", seed=1, **options)
    layers = [np.concatenate([first.block(k), second.block(k)]) for k in range(len(SHAPES))]
    return as_blocks(np.concatenate([first.ids, second.ids]), layers)


def rdms_of(blocks, mask, n_subjects=3, noise=0.0, seed=0):
    """RDMs of a masked embedding, NaN across sets."""
    rng = np.random.default_rng(seed)
    values = 1 - np.corrcoef(masked_blocks(blocks, mask, "channel").to_matrix().astype(np.float64))
    values = np.stack([values + noise * _symmetric(rng, len(blocks)) for _ in range(n_subjects)])
    whole = RDMs(values, blocks.ids, targets=["IT"] * n_subjects)
    return concat([part for _, part in whole.split_sets()])


def _symmetric(rng, n):
    noise = rng.standard_normal((n, n))
    return (noise + noise.T) / 2


def noise_rdms(ids, seed, n_subjects=4):
    rng = np.random.default_rng(seed)
    values = np.stack([1 + 0.2 * _symmetric(rng, len(ids)) for _ in range(n_subjects)])
    return RDMs(values, ids, targets=["IT"] * n_subjects)


@pytest.fixture
def mask(rng):
    return rng.uniform(0.1, 2, 24)


@pytest.mark.parametrize("line", [False, True])
def test_a_planted_mask_is_recovered_up_to_scale(mask, line):
    blocks = two_sets(40, 40)
    y = rdms_of(blocks, mask)
    y = y.with_upper(0.3 + 5 * y.upper()) if line else y
    fitted = ChannelMask(**QUICK, line=line, max_iter=2000, tol=1e-14).fit(blocks, y)
    assert np.corrcoef(fitted.coef_, mask)[0, 1] > 0.99
    assert fitted.score(blocks, y) > 0.999
    np.testing.assert_allclose(fitted.scale_, 5 if line else 1, rtol=0.01)
    np.testing.assert_allclose(fitted.offset_, 0.3 if line else 0, atol=0.05)


@pytest.mark.parametrize("loss", ["l1", "squared", "correlation"])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_every_solver_and_loss_comes_closer_on_new_stimuli(mask, solver, loss):
    blocks = blocks_of(60)
    y = rdms_of(blocks, mask, noise=0.02)
    train, test = np.arange(40), np.arange(40, 60)
    fitted = ChannelMask(solver=solver, loss=loss, random_state=0).fit(blocks[train], y[train])
    before = ChannelMask(loss=loss, shrinkage=1e9, solver="lbfgs").fit(blocks[train], y[train])
    assert fitted.score(blocks[test], y[test]) > before.score(blocks[test], y[test]) + 0.05
    assert fitted.history_["loss"][-1] < fitted.history_["loss"][0]


def test_full_batches_end_lower_than_adam(mask):
    blocks = blocks_of(40)
    y = rdms_of(blocks, mask, noise=0.05)
    adam, full = (ChannelMask(solver=name, random_state=0).fit(blocks, y) for name in ("adam", "lbfgs"))
    assert full.history_["loss"][-1] < adam.history_["loss"][-1]


def test_noise_predicts_nothing_on_new_stimuli():
    blocks = blocks_of(40)
    train, test = np.arange(24), np.arange(24, 40)
    rho = []
    for seed in range(24):
        y = noise_rdms(blocks.ids, seed)
        rho.append(
            ChannelMask(**QUICK, max_iter=15).fit(blocks[train], y[train]).score(blocks[test], y[test])
        )
    interval = 2.8 * np.std(rho, ddof=1) / np.sqrt(len(rho))  # t(.995, 23)
    assert abs(np.mean(rho)) < interval


@pytest.mark.parametrize("validation", [None, "stimuli", "pairs"])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_order_of_rows_says_nothing(rng, mask, solver, validation):
    blocks = two_sets()
    y = rdms_of(blocks, mask, noise=0.1)
    order = rng.permutation(len(blocks))
    model = ChannelMask(solver=solver, validation=validation, epochs=4, max_iter=8, random_state=3)
    one, other = model.fit(blocks, y).coef_, clone(model).fit(blocks[order], y[order]).coef_
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-3)
    assert clone(model).fit(blocks, y).coef_.tolist() == one.tolist()


def test_pairs_across_sets_are_not_touched(mask):
    blocks = two_sets()
    y = rdms_of(blocks, mask, noise=0.1)
    values = np.where(np.isnan(y.values), 1e6, y.values)  # absurd, and not to be looked at
    values = (values + values.swapaxes(1, 2)) / 2
    other = RDMs(values, y.ids, subjects=y.subjects, targets=y.targets)
    np.testing.assert_array_equal(
        ChannelMask(**QUICK, max_iter=9).fit(blocks, y).coef_,
        ChannelMask(**QUICK, max_iter=9).fit(blocks, other).coef_,
    )


def test_prediction_is_that_of_the_masked_embedding(mask):
    blocks = two_sets()
    fitted = ChannelMask(**QUICK, max_iter=9).fit(blocks, rdms_of(blocks, mask, noise=0.1))
    expected = 1 - np.corrcoef(fitted.transform(blocks).astype(np.float64))
    predicted = fitted.predict(blocks)
    np.testing.assert_allclose(predicted.values[0], expected, rtol=0, atol=1e-5)  # also across sets
    held = fitted.predict(blocks[:18]).values[0]  # one set, statistics held
    STATISTICS.clear()
    streamed = fitted.predict(blocks[:18]).values[0]
    np.testing.assert_allclose(held, expected[:18, :18], rtol=0, atol=1e-5)
    np.testing.assert_allclose(streamed, held, rtol=0, atol=1e-5)
    assert np.array_equal(predicted.ids, blocks.ids)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_masks_that_are_not_negative(rng, solver):
    plain = blocks_of(20)
    blocks = as_blocks(plain.ids, [block + 1 for _, block in plain])  # around 0 signs would not show
    y = rdms_of(blocks, rng.uniform(-1, 1, 24))
    model = ChannelMask(solver=solver, learning_rate=0.05, random_state=0)
    assert model.fit(blocks, y).coef_.min() < -0.1
    assert model.set_params(non_negative=True).fit(blocks, y).coef_.min() == 0


def test_squared_loss_over_subjects_is_that_of_their_mean(mask):
    blocks = blocks_of(20)
    y = rdms_of(blocks, mask, noise=0.1, n_subjects=4)
    model = ChannelMask(**QUICK, reliability=False, max_iter=10, tol=1e-14)
    all_at_once, mean = model.fit(blocks, y).coef_, clone(model).fit(blocks, y.mean()).coef_
    np.testing.assert_allclose(all_at_once, mean, rtol=1e-2)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("time_sampling", [None, "mean", "gaussian"])
def test_times_of_meg(mask, solver, time_sampling):
    """Only the middle times know the mask; the Gaussian leans on them."""
    blocks = blocks_of(40)
    early = rdms_of(blocks, mask, n_subjects=2)
    known = early.values[0][None].repeat(12, axis=0)
    noise = np.stack([_symmetric(np.random.default_rng(seed), 40) for seed in range(12)])
    amount = np.abs(np.tile(np.arange(6), 2) - 2.5)[:, None, None] / 5
    y = RDMs(
        known + amount * noise,
        blocks.ids,
        subjects=np.repeat(["x", "y"], 6),
        targets=["MEG"] * 12,
        times=np.tile(np.arange(6), 2),
    )
    fitted = ChannelMask(solver=solver, loss="squared", time_sampling=time_sampling, random_state=0).fit(
        blocks, y
    )
    start = ChannelMask(solver="lbfgs", shrinkage=1e9).fit(blocks, y)
    assert fitted.score(blocks, early) > start.score(blocks, early) + 0.05


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_shrinkage_ends_in_ones(solver):
    blocks = blocks_of(20)
    model = ChannelMask(solver=solver, shrinkage=1e4, epochs=40, random_state=0)
    np.testing.assert_allclose(model.fit(blocks, noise_rdms(blocks.ids, 0)).coef_, 1, atol=1e-2)


def test_early_stopping_keeps_the_best_mask(mask):
    blocks = two_sets(30, 30)
    y = rdms_of(blocks, mask, noise=0.1)
    fitted = ChannelMask(
        validation="stimuli",
        validation_fraction=0.3,
        patience=3,
        epochs=40,
        learning_rate=0.1,
        random_state=0,
    ).fit(blocks, y)
    rho = fitted.history_["rho"]
    held = np.flatnonzero(np.isin(blocks.ids, fitted.validation_ids_))
    assert len(rho) < 41
    assert fitted.n_iter_ == rho.argmax() == len(rho) - 4
    assert fitted.score(blocks[held], y[held]) == pytest.approx(rho.max(), abs=1e-3)
    sets = [label[0] for label in fitted.validation_ids_]
    assert sets.count("a") == sets.count("b") == 9
    assert set(fitted.validation_ids_) < set(fitted.training_ids_.tolist())


@pytest.mark.parametrize(
    ("fraction", "says"),
    [
        (0.01, "none is left on one side of the split"),
        (0.15, "2 pairs are held out, .* a correlation to stop on needs 3"),
        (0.99, "none is left on one side of the split"),
    ],
)
def test_too_few_pairs_to_stop_on_are_refused(mask, fraction, says):
    """Two always correlate perfectly, and without a score the mask would silently stay as it began."""
    blocks = blocks_of(6)
    model = ChannelMask(validation="pairs", validation_fraction=fraction, random_state=0)
    with pytest.raises(RequestError, match=says):
        model.fit(blocks, rdms_of(blocks, mask))


def test_a_coefficient_per_stage_or_feature(mask):
    blocks = blocks_of(24)
    y = rdms_of(blocks, np.repeat([0.2, 1.5, 3.0], [6, 10, 8]))
    stage = ChannelMask("stage", **QUICK, tol=1e-14, non_negative=True).fit(blocks, y)
    np.testing.assert_allclose(stage.coef_ / stage.coef_[1], np.array([0.2, 1.5, 3.0]) / 1.5, rtol=1e-2)
    feature = ChannelMask("feature", epochs=2, random_state=0).fit(blocks, y)
    assert feature.coef_.shape == (blocks.shape[1],)
    assert feature.history_["loss"][-1] < feature.history_["loss"][0]
    np.testing.assert_allclose(
        feature.predict(blocks).values[0], 1 - np.corrcoef(feature.transform(blocks)), rtol=0, atol=1e-5
    )
    with pytest.raises(RequestError, match="needs solver='adam'"):
        ChannelMask("feature", solver="lbfgs").fit(blocks, y)


def test_targets_are_joint_or_chosen(mask):
    blocks = blocks_of(20)
    y = rdms_of(blocks, mask, n_subjects=2)
    both = RDMs(np.concatenate([y.values, 2 - y.values]), y.ids, targets=["IT", "IT", "EVC", "EVC"])
    joint, one = ChannelMask(**QUICK).fit(blocks, both), ChannelMask(**QUICK, train_on="IT").fit(blocks, both)
    np.testing.assert_array_equal(one.coef_, ChannelMask(**QUICK).fit(blocks, y).coef_)
    assert joint.training_targets_ == ["IT", "EVC"]
    assert one.training_targets_ == ["IT"]
    assert abs(one.coef_ - joint.coef_).max() > 0.01


def test_views_are_further_pairs(mask):
    blocks = blocks_of(20, views=2)
    y = rdms_of(blocks, mask)
    plain = ChannelMask(**QUICK).fit(as_blocks(blocks.ids, [block for _, block in blocks]), y)
    assert abs(plain.coef_ - ChannelMask(**QUICK).fit(blocks, y).coef_).max() > 1e-4
    drawn = ChannelMask(**QUICK, view_pairs=4).fit(blocks, y)
    np.testing.assert_array_equal(drawn.coef_, ChannelMask(**QUICK, view_pairs=4).fit(blocks, y).coef_)
    with pytest.raises(RequestError, match="a number from 1 to 9"):
        ChannelMask(view_pairs=10).fit(blocks, y)


def test_pairs_of_views_are_those_of_their_embeddings(mask):
    from featpipe.rsa.mask._problem import assemble, pairs_within_sets

    blocks = blocks_of(8, views=1)
    y = rdms_of(blocks, mask)
    pairs = pairs_within_sets(y)
    terms, measured = assemble(blocks, y, pairs, [(0, 0), (0, 1)], "channel")
    image, crop = (masked_blocks(v, mask, "channel").to_matrix() for v in (blocks, blocks.views[0]))
    both = np.corrcoef(image, crop)
    expected = np.concatenate([both[pairs], both[pairs[0], 8 + pairs[1]]])
    np.testing.assert_allclose(terms.correlate(mask)[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(measured.values, np.tile(y.values[:, pairs[0], pairs[1]], 2))


def test_responses_give_cross_fitted_rows(rng):
    blocks = blocks_of(30)
    responses = blocks.block(1).reshape(30, -1) @ rng.standard_normal((90, 12))
    model = ChannelMask(target="responses", cross_fit=3, max_iter=9, solver="lbfgs", random_state=0)
    rows = clone(model).fit_transform(blocks, responses)
    model.fit(blocks, responses)
    own = model.transform(blocks)
    assert rows.shape == own.shape == blocks.shape
    assert (np.abs(rows - own).max(axis=1) > 1e-4).all()  # no row is from a mask that saw it
    features = masked_blocks(blocks, model.coef_, "channel").to_matrix() / np.where(
        blocks.to_matrix() == 0, 1, blocks.to_matrix()
    )
    assert np.mean(features[0].astype(np.float64) ** 2) == pytest.approx(1, rel=1e-3)


def test_a_held_out_row_does_not_depend_on_its_response(rng):
    blocks, responses = blocks_of(24), rng.standard_normal((24, 6))
    model = ChannelMask(target="responses", cross_fit=4, epochs=2, random_state=0)
    rows = model.fit_transform(blocks, responses)
    responses[5] = rng.standard_normal(6)
    again = model.fit_transform(blocks, responses)
    np.testing.assert_array_equal(rows[5], again[5])
    assert (rows != again).any()


def test_it_is_cloned_pickled_saved_and_searched(mask):
    blocks = blocks_of(30)
    y = rdms_of(blocks, mask, noise=0.02)
    fitted = ChannelMask(**QUICK, max_iter=5).fit(blocks, y)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.transform(blocks), fitted.transform(blocks))
    saved = skops.io.dumps(fitted)
    loaded = skops.io.loads(saved, trusted=skops.io.get_untrusted_types(data=saved))
    assert skops.io.get_untrusted_types(data=saved) == ["featpipe.rsa.mask._channel_mask.ChannelMask"]
    np.testing.assert_array_equal(loaded.predict(blocks).values, fitted.predict(blocks).values)
    search = GridSearchCV(ChannelMask(**QUICK), {"shrinkage": [0.0, 1e6]}, cv=KFold(3)).fit(blocks, y)
    assert search.best_params_ == {"shrinkage": 0.0}


def test_a_frozen_mask_is_not_scored_on_what_it_saw(rng, mask):
    blocks, other = blocks_of(24), blocks_of(12, "other", seed=5)
    fitted = ChannelMask(**QUICK, max_iter=3).fit(other, rdms_of(other, mask))
    pipeline = make_pipeline(FrozenEstimator(fitted), Ridge())
    assert evaluate(pipeline, blocks, rng.standard_normal((24, 2)), cv=3).n_folds == 3
    with pytest.raises(RequestError, match="the frozen ChannelMask was fitted on"):
        evaluate(pipeline, other, rng.standard_normal((12, 2)), cv=3)


def test_stage_tuning_has_means_and_intervals(mask):
    pytest.importorskip("matplotlib")
    blocks = blocks_of(20)
    fitted = ChannelMask(**QUICK).fit(blocks, rdms_of(blocks, mask))
    table = fitted.stage_tuning_
    assert table["n"].tolist() == [6, 10, 8]
    assert table["mean"][1] == pytest.approx(fitted.coef_[6:16].mean())
    half = 2.2622 * fitted.coef_[6:16].std(ddof=1) / np.sqrt(10)  # t(.975, 9)
    assert table["high"][1] - table["mean"][1] == pytest.approx(half, rel=1e-4)
    assert len(plot_stage_tuning(fitted).patches) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": "pixel"}, "resolution is 'pixel'; it must be one of"),
        ({"loss": "l2"}, "loss is 'l2'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"shrinkage": -1.0}, "shrinkage is -1.0; it must be a number of at least 0"),
        ({"alpha": -1}, "alpha is -1; it must be a number of at least 0"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be a number above 0"),
        ({"epochs": "many"}, "epochs is 'many'; it must be a whole number of at least 1"),
        ({"cross_fit": 1}, "cross_fit is 1; it must be a whole number of at least 2"),
        ({"line": "maybe"}, "line is 'maybe'; it must be true or false"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it must be below 1"),
        ({"random_state": "x"}, "random_state is 'x'"),
        ({"target": "responses"}, "y are RDMs; set target='rdms'"),
        ({"time_sampling": "gaussian"}, "have no time axis"),
        ({"train_on": "MEG"}, "no target 'MEG'"),
        ({"validation": "stimuli", "validation_fraction": 0.99}, "Use a smaller validation_fraction"),
    ],
)
def test_wrong_requests_say_what_would_be_right(mask, change, message):
    blocks = blocks_of(12)
    with pytest.raises(RequestError, match=message):
        ChannelMask(**change).fit(blocks, rdms_of(blocks, mask))


def test_threads_at_once_leave_the_number_of_blas_threads_as_it_was(mask):
    blocks = blocks_of(20)
    y = rdms_of(blocks, mask)
    before = n_blas_threads()
    with ThreadPoolExecutor(4) as pool:
        fits = list(pool.map(lambda _: ChannelMask(**QUICK, max_iter=9).fit(blocks, y).coef_, range(8)))
    assert n_blas_threads() == before
    assert all((coef == fits[0]).all() for coef in fits)


def test_other_inputs_are_refused(mask):
    blocks = blocks_of(12)
    y = rdms_of(blocks, mask)
    with pytest.raises(RequestError, match="use CachedFeatures"):
        ChannelMask().fit(blocks.to_matrix(), y)
    with pytest.raises(RequestError, match="set target='responses'"):
        ChannelMask().fit(blocks, np.ones((12, 3)))
    with pytest.raises(RequestError, match="must be the same ids"):
        ChannelMask().fit(blocks, y[::-1])
    fitted = ChannelMask(**QUICK, max_iter=2).fit(blocks, y)
    with pytest.raises(RequestError, match="The mask was fitted to layers stage0, stage1, stage2"):
        fitted.transform(as_blocks(blocks.ids, [blocks.block(0)]))
    with pytest.raises(RequestError, match="no pair within a stimulus set"):
        ChannelMask().fit(blocks, y.with_upper(np.full(y.upper().shape, np.nan)))
