"""Official scores are ratios of means over whole sets, beside the published ceilings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_1samp

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, concat, stack
from featpipe.rsa._algonauts2019 import OFFICIAL_CEILINGS, algonauts2019_scores, official_ceiling


def measured(rng, n_stimuli, name="a", targets=("EVC", "IT"), n_subjects=4):
    n_pairs = n_stimuli * (n_stimuli - 1) // 2
    ids = [f"{name}/{i}" for i in range(n_stimuli)]
    parts = [
        RDMs.from_upper(rng.random((n_subjects, n_pairs)), ids, targets=[t] * n_subjects) for t in targets
    ]
    return stack(parts)


def predicted(rng, y, targets=("EVC", "IT")):
    return {target: RDMs.from_upper(rng.random(y.n_pairs), y.ids) for target in targets}


def test_scores_are_the_formulas_of_the_challenge(rng):
    y = measured(rng, 10)
    preds = predicted(rng, y)
    found = algonauts2019_scores(y, preds, n=20)["sets"]["a"]
    r2, ceiling = {}, {}
    for target, pred in preds.items():
        true = y.select(targets=[target]).upper()
        rho2 = [spearmanr(row, pred.upper()[0])[0] ** 2 for row in true]
        r2[target] = np.mean(rho2)
        ceiling[target] = np.mean([spearmanr(row, true.mean(axis=0))[0] ** 2 for row in true])
        scores = found["targets"][target]
        np.testing.assert_allclose([scores["r2"], scores["ceiling"]], [r2[target], ceiling[target]])
        np.testing.assert_allclose(scores["percent"], 100 * r2[target] / ceiling[target])
        np.testing.assert_allclose(scores["t_test_p"], ttest_1samp(rho2, 0).pvalue)
        assert scores["official_percent"] is None  # no set of the challenge has 10 stimuli
    expected = 100 * np.mean(list(r2.values())) / np.mean(list(ceiling.values()))
    np.testing.assert_allclose(found["tracks"]["fmri"]["percent"], expected)
    assert found["tracks"]["meg"]["percent"] is None


def test_a_whole_set_is_held_against_the_published_ceilings(rng):
    y = measured(rng, 78)
    found = algonauts2019_scores(y, predicted(rng, y), n=5)["sets"]["a"]
    evc, it = found["targets"]["EVC"], found["targets"]["IT"]
    np.testing.assert_allclose(evc["official_percent"], 100 * evc["r2"] / 0.0640)
    expected = 100 * (evc["r2"] + it["r2"]) / (0.0640 + 0.0647)
    np.testing.assert_allclose(found["tracks"]["fmri"]["official_percent"], expected)


def test_meg_is_averaged_over_time_before_the_square(rng):
    y = measured(rng, 78, targets=["MEG-early"], n_subjects=6)
    timed = RDMs(y.values, y.ids, targets=y.targets, subjects=list("aaabbb"), times=[0, 1, 2] * 2)
    pred = predicted(rng, y, ["MEG-early"])
    rho = np.array([spearmanr(row, pred["MEG-early"].upper()[0])[0] for row in y.upper()])
    found = algonauts2019_scores(timed, pred, n=5)["sets"]["a"]["targets"]["MEG-early"]
    np.testing.assert_allclose(found["r2"], (rho.reshape(2, 3).mean(axis=1) ** 2).mean())
    assert found["official_ceiling"] == 0.3562
    averaged = algonauts2019_scores(y, pred, n=5)["sets"]["a"]["targets"]["MEG-early"]
    assert averaged["official_ceiling"] is None  # the constants are those of single times


def test_sets_have_scores_of_their_own(rng):
    y = concat([measured(rng, 10, "a"), measured(rng, 8, "b")])
    found = algonauts2019_scores(y, predicted(rng, y, ["IT"]), n=5)
    assert {name: scores["n_stimuli"] for name, scores in found["sets"].items()} == {"a": 10, "b": 8}
    json.dumps(found, allow_nan=False)


def test_the_mean_of_all_subjects_reaches_the_ceiling(rng):
    y = measured(rng, 10, targets=["IT"])
    found = algonauts2019_scores(y, {"IT": y.mean()}, n=5)["sets"]["a"]["targets"]["IT"]
    np.testing.assert_allclose(found["percent"], 100)


def test_published_ceilings_are_known_for_three_sets():
    assert sorted(OFFICIAL_CEILINGS) == [78, 92, 118]
    for ceilings in OFFICIAL_CEILINGS.values():
        assert list(ceilings) == ["EVC", "IT", "MEG-early", "MEG-late"]
    assert official_ceiling("IT", 92) == 0.3075
    assert official_ceiling("IT", 91) is None


@pytest.mark.parametrize(
    ("preds", "message"),
    [({}, "no prediction to score"), ({"V4": None}, "prediction for 'V4', but measured are EVC, IT")],
)
def test_bad_input_is_named(rng, preds, message):
    with pytest.raises(RequestError, match=message):
        algonauts2019_scores(measured(rng, 5), preds)
