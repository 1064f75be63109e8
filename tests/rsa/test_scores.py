"""Scores of predicted RDMs equal a loop over scipy, and the official ceilings follow from the data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat, stack
from featpipe.rsa._main_effects import remove_main_effects
from featpipe.rsa._scores import (
    RDM_METRICS,
    measured_labels,
    over_units,
    rdm_ceiling,
    rdm_ceiling_lower,
    rdm_percent,
    rdm_r2,
    rdm_r2_centred,
    rdm_rho,
    rdm_rho_centred,
    scoring_units,
    target_columns,
    unit_rhos,
)

OFFICIAL = {"92": {"EVC": 0.1589, "IT": 0.3075}, "118": {"EVC": 0.1048, "IT": 0.0728}}


def measured(rng, n_stimuli=9, name="a", targets=("EVC", "IT"), n_subjects=3):
    rows = [(target, str(subject)) for target in targets for subject in range(n_subjects)]
    vectors = rng.random((len(rows), n_stimuli * (n_stimuli - 1) // 2))
    ids = [f"{name}/{i}" for i in range(n_stimuli)]
    return RDMs.from_upper(vectors, ids, targets=[t for t, _ in rows], subjects=[s for _, s in rows])


def predicted(rng, y):
    return RDMs.from_upper(rng.random(y.n_pairs), y.ids)


def loop(y_true, y_pred):
    """Spearman's rho of each measured RDM of one set, on the pairs that both have."""
    pred = y_pred.upper()[0]
    rows = []
    for true in y_true.upper():
        known = ~np.isnan(true) & ~np.isnan(pred)
        rows.append(spearmanr(true[known], pred[known])[0])
    return np.array(rows)


def test_rho_is_spearmans_on_the_pairs_that_both_sides_have(rng):
    y, pred = measured(rng), predicted(rng, measured(rng))
    values = y.values.copy()
    values[1, 2, 3] = values[1, 3, 2] = np.nan
    holes = pred.values.copy()
    holes[0, 5, 1] = holes[0, 1, 5] = np.nan
    y, pred = RDMs(values, y.ids, subjects=y.subjects, targets=y.targets), RDMs(holes, pred.ids)
    np.testing.assert_allclose(rdm_rho(y, pred), loop(y, pred))
    np.testing.assert_allclose(rdm_r2(y, pred), loop(y, pred) ** 2)


def test_sets_are_scored_apart_and_averaged_after_squaring(rng):
    parts = measured(rng, 9, "a"), measured(rng, 6, "b")
    y = concat(parts)
    pred = predicted(rng, y)  # all pairs filled, also across sets
    rho = np.stack([loop(part, pred.take(part.ids)) for part in parts])
    np.testing.assert_allclose(rdm_rho(y, pred), rho.mean(axis=0))
    np.testing.assert_allclose(rdm_r2(y, pred), (rho**2).mean(axis=0))


def test_order_of_stimuli_and_a_scale_per_set_do_not_matter(rng):
    y = concat([measured(rng, 9, "a"), measured(rng, 7, "b")])
    pred = predicted(rng, y)
    shuffled = pred[rng.permutation(len(y))]
    for metric in RDM_METRICS.values():
        np.testing.assert_allclose(metric(y, shuffled), metric(y, pred))
    scaled = concat([pred.take(y.ids[:9]), pred.take(y.ids[9:]).with_upper(5 * pred[9:].upper() + 3)])
    np.testing.assert_allclose(rdm_rho(y, scaled), rdm_rho(y, pred))


def test_times_are_averaged_before_the_square(rng):
    parts = [measured(rng, 8, targets=["MEG-early"]) for _ in range(4)]
    y = RDMs(
        np.concatenate([part.values for part in parts]),
        parts[0].ids,
        targets=["MEG-early"] * 12,
        subjects=parts[0].subjects * 4,
        times=np.repeat(range(4), 3),
    )
    pred = predicted(rng, y)
    rho = np.stack([loop(part, pred) for part in parts])
    np.testing.assert_allclose(rdm_r2(y, pred), rho.mean(axis=0) ** 2)
    means = [part.mean() for part in parts]  # over subjects, within each time
    ceiling = np.stack([loop(part, mean) for part, mean in zip(parts, means, strict=True)])
    np.testing.assert_allclose(rdm_ceiling(y, pred), ceiling.mean(axis=0) ** 2)
    assert measured_labels(y) == [("MEG-early", "0"), ("MEG-early", "1"), ("MEG-early", "2")]


def test_ceilings_are_those_of_a_loop(rng):
    y, pred = measured(rng, targets=["EVC"]), predicted(rng, measured(rng))
    others = [np.delete(y.upper(), s, axis=0).mean(axis=0) for s in range(3)]
    upper = [spearmanr(row, y.upper().mean(axis=0))[0] ** 2 for row in y.upper()]
    lower = [spearmanr(row, mean)[0] ** 2 for row, mean in zip(y.upper(), others, strict=True)]
    np.testing.assert_allclose(rdm_ceiling(y, pred), upper)
    np.testing.assert_allclose(rdm_ceiling_lower(y, pred), lower)


def test_a_subject_alone_has_no_lower_ceiling(rng):
    y = measured(rng, n_subjects=1)
    assert np.isnan(rdm_ceiling_lower(y, predicted(rng, y))).all()
    np.testing.assert_allclose(rdm_ceiling(y, predicted(rng, y)), 1)


