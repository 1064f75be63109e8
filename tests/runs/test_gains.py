"""Runs compared with a control, and what tuning costs at classification."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from featpipe.errors import RequestError
from featpipe.runs import compare_runs, fit, gains_table, kind_of
from featpipe.runs._retention import classes_of, classifier
from featpipe.stimuli import StimulusSet
from featpipe.testing import make_images


@pytest.fixture(scope="module")
def stiff(root, make_request):
    """The run `plain` with one large penalty."""
    return fit(make_request(root / "plain", root / "run-stiff", params={"ridge__alphas": [1e6]}))


def test_a_run_gains_what_its_scores_say(plain, stiff):
    rows = {row.group: row.gain for row in compare_runs([str(plain.path), str(stiff.path)])}
    before, after = (pd.read_csv(run.path / "targets.csv")["pearson_r"].to_numpy() for run in (plain, stiff))
    np.testing.assert_allclose(rows["all targets"].gain, (after - before).mean(), atol=1e-6)
    groups = pd.read_csv(plain.path / "targets.csv")["group"]
    for name in groups.unique():
        own = (groups == name).to_numpy()
        np.testing.assert_allclose(rows[name].gain, (after - before)[own].mean(), atol=1e-6)
    low, high = rows["all targets"].over_stimuli
    assert low < rows["all targets"].gain < high


def test_a_run_gains_nothing_over_itself(plain):
    table = gains_table(compare_runs([str(plain.path), str(plain.path)]))
    assert not table.drop(columns=["run", "group", "n_targets", "control", "r"]).to_numpy().any()
    assert table["group"].iloc[-1] == "all targets"


def test_without_predictions_there_is_no_interval_over_stimuli(plain, tmp_path):
    other = shutil.copytree(plain.path, tmp_path / "other")
    (other / "held_out.npz").unlink()
    assert all(row.gain.over_stimuli is None for row in compare_runs([str(plain.path), str(other)]))
    (other / "held_out.npz").write_bytes(b"torn")
    with pytest.raises(RequestError, match=r"held_out.npz cannot be read"):
        compare_runs([str(plain.path), str(other)])


def test_other_targets_stimuli_or_folds_are_no_comparison(plain, split, root, make_request):
    with pytest.raises(RequestError, match="differ in their stimuli"):
        compare_runs([str(plain.path), str(split.path)])
    folds = fit(make_request(root / "plain", root / "run-folds", cv=3))
    with pytest.raises(RequestError, match="differ in their folds"):
        compare_runs([str(plain.path), str(folds.path)])


def test_other_responses_to_the_same_stimuli_are_no_comparison(plain, tmp_path):
    other = shutil.copytree(plain.path, tmp_path / "other")
    with np.load(other / "held_out.npz") as kept:
        arrays = dict(kept)
    np.savez(other / "held_out.npz", **{**arrays, "measured": arrays["measured"][:, ::-1]})
    with pytest.raises(RequestError, match="differ in their responses"):
        compare_runs([str(plain.path), str(other)])


def test_held_out_predictions_give_the_scores_again(plain):
    with np.load(plain.path / "held_out.npz") as kept:
        r = [
            [np.corrcoef(kept["measured"][rows, t], kept["predicted"][rows, t])[0, 1] for t in range(8)]
            for rows in (kept["fold"] == fold for fold in np.unique(kept["fold"]))
        ]
    np.testing.assert_allclose(
        np.mean(r, axis=0), pd.read_csv(plain.path / "targets.csv")["pearson_r"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        *((name, "early visual") for name in ("lh.V1v", "V2", "rh.hV4", "V4", "EVC", "subj01.lh.V3d")),
        *((name, "higher level") for name in ("lh.EBA", "FFA-1", "rh.mfs-words", "RSC")),
        *((name, "anatomical") for name in ("lh.early", "midventral", "rh.parietal")),
        *((name, None) for name in ("IT", "lh", "V10", "everything")),
    ],
)
def test_the_report_s_groups_of_regions(group, kind):
    assert kind_of(group) == kind


def test_classes_are_the_folders_of_images(tmp_path):
    for name in ("cat", "dog"):
        make_images(tmp_path / "classes" / name, [f"{n}.png" for n in range(3)], size=16, seed=len(name))
    stimuli = StimulusSet.from_source(tmp_path / "classes")
    assert classes_of(stimuli, 3).tolist() == ["cat"] * 3 + ["dog"] * 3
    with pytest.raises(RequestError, match="'cat' has 3 images, fewer than the 4 folds"):
        classes_of(stimuli, 4)
    with pytest.raises(RequestError, match="--folds is 1"):
        classes_of(stimuli, 1)
    make_images(tmp_path / "classes", ["stray.png"], size=16, seed=9)
    with pytest.raises(RequestError, match="1 images lie in none"):
        classes_of(StimulusSet.from_source(tmp_path / "classes"), 3)


def test_the_classifier_finds_classes_among_more_features_than_images(rng):
    labels = np.repeat(["a", "b", "c"], 20)
    X = rng.standard_normal((60, 200)) + rng.standard_normal((3, 200))[np.repeat(range(3), 20)]
    fitted = classifier(20, 0).fit(X[::2], labels[::2])
    assert np.mean(fitted.predict(X[1::2]) == labels[1::2]) > 0.8


def test_noise_is_not_classified(rng):
    labels = np.repeat(["a", "b"], 60)
    X = rng.standard_normal((120, 30))
    order = rng.permutation(120)
    fitted = classifier(30, 0).fit(X[order[:60]], labels[order[:60]])
    assert abs(np.mean(fitted.predict(X[order[60:]]) == labels[order[60:]]) - 0.5) < 4 * 0.5 / np.sqrt(60)
