"""The mask's objective: equal to the masked embedding itself, gradients to automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.rsa import RDMs
from featpipe.rsa.mask._features import feature_terms
from featpipe.rsa.mask._measured import Batch, Measured, gaussian_times, measured_pairs, reliability_weights
from featpipe.rsa.mask._objective import (
    LOSSES,
    least_scales,
    loss_of,
    objective,
    profile_lines,
)
from featpipe.rsa.mask._terms import pair_terms
from featpipe.rsa.statistics._held import STATISTICS
from featpipe.rsa.statistics._statistics import channel_statistics

N = 12
SHAPES = [(4, 9, 8), (6, 2, 2), (5,)]
CHANNEL_WIDTHS = np.repeat([72, 4, 1], [4, 6, 5])  # positions of each channel


@pytest.fixture(autouse=True)
def _nothing_held():
    STATISTICS.clear()
    yield
    STATISTICS.clear()


@pytest.fixture
def layers(rng):
    return [np.maximum(rng.standard_normal((N, *shape)), -0.5).astype(np.float32) for shape in SHAPES]


def blocks_of(layers):
    ids = np.array([f"s/{number:02d}" for number in range(len(layers[0]))])
    place = {name: row for row, name in enumerate(ids.tolist())}
    return LayerBlocks(
        ids,
        names=["a", "b", "c"],
        shapes=SHAPES,
        dims=[("channel", "height", "width"), ("channel", "height", "width"), ("channel",)],
        digests=["a", "b", "c"],
        read=lambda layer, asked: layers[layer][[place[name] for name in asked.tolist()]],
    )


def terms_of(layers, pairs):
    return pair_terms([channel_statistics(blocks_of(layers))], [pairs])


def embedding(layers):
    return np.concatenate([layer.reshape(N, -1) for layer in layers], axis=1).astype(np.float64)


def torch_gradient(features, beta, pairs, gradient):
    """Return r of pairs and the gradient in beta of ``sum gradient · r``, by automatic differentiation."""
    torch = pytest.importorskip("torch")
    mask = torch.tensor(beta, requires_grad=True)
    widths = torch.tensor(CHANNEL_WIDTHS if len(beta) == len(CHANNEL_WIDTHS) else np.ones(len(beta), int))
    masked = torch.tensor(features) * mask.repeat_interleave(widths)
    r = torch.corrcoef(masked)[pairs[0], pairs[1]]
    (r * torch.tensor(gradient)).sum().backward()
    return r.detach().numpy(), mask.grad.numpy()


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("kind", ["ones", "near", "any"])
def test_equals_the_masked_embedding_and_its_gradient(rng, layers, offset, kind):
    layers = [layer + np.float32(offset) for layer in layers]
    pairs = np.triu_indices(N, 1)
    away = {"ones": 0, "near": 1e-3, "any": 0.7}[kind]
    beta, gradient = 1 + away * rng.standard_normal(15), rng.standard_normal(len(pairs[0]))
    expected, expected_gradient = torch_gradient(embedding(layers), beta, pairs, gradient)
    r, pullback = terms_of(layers, pairs).correlate(beta)
    np.testing.assert_allclose(r, expected, rtol=0, atol=1e-5)
    error = np.linalg.norm(pullback(gradient) - expected_gradient) / np.linalg.norm(expected_gradient)
    assert error < 1e-4


def test_a_coefficient_per_feature_equals_the_masked_embedding(rng, layers):
    pairs = np.triu_indices(N, 1)
    terms = feature_terms(blocks_of(layers), pairs, [(0, 0)])
    beta, gradient = rng.uniform(0, 2, terms.n_channels), rng.standard_normal(terms.n_pairs)
    expected, expected_gradient = torch_gradient(embedding(layers), beta, pairs, gradient)
    r, pullback = terms.correlate(beta)
    np.testing.assert_allclose(r, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pullback(gradient), expected_gradient, rtol=0, atol=1e-5)


def test_some_pairs_are_those_of_all(rng, layers):
    terms, beta = terms_of(layers, np.triu_indices(N, 1)), rng.uniform(0, 2, 15)
    some = np.array([40, 3, 17])
    np.testing.assert_allclose(terms.take(some).correlate(beta)[0], terms.correlate(beta)[0][some], atol=1e-6)


def test_channels_of_a_stage_share_a_coefficient(rng, layers):
    terms, stage = terms_of(layers, np.triu_indices(N, 1)), np.repeat([0, 1, 2], [4, 6, 5])
    beta = rng.uniform(0, 2, 3)
    together, pullback = terms.sum_channels(stage).correlate(beta)
    apart, pullback_apart = terms.correlate(beta[stage])
    np.testing.assert_allclose(together, apart, atol=1e-6)
    gradient = rng.standard_normal(terms.n_pairs)
    summed = np.bincount(stage, pullback_apart(gradient))
    np.testing.assert_allclose(pullback(gradient), summed, rtol=1e-4, atol=1e-6)


def test_a_stimulus_without_variance_correlates_with_nothing(layers):
    for layer in layers:
        layer[3] = 0
    pairs = np.triu_indices(N, 1)
    r, pullback = terms_of(layers, pairs).correlate(np.ones(15))
    assert (r[(pairs[0] == 3) | (pairs[1] == 3)] == 0).all()
    assert np.isfinite(pullback(np.ones(len(r)))).all()


def measured_of(rng, n_pairs, **options):
    """Five RDMs of two targets over two sets, a tenth of the pairs missing."""
    values = rng.uniform(0, 1, (5, n_pairs))
    values[rng.uniform(size=values.shape) < 0.1] = np.nan
    return Measured(
        values=values,
        pair_weights=rng.uniform(0.5, 2, (2, n_pairs)),
        rdm_weights=np.ones(5),
        target=np.array([0, 0, 0, 1, 1]),
        stimulus_set=np.repeat([0, 1], [n_pairs // 2, n_pairs - n_pairs // 2]),
        **options,
    )


# lines of the L1 loss are found to a tolerance, and tested by what they reach
@pytest.mark.parametrize(("loss", "line"), [*((loss, False) for loss in LOSSES), ("squared", True)])
def test_gradient_equals_finite_differences(rng, layers, loss, line):
    pairs = np.triu_indices(N, 1)
    terms, batch = terms_of(layers, pairs), measured_of(rng, len(pairs[0])).all()
    beta = 1 + 0.1 * rng.standard_normal(15)

    def value(d):
        lines = profile_lines(d, batch, loss=loss) if line else None
        return loss_of(d, batch, loss=loss, lines=lines)[0]

    d = 1 - terms.correlate(beta)[0]
    lines = profile_lines(d, batch, loss=loss) if line else None
    slope = loss_of(d, batch, loss=loss, lines=lines)[1]
    np.testing.assert_allclose(slope, approx_fprime(d, value, 1e-7), rtol=1e-4, atol=1e-7)
    total, gradient = objective(beta, terms, batch, loss=loss, lines=lines, shrinkage=0.3)
    assert total == pytest.approx(value(d) + 0.3 * np.mean((beta - 1) ** 2))
    expected = terms.correlate(beta)[1](-slope) + 0.6 * (beta - 1) / 15
    np.testing.assert_allclose(gradient, expected)


def test_losses_are_weighted_means_over_all_rdms(rng):
    batch = measured_of(rng, 40).all()
    d = rng.uniform(0, 1, 40)
    assert batch.weights.sum() == pytest.approx(1)
    assert loss_of(d, batch, loss="l1")[0] == pytest.approx(np.sum(batch.weights * np.abs(d - batch.values)))
    assert loss_of(d, batch, loss="squared")[0] == pytest.approx(
        np.sum(batch.weights * (d - batch.values) ** 2)
    )


def test_correlation_loss_is_the_mean_over_sets_and_rdms(rng):
    measured = measured_of(rng, 40)
    measured = Measured(
        rng.uniform(0, 1, (5, 40)), np.ones((2, 40)), np.ones(5), measured.target, measured.stimulus_set
    )
    d = rng.uniform(0, 1, 40)
    halves = slice(0, 20), slice(20, 40)
    r = [[np.corrcoef(d[half], y[half])[0, 1] for y in measured.values] for half in halves]
    assert loss_of(d, measured.all(), loss="correlation")[0] == pytest.approx(1 - np.mean(r))


def test_what_does_not_vary_pulls_at_nothing(rng):
    """Such as a batch of a model of categories: what rounding leaves of it must not count as a pattern."""
    d, flat = rng.uniform(0, 1, 40), np.full((1, 40), 0.1)
    weights = rng.uniform(0, 1, (1, 40))
    one_set = np.zeros(40, dtype=int)
    for values, pairs in ((flat, d), (rng.uniform(0, 1, (1, 40)), flat[0])):
        batch = Batch(values, weights / weights.sum(), np.zeros(1, dtype=int), one_set)
        value, slope = loss_of(pairs, batch, loss="correlation")
        assert value == 1
        assert not slope.any()


@pytest.mark.parametrize("loss", ["l1", "squared"])
def test_lines_are_the_best_per_target_and_set(rng, loss):
    batch = measured_of(rng, 60).all()
    d = rng.uniform(0, 1, 60)
    batch.values[:] += 0.7 * d  # so that scales are positive
    lines = profile_lines(d, batch, loss=loss)
    own, other = batch.target == 1, batch.stimulus_set == 0

    def value(line):
        residual = line[0] + line[1] * d[other] - batch.values[np.ix_(own, other)]
        weights = batch.weights[np.ix_(own, other)]
        return np.sum(weights * (np.abs(residual) if loss == "l1" else residual**2))

    best = minimize(value, [0.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12})
    assert value((lines.offset[1, 0], lines.scale[1, 0])) <= best.fun * (1 + 1e-4)


def test_scales_stay_positive(rng):
    """With a scale of 0, a mask that starts out anticorrelated would never move."""
    d = rng.uniform(0, 1, 60)
    batch = measured_of(rng, 60).all()
    batch.values[:] = 1 - d
    assert (profile_lines(d, batch, loss="squared").scale == 0).all()
    least = least_scales(d, batch)
    np.testing.assert_allclose(profile_lines(d, batch, loss="squared", least=least).scale, least)
    np.testing.assert_allclose(least, 0.01, rtol=0.1)  # of equal spreads


def test_reliability_weights_are_those_of_the_report(rng):
    values = rng.uniform(0, 1, (15, 30))
    noise = values.std(axis=0)
    expected = (1 / (noise + 0.25 * noise.mean())) ** 2
    weights = reliability_weights(values, (0.25, 2.0))
    np.testing.assert_allclose(weights, expected / expected.mean())
    assert (reliability_weights(values[:1], (0.25, 1.0)) == 1).all()  # one subject: no noise to see


def timed_rdms(rng, n_subjects=3, n_times=8):
    upper = rng.uniform(0, 1, (n_subjects * n_times, 15))
    subjects = np.repeat([f"s{number}" for number in range(n_subjects)], n_times)
    times = np.tile(np.arange(n_times), n_subjects)
    return RDMs.from_upper(upper, subjects=subjects, targets=["MEG"] * len(upper), times=times)


def test_times_are_drawn_from_the_middle_and_expected_with_the_same_chances(rng):
    rdms, pairs = timed_rdms(rng), np.triu_indices(6, 1)
    measured = measured_pairs(rdms, *pairs, time_sampling="gaussian")
    chance = gaussian_times(8)
    assert chance.argmax() in (3, 4)
    assert (np.diff(chance[:4]) > 0).all()
    np.testing.assert_allclose(measured.rdm_weights, np.tile(chance, 3))
    drawn = np.mean([measured.draw(np.arange(15), rng).values for _ in range(4000)], axis=0)
    expected = np.einsum("t,stp->sp", chance, measured.values.reshape(3, 8, 15))
    np.testing.assert_allclose(drawn, expected, atol=0.03)


def test_a_pair_has_one_time_for_all_subjects(rng):
    rdms = timed_rdms(rng)
    same = np.broadcast_to(np.arange(24)[:, None] % 8, (24, 15))
    rdms = rdms.with_upper(same.astype(float))  # the dissimilarity is the time
    values = (
        measured_pairs(rdms, *np.triu_indices(6, 1), time_sampling="gaussian").draw(np.arange(15), rng).values
    )
    assert (values == values[0]).all()
    assert len(set(values[0].tolist())) > 1


def test_mean_of_times_is_the_average(rng):
    rdms, pairs = timed_rdms(rng), np.triu_indices(6, 1)
    measured = measured_pairs(rdms, *pairs, time_sampling="mean")
    np.testing.assert_allclose(measured.values, rdms.average_times().values[:, pairs[0], pairs[1]])


def test_times_cannot_be_drawn_where_there_are_none(rng):
    rdms = timed_rdms(rng).average_times()
    with pytest.raises(RequestError, match="have no time axis"):
        measured_pairs(rdms, *np.triu_indices(6, 1), time_sampling="gaussian")