def test_percent_is_a_ratio_of_means_in_each_set(rng):
    parts = measured(rng, 9, "a"), measured(rng, 6, "b")
    y = concat(parts)
    pred = predicted(rng, y)
    for columns in target_columns(y).values():
        expected = np.mean(
            [
                100 * rdm_r2(part, own)[columns].mean() / rdm_ceiling(part, own)[columns].mean()
                for part, own in ((part, pred.take(part.ids)) for part in parts)
            ]
        )
        np.testing.assert_allclose(rdm_percent(y, pred)[columns].mean(), expected)


def test_centred_scores_have_no_main_effects(rng):
    y, pred = measured(rng), predicted(rng, measured(rng))
    left = [part.with_upper(remove_main_effects(part.upper(), len(part))) for part in (y, pred)]
    np.testing.assert_allclose(rdm_rho_centred(y, pred), loop(*left))
    effects = rng.standard_normal(len(y))
    moved = RDMs(pred.values + 5 * (effects[:, None] + effects), y.ids)
    np.testing.assert_allclose(rdm_r2_centred(y, moved), rdm_r2_centred(y, pred))
    only = RDMs(effects[:, None] + effects, y.ids)
    np.testing.assert_array_equal(rdm_r2_centred(y, only), 0)


def test_a_constant_prediction_scores_zero_and_too_few_pairs_have_no_score(rng):
    y = measured(rng)
    np.testing.assert_array_equal(rdm_r2(y, RDMs(np.ones((1, 9, 9)), y.ids)), 0)
    assert np.isnan(rdm_rho(y[:2], predicted(rng, y[:2]))).all()
    both = concat([y, measured(rng, 2, "b")])
    pred = predicted(rng, both)
    np.testing.assert_allclose(rdm_rho(both, pred), rdm_rho(y, pred.take(y.ids)))  # the other set is left out


def test_a_bootstrap_of_stimuli_leaves_pairs_of_one_with_itself_out(rng):
    y, pred = measured(rng), predicted(rng, measured(rng))
    rows = rng.integers(9, size=9)
    np.testing.assert_allclose(rdm_rho(y[rows], pred[rows]), loop(y[rows], pred[rows]))


def test_folds_are_scored_apart_and_averaged(rng):
    y = concat([measured(rng, 9, "a"), measured(rng, 8, "b")])
    pred = predicted(rng, y)
    blocks = np.arange(17) % 2
    units = scoring_units(y, pred, blocks)
    found = over_units(units, unit_rhos(units, y) ** 2)
    expected = np.mean([rdm_r2(y[blocks == fold], pred[blocks == fold]) for fold in (0, 1)], axis=0)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, pred: (y, y), "A prediction is one RDM, but got 6"),
        (lambda y, pred: (y, pred.values), "got ndarray. Wrap matrices in RDMs"),
        (lambda y, pred: (y, pred[:5]), "4 of 9 stimuli are not in these RDMs"),
    ],
)
def test_bad_input_is_named(rng, change, message):
    y = measured(rng)
    with pytest.raises(RequestError, match=message):
        rdm_rho(*change(y, predicted(rng, y)))


@pytest.mark.parametrize("blocks", [np.zeros(4, dtype=int), np.zeros(9), "aaaaaaaaa"])
def test_blocks_that_do_not_fit_are_refused(rng, blocks):
    y = measured(rng)
    with pytest.raises(RequestError, match="one integer for each of 9"):
        scoring_units(y, predicted(rng, y), blocks)


# Traps, on the real data


@pytest.fixture(scope="module")
def challenge(real_data):
    """The fMRI of both image sets; MATLAB v7.3 comes through HDF5 with its axes reversed."""
    h5py = pytest.importorskip("h5py")
    sets = {}
    for n in (92, 118):
        with h5py.File(real_data / f"algonauts2019/Training_Data/{n}_Image_Set/target_fmri.mat") as file:
            arrays = {target: np.array(file[f"{target}_RDMs"]).T for target in ("EVC", "IT")}
        ids = [f"{n}/{i:03}" for i in range(n)]
        sets[str(n)] = stack([RDMs(v, ids, targets=[t] * 15) for t, v in arrays.items()])
    return sets


@pytest.mark.data
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_ceilings_follow_from_the_data(challenge, name):
    y = challenge[name]
    ceilings = rdm_ceiling(y, y.mean())
    for target, columns in target_columns(y).items():
        assert round(ceilings[columns].mean(), 4) == OFFICIAL[name][target]


@pytest.mark.data
@pytest.mark.parametrize("name", OFFICIAL)
def test_means_of_ranks_do_not_give_the_official_ceilings(challenge, name):
    for target in ("EVC", "IT"):
        y = challenge[name].select(targets=[target])
        assert round(rdm_r2(y, y.rank().mean()).mean(), 4) != OFFICIAL[name][target]


@pytest.mark.data
def test_pooled_sets_would_reward_a_constant_per_set_above_the_ceiling(challenge):
    """Within sets it scores nothing."""
    y = concat(list(challenge.values())).select(targets=["EVC"])
    level = {name: part.select(targets=["EVC"]).upper().mean() for name, part in challenge.items()}
    first, second = np.triu_indices(len(y), 1)
    within = y.sets[first] == y.sets[second]
    constant = np.array([level[name] for name in y.sets[first][within]])
    pooled = np.mean([spearmanr(row, constant)[0] ** 2 for row in y.upper()[:, within]])
    assert pooled > max(OFFICIAL["92"]["EVC"], OFFICIAL["118"]["EVC"])
    matrix = np.vectorize(level.get)(y.sets)[:, None] * np.ones(len(y))
    np.testing.assert_array_equal(rdm_r2(y, RDMs((matrix + matrix.T) / 2, y.ids)), 0)
