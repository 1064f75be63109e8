"""A summary puts score, ceiling and their ratio side by side, of the rows that were scored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featpipe.ceilings import variance_components
from featpipe.cli._scores import show_summary
from featpipe.datasets import load_dataset
from featpipe.encoding import RidgeEncoder
from featpipe.metrics import pearson_r, r2
from featpipe.model_selection import evaluate, response_inference
from featpipe.runs._summary import infer, summarise, target_table


@pytest.fixture
def dataset():
    """Twelve repeated stimuli of eight targets, the last four shown more often; no ceiling is given."""
    made = load_dataset("synthetic:n=40,targets=8,size=8")
    rng = np.random.default_rng(4)
    repeats = made.responses[:, :, None] + rng.standard_normal((40, 8, 6))
    repeats[:30, :, 2:] = np.nan
    bare = made.targets.drop(columns="noise_ceiling")
    return replace(made, repeats=repeats, responses=np.nanmean(repeats, axis=2), targets=bare)


@pytest.fixture
def predictions(dataset):
    return dataset.responses + np.random.default_rng(5).standard_normal(dataset.responses.shape)


@pytest.fixture
def folds():
    return [(np.arange(20, 40), np.arange(20)), (np.arange(20), np.arange(20, 40))]


def scores_of(dataset, predictions, folds):
    y = dataset.responses
    return {
        name: np.stack([metric(y[test], predictions[test]) for _, test in folds])
        for name, metric in (("pearson_r", pearson_r), ("r2", r2))
    }


def test_ceiling_of_repeats_is_recorded_by_name(dataset, predictions, folds):
    summary = summarise(scores_of(dataset, predictions, folds), dataset)
    expected = variance_components(dataset.repeats).noise_ceiling
    assert summary["noise_ceiling_from"] == "variance components of the repeats"
    assert summary["noise_ceiling"]["overall"] == pytest.approx(expected.mean())
    assert summary["noise_ceiling_r"]["overall"] == pytest.approx(np.sqrt(expected).mean())


def test_shares_of_the_ceiling_are_ratios_of_means(dataset, predictions, folds):
    summary = summarise(scores_of(dataset, predictions, folds), dataset)
    for share, score, ceiling in (
        (summary["noise_normalized_r"], "pearson_r", "noise_ceiling_r"),
        (summary["scores"]["noise_normalized_r2"], "r2", "noise_ceiling"),
    ):
        expected = summary["scores"][score]["groups"]["lh.hV4"] / summary[ceiling]["groups"]["lh.hV4"]
        assert share["groups"]["lh.hV4"] == pytest.approx(expected)


def test_ceiling_is_that_of_the_rows_that_were_scored(dataset, predictions):
    rows = np.arange(30, 40)
    scores = scores_of(dataset, predictions, [(None, rows)])
    summary = summarise(scores, dataset, rows=rows)
    expected = variance_components(dataset.repeats[rows]).noise_ceiling
    assert summary["noise_ceiling"]["overall"] == pytest.approx(expected.mean())
    np.testing.assert_allclose(target_table(scores, dataset, rows=rows)["noise_ceiling"], expected)


def test_a_given_ceiling_comes_first(dataset, predictions, folds):
    given = replace(dataset, targets=dataset.targets.assign(noise_ceiling=0.25))
    summary = summarise(scores_of(given, predictions, folds), given, rows=np.arange(10))
    assert summary["noise_ceiling_from"] == "targets"
    assert summary["noise_ceiling_r"]["overall"] == pytest.approx(0.5)


def test_without_a_ceiling_nothing_is_said(dataset, predictions, folds):
    bare = replace(dataset, repeats=None)
    summary = summarise(scores_of(bare, predictions, folds), bare)
    assert summary.keys() == {"scores"}
    assert "noise_ceiling" not in target_table(scores_of(bare, predictions, folds), bare)


def test_uncertainty_is_part_of_it_and_can_be_written(dataset, predictions, folds):
    scores = scores_of(dataset, predictions, folds)
    inference = response_inference(
        dataset.responses, predictions, folds, masks=dataset.masks, n_bootstrap=50, n_permutations=99
    )
    summary = json.loads(json.dumps(summarise(scores, dataset, inference=inference)))
    assert summary["inference"]["interval"]["groups"].keys() == dataset.masks.keys()
    low, high = summary["inference"]["interval"]["overall"]
    assert low < summary["scores"]["pearson_r"]["overall"] < high
    table = target_table(scores, dataset, inference=inference)
    assert list(table) == [
        *("target", "group", "pearson_r", "r2", "noise_ceiling", "r_low", "r_high", "p", "q"),
    ]
    assert table["pearson_r"].mean() == pytest.approx(summary["scores"]["pearson_r"]["overall"])


def test_stimuli_that_no_fold_divides_are_drawn_together(dataset, folds, rng):
    X = rng.standard_normal((40, 3))
    found = evaluate(RidgeEncoder(alpha=1.0), X, dataset.responses, cv=folds, return_predictions=True)
    apart = infer(dataset, found, folds)
    expected = response_inference(dataset.responses, found.predictions, folds, masks=dataset.masks)
    np.testing.assert_array_equal(apart.table(), expected.table())
    groups = np.repeat(np.arange(10), 4)
    grouped = infer(replace(dataset, groups=groups.astype(str)), found, folds)
    expected = response_inference(
        dataset.responses, found.predictions, folds, masks=dataset.masks, groups=groups
    )
    np.testing.assert_array_equal(grouped.table(), expected.table())
    assert not np.array_equal(grouped.p.targets, apart.p.targets)


def test_nothing_is_inferred_from_what_was_not_kept(dataset, folds, rng):
    X = rng.standard_normal((40, 3))
    without = evaluate(RidgeEncoder(alpha=1.0), X, dataset.responses, cv=folds)
    assert infer(dataset, without, folds) is None
    kept = evaluate(RidgeEncoder(alpha=1.0), X, dataset.responses, cv=folds, return_predictions=True)
    assert infer(dataset, kept, [(np.arange(1, 40), np.arange(1))]) is None


def test_terminal_shows_each_score_beside_its_ceiling(dataset, predictions, folds, capsys):
    scores = scores_of(dataset, predictions, folds)
    inference = response_inference(dataset.responses, predictions, folds, n_bootstrap=50, n_permutations=99)
    summary = summarise(scores, dataset, inference=inference)
    show_summary(summary | {"n_stimuli": 40, "n_targets": 8, "n_folds": 2})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:] == [
        "pearson_r",
        *("ceiling", "of", "ceiling"),
        "r2",
        *("ceiling", "of", "ceiling"),
    ]
    overall = next(line for line in lines if line.startswith("overall")).split()[1:]
    tables = (
        *(summary["scores"]["pearson_r"], summary["noise_ceiling_r"], summary["noise_normalized_r"]),
        *(summary["scores"]["r2"], summary["noise_ceiling"], summary["scores"]["noise_normalized_r2"]),
    )
    assert overall == [f"{table['overall']:.4f}" for table in tables]
    assert any("of 8 targets above chance at a false discovery rate of 0.05 (BH)" in line for line in lines)
    assert "ceiling: estimated, variance components of the repeats" in lines
