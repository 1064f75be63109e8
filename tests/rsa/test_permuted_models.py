"""The permutation test of many models equals a loop, holds under chance, and finds what is there."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, compare, concat, permutation_null, permuted_p, stack

METHODS = ("spearman", "pearson", "cosine", "rho_a")


def random_rdms(rng, n_rdms, sizes, **labels):
    return concat(
        [
            RDMs.from_upper(
                rng.random((n_rdms, n * (n - 1) // 2)), [f"{name}/{i}" for i in range(n)], **labels
            )
            for name, n in sizes.items()
        ]
    )


def contest(rng):
    """Three models, two targets of three and two subjects, one of them over two times, in two sets."""
    sizes = {"a": 7, "b": 6}
    models = random_rdms(rng, 3, sizes, targets=["x", "y", "z"])
    fmri = random_rdms(rng, 3, sizes, targets=["EVC"] * 3, times=[0, 0, 0])
    meg = random_rdms(rng, 4, sizes, targets=["MEG"] * 4, subjects=["01", "01", "02", "02"], times=[0, 1] * 2)
    return models, stack([fmri, meg])


def means(values):
    """Means over subjects, after those over times, of (n_models, 3 subjects + 2 subjects × 2 times)."""
    meg = values[:, 3:].reshape(len(values), 2, 2).mean(axis=2)
    return np.column_stack([values[:, :3].mean(axis=1), meg.mean(axis=1)])


def loop(models, data, method, n, *, of_data):
    """p by permuting the measured RDMs, or the models, one draw after another."""
    rng, drawn = np.random.default_rng(0), []
    for (_, part), (_, of_models) in zip(data.split_sets(), models.split_sets(), strict=True):
        same = np.arange(len(part))
        orders = np.vstack([same, rng.permuted(np.tile(same, (n, 1)), axis=1)])
        pairs = [(of_models, part[o]) if of_data else (of_models[o], part) for o in orders]
        drawn.append([compare(RDMs(a.values), RDMs(b.values), method) for a, b in pairs])
    scores = [means(values) for values in np.mean(drawn, axis=0)]
    return (1 + sum(score >= scores[0] - 1e-12 for score in scores[1:])) / (1 + n)


@pytest.mark.parametrize("method", METHODS)
def test_equals_a_loop_over_permutations(rng, method):
    models, data = contest(rng)
    found = permuted_p(models, data, method=method, n=60)
    np.testing.assert_allclose(found, loop(models, data, method, 60, of_data=True))


@pytest.mark.parametrize("method", METHODS)
def test_equals_a_loop_where_a_subject_lacks_a_pair(rng, method):
    models, data = contest(rng)
    values = data.values.copy()
    values[1, 0, 3] = values[1, 3, 0] = np.nan
    data = RDMs(values, data.ids, subjects=data.subjects, targets=data.targets, times=data.times)
    found = permuted_p(models, data, method=method, n=60)
    np.testing.assert_allclose(found, loop(models, data, method, 60, of_data=False))


def test_order_of_the_models_stimuli_does_not_matter(rng):
    models, data = contest(rng)
    np.testing.assert_array_equal(
        permuted_p(models[rng.permutation(13)], data, n=40), permuted_p(models, data, n=40)
    )


def test_agrees_with_the_null_of_one_prediction(rng):
    models, data = contest(rng)
    ours = permuted_p(models, data, n=4000)
    theirs = [permutation_null(data, models.rows([row]), n=4000).rho_p for row in range(3)]
    np.testing.assert_allclose(ours, theirs, atol=0.04)


def test_p_is_uniform_under_chance_and_small_for_the_truth(rng):
    data = random_rdms(rng, 4, {"a": 9}, targets=["EVC"] * 4)
    noise = random_rdms(rng, 300, {"a": 9}, targets=[str(k) for k in range(300)])
    p = permuted_p(noise, data, n=200)[:, 0]
    assert abs(p.mean() - 0.5) < 0.06
    assert abs((p <= 0.1).mean() - 0.1) < 0.06
    assert permuted_p(data.mean(), data, n=200)[0, 0] == 1 / 201


def test_kendalls_test_is_that_of_rho_a(rng):
    models, data = contest(rng)
    np.testing.assert_array_equal(
        permuted_p(models, data, method="kendall", n=50), permuted_p(models, data, method="rho_a", n=50)
    )


def test_nothing_is_said_where_there_are_too_few_pairs(rng):
    models, data = contest(rng)
    assert np.isnan(permuted_p(models[:2], data[:2], n=5)).all()
    both = np.r_[:7, 7, 8]  # a set of two stimuli says nothing, the other one counts
    np.testing.assert_array_equal(
        permuted_p(models[both], data[both], n=30), permuted_p(models[:7], data[:7], n=30)
    )


@pytest.mark.parametrize(
    ("more", "says"), [({"n": 0}, "at least one draw"), ({"method": "tau"}, "no way 'tau'")]
)
def test_wrong_requests_are_named(rng, more, says):
    with pytest.raises(RequestError, match=says):
        permuted_p(*contest(rng), **more)
