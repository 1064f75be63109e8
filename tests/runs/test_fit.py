"""What a run folder holds, and that its numbers are what an explicit loop over folds gives."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from featpipe.datasets import load_dataset
from featpipe.errors import RecipeError, RequestError
from featpipe.metrics import pearson_r
from featpipe.runs import RunFolder, fit
from featpipe.testing import make_algonauts2023

FILES = {
    "run.json",
    "summary.json",
    "scores.csv",
    "training.csv",
    "targets.csv",
    "held_out.npz",
    "pipeline.skops",
}


def _pipeline(request, dataset):
    where = {"features__cache": request.cache, "features__stimuli": dataset.stimuli.digest}
    return clone(request.recipe.pipeline).set_params(**where)


def _by_hand(request, dataset, folds, metric=pearson_r):
    """Fit and score fold by fold with scikit-learn's pieces alone: (n_folds, n_targets)."""
    scores = []
    for train, test in folds:
        fitted = _pipeline(request, dataset).fit(dataset.ids[train], dataset.responses[train])
        scores.append(metric(dataset.responses[test], fitted.predict(dataset.ids[test])))
    return np.array(scores)


@pytest.fixture
def data(root, tmp_path):
    """A copy of the plain dataset, to be changed."""
    shutil.copytree(root / "plain", tmp_path / "data")
    return tmp_path / "data"


def test_run_folder_holds_its_files(plain):
    assert {path.name for path in plain.path.iterdir()} == FILES
    assert len(pd.read_csv(plain.path / "training.csv")) == 48


def test_scores_are_those_of_an_explicit_loop(plain, root, make_request):
    dataset = load_dataset(f"table:{root / 'plain'}")
    folds = KFold(5, shuffle=True, random_state=0).split(dataset.ids)
    scores = _by_hand(make_request(root / "plain", "unused"), dataset, folds)
    summary = plain.read_json("summary.json")["scores"]["pearson_r"]
    assert summary["overall"] == pytest.approx(scores.mean(axis=0).mean(), abs=1e-6)
    for name, mask in dataset.masks.items():
        assert summary["groups"][name] == pytest.approx(scores[:, mask].mean(), abs=1e-6)
    assert set(summary["groups"]) == {"lh.V1v", "rh.V1v", "lh.hV4", "rh.hV4"}


def test_tidy_table_and_summary_agree(plain):
    table = pd.read_csv(plain.path / "scores.csv")
    assert list(table) == ["target", "group", "fold", "metric", "value"]
    assert len(table) == 8 * 5 * 2
    summary = plain.read_json("summary.json")
    for metric in ("pearson_r", "r2"):
        mean = table[table.metric == metric].value.mean()
        assert mean == pytest.approx(summary["scores"][metric]["overall"])


def test_normalised_score_is_a_ratio_of_means(plain):
    summary = plain.read_json("summary.json")
    r2, ceiling = summary["scores"]["r2"], summary["noise_ceiling"]
    assert ceiling["overall"] == pytest.approx(0.8)
    normalised = summary["scores"]["noise_normalized_r2"]
    assert normalised["overall"] == pytest.approx(r2["overall"] / ceiling["overall"])
    assert normalised["groups"]["lh.hV4"] == pytest.approx(r2["groups"]["lh.hV4"] / 0.8)


def test_signal_is_found(plain):
    assert plain.read_json("summary.json")["scores"]["pearson_r"]["overall"] > 0.3


def test_equal_requests_give_equal_bytes(plain, root, make_request, tmp_path):
    again = fit(make_request(root / "plain", tmp_path / "again"))
    for name in ("summary.json", "scores.csv", "training.csv"):
        assert (again.path / name).read_bytes() == (plain.path / name).read_bytes()
    apart = fit(make_request(root / "plain", tmp_path / "apart", n_jobs=2)).read_json("summary.json")[
        "scores"
    ]
    assert apart["r2"]["overall"] == pytest.approx(plain.read_json("summary.json")["scores"]["r2"]["overall"])


def test_record_is_enough_to_do_it_again(plain, root):
    record = plain.read_json("run.json")
    assert record["recipe"]["name"] == "baseline_ridge"
    assert len(record["recipe"]["sha256"]) == 64
    assert record["data"]["given"] == f"table:{root / 'plain'}"
    assert (record["cv"], len(record["folds"]), len(record["targets"])) == ("5", 5, 8)
    assert sorted(i for fold in record["folds"] for i in fold) == sorted(
        pd.read_csv(plain.path / "training.csv")["id"]
    )
    feature = record["features"][0]
    assert (feature["spec"]["layer"], feature["spec"]["reduction"]) == ("stem", "grid:3")
    assert feature["model_asked"] == f"python:{root / 'tiny.py'}:build"
    assert record["cache"] == str(root / "cache")
    assert record["versions"].keys() >= {"featpipe", "numpy", "scikit-learn", "python"}
    assert record["threads"]


def test_test_split_is_the_default_and_cv_overrides_it(split, root, make_request, tmp_path):
    dataset = load_dataset(f"table:{root / 'split'}")
    rows = [np.flatnonzero(dataset.splits == name) for name in ("train", "test")]
    scores = _by_hand(make_request(root / "split", "unused"), dataset, [rows])
    summary = split.read_json("summary.json")
    assert (summary["cv"], summary["n_folds"]) == ("splits", 1)
    assert summary["scores"]["pearson_r"]["overall"] == pytest.approx(scores.mean(), abs=1e-6)
    assert set(pd.read_csv(split.path / "training.csv")["id"]) == set(dataset.ids[rows[0]])
    folds = fit(make_request(root / "split", tmp_path / "run", cv=4)).read_json("summary.json")
    assert (folds["cv"], folds["n_folds"]) == ("4", 4)


def _tested(run):
    return [set(fold) for fold in run.read_json("run.json")["folds"]]


def test_groups_stay_together(data, make_request, tmp_path):
    groups = {f"image_{number}": number // 8 for number in range(48)}
    pd.DataFrame({"id": groups.keys(), "group": groups.values()}).to_csv(data / "splits.csv", index=False)
    for cv, n_folds in ((None, 5), (3, 3), ("group", 6)):
        folds = _tested(fit(make_request(data, tmp_path / f"run-{cv}", cv=cv)))
        assert len(folds) == n_folds
        assert sum(len({groups[i] for i in fold}) for fold in folds) == 6


def test_responses_to_some_images_are_fitted_on_features_of_all(data, make_request, tmp_path):
    kept = np.arange(0, 48, 2)
    np.save(data / "responses.npy", np.load(data / "responses.npy")[kept])
    (data / "ids.csv").write_text("\n".join(["id", *(f"image_{number}" for number in kept)]))
    (data / "dataset.toml").write_text(
        'stimuli = "stimuli"\nresponses = "responses.npy"\nids = "ids.csv"\ntargets = "targets.csv"'
    )
    run = fit(make_request(data, tmp_path / "run"))
    assert run.read_json("summary.json")["n_stimuli"] == 24


def test_few_groups_make_few_inner_folds(data, make_request, tmp_path):
    """Four sessions, one left out: the search inside can leave out one of three."""
    sessions = [f"session_{number % 4}" for number in range(48)]
    ids = [f"image_{number}" for number in range(48)]
    pd.DataFrame({"id": ids, "group": sessions}).to_csv(data / "splits.csv", index=False)
    search = {"features__layers": [["stem"], ["head"]]}
    with pytest.raises(RequestError, match="5 folds need at least 5 groups, got 2"):
        fit(make_request(data, tmp_path / "five", cv="group", search=search, params={"ridge__cv": 5}))
    run = fit(make_request(data, tmp_path / "two", cv="group", search=search, params={"ridge__cv": 2}))
    assert run.read_json("summary.json")["n_folds"] == 4


def test_one_image_under_two_ids_stays_together(data, make_request, extract_more, tmp_path):
    for number in range(24):  # every image of the first half comes again in the second
        shutil.copy(data / "stimuli" / f"image_{number}.png", data / "stimuli" / f"image_{number + 24}.png")
    extract_more(f"table:{data}")
    for fold in _tested(fit(make_request(data, tmp_path / "run"))):
        assert {f"image_{int(i[6:]) % 24}" for i in fold} | {
            f"image_{int(i[6:]) % 24 + 24}" for i in fold
        } == fold


@pytest.mark.parametrize("column", ["split", "group"])
def test_folds_that_would_divide_an_image(data, make_request, extract_more, tmp_path, column):
    shutil.copy(data / "stimuli" / "image_0.png", data / "stimuli" / "image_47.png")
    extract_more(f"table:{data}")
    labels = [("train", "test")[number >= 36] for number in range(48)]
    pd.DataFrame({"id": [f"image_{n}" for n in range(48)], column: labels}).to_csv(
        data / "splits.csv", index=False
    )
    cv, message = (
        (None, "would score 1 images .*'image_47'") if column == "split" else ("group", "at least two")
    )
    with pytest.raises(RequestError, match=message):
        fit(make_request(data, tmp_path / "run", cv=cv))
    assert not (tmp_path / "run").exists()


def test_equal_images_alone_are_no_groups_to_leave_out(data, make_request, extract_more, tmp_path):
    shutil.copy(data / "stimuli" / "image_0.png", data / "stimuli" / "image_47.png")
    extract_more(f"table:{data}")
    with pytest.raises(RequestError, match="needs at least two of them, got 0"):
        fit(make_request(data, tmp_path / "run", cv="group"))


def test_weights_of_stimuli_count(data, plain, make_request, tmp_path):
    ids = [f"image_{number}" for number in range(48)]
    counts = [1 + 9 * (number % 2) for number in range(48)]
    table = pd.DataFrame({"id": ids, "n_repeats": counts})
    table.to_csv(data / "splits.csv", index=False)
    weighted = fit(make_request(data, tmp_path / "weighted"))
    table.assign(n_repeats=3).to_csv(data / "splits.csv", index=False)
    even = fit(make_request(data, tmp_path / "even"))
    score = [run.read_json("summary.json")["scores"]["r2"]["overall"] for run in (plain, even, weighted)]
    assert score[2] != pytest.approx(score[0], abs=1e-4)
    assert even.read_json("summary.json")["n_folds"] == 5


def test_layer_is_chosen_inside_each_training_set(root, make_request, tmp_path):
    search = {"features__layers": [["stem"], ["head"]]}
    request = make_request(root / "plain", tmp_path / "run", search=search, cv=3)
    run = fit(request)
    dataset = load_dataset(f"table:{root / 'plain'}")

    def mean_r(estimator, X, y):
        return pearson_r(y, estimator.predict(X)).mean()

    scores, taken = [], []
    for train, test in KFold(3, shuffle=True, random_state=0).split(dataset.ids):
        inner = KFold(5, shuffle=True, random_state=0)
        chosen = GridSearchCV(_pipeline(request, dataset), search, scoring=mean_r, cv=inner).fit(
            dataset.ids[train], dataset.responses[train]
        )
        scores.append(pearson_r(dataset.responses[test], chosen.predict(dataset.ids[test])))
        taken.append(chosen.best_params_)
    summary = run.read_json("summary.json")
    assert summary["scores"]["pearson_r"]["overall"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert summary["chosen"] == {"folds": taken, "saved": {"features__layers": run.load_pipeline()[0].layers}}


def test_noise_scores_nothing(root, data, make_request, tmp_path):
    """Whatever is chosen inside, responses without signal have a held-out correlation of 0."""
    n_targets = 400
    noise = np.random.default_rng(8).standard_normal((48, n_targets)).astype(np.float32)
    np.save(data / "responses.npy", noise)
    (data / "targets.csv").unlink()
    search = {"features__layers": [["stem"], ["head"], ["stem", "head"]]}
    run = fit(make_request(data, tmp_path / "run", search=search, cv=4))
    table = pd.read_csv(run.path / "scores.csv")
    per_target = table[table.metric == "pearson_r"].groupby("target").value.mean()
    assert abs(per_target.mean()) < 4 * per_target.std() / np.sqrt(n_targets) + 0.02


def test_repeats_are_averaged(data, plain, make_request, tmp_path):
    responses = np.load(data / "responses.npy")
    np.save(
        data / "responses.npy",
        np.stack([responses - 1, responses + 1, np.full_like(responses, np.nan)], axis=2),
    )
    again = fit(make_request(data, tmp_path / "run")).read_json("summary.json")["scores"]
    before = plain.read_json("summary.json")["scores"]
    assert again["pearson_r"]["overall"] == pytest.approx(before["pearson_r"]["overall"], abs=1e-4)


def test_missing_trials_are_left_out(data, make_request, tmp_path):
    responses = np.load(data / "responses.npy")
    responses[::7, 0] = np.nan
    np.save(data / "responses.npy", responses)
    run = fit(make_request(data, tmp_path / "run"))
    table = pd.read_csv(run.path / "scores.csv")
    assert np.isfinite(table.value).all()


def test_normalised_score_is_over_targets_whose_ceiling_is_known(data, make_request, tmp_path):
    targets = pd.read_csv(data / "targets.csv")
    targets["noise_ceiling"] = [0.8, 0.0, np.nan, np.nan, 0.2, 0.9, 0.4, 0.5]
    targets.to_csv(data / "targets.csv", index=False)
    run = fit(make_request(data, tmp_path / "run"))
    table = pd.read_csv(run.path / "scores.csv").query("metric == 'r2'")
    r2 = table.groupby("target", sort=False).value.mean().to_numpy()
    ceiling, known = targets["noise_ceiling"].to_numpy(), targets["noise_ceiling"].notna().to_numpy()
    summary = run.read_json("summary.json")
    normalised = summary["scores"]["noise_normalized_r2"]
    assert normalised["overall"] == pytest.approx(r2[known].mean() / ceiling[known].mean(), abs=1e-5)
    assert normalised["groups"]["rh.V1v"] is None  # no target of it has a ceiling
    assert summary["noise_ceiling_r"]["overall"] == pytest.approx(np.sqrt(ceiling[known]).mean())


def test_r_of_pooled_predictions_has_its_own_name(plain, root, make_request):
    dataset, request = load_dataset(f"table:{root / 'plain'}"), make_request(root / "plain", "unused")
    predicted = np.empty_like(dataset.responses)
    for train, test in KFold(5, shuffle=True, random_state=0).split(dataset.ids):
        fitted = _pipeline(request, dataset).fit(dataset.ids[train], dataset.responses[train])
        predicted[test] = fitted.predict(dataset.ids[test])
    summary = plain.read_json("summary.json")
    pooled = pearson_r(dataset.responses, predicted)
    assert summary["pooled_r"]["overall"] == pytest.approx(pooled.mean(), abs=1e-6)
    for name, mask in dataset.masks.items():
        assert summary["pooled_r"]["groups"][name] == pytest.approx(pooled[mask].mean(), abs=1e-6)
    assert set(summary["scores"]) == {"pearson_r", "r2", "noise_normalized_r2"}


def test_order_of_rows_is_of_no_account(data, plain, make_request, tmp_path):
    """Responses are joined to images by id: shuffled rows score as high."""
    order = np.random.default_rng(2).permutation(48)
    np.save(data / "responses.npy", np.load(data / "responses.npy")[order])
    pd.DataFrame({"picture": [f"image_{row}" for row in order]}).to_csv(data / "ids.csv", index=False)
    (data / "dataset.toml").write_text(
        'stimuli = "stimuli"\nids = "ids.csv:picture"\nresponses = "responses.npy"\ntargets = "targets.csv"\n'
    )
    again = fit(make_request(data, tmp_path / "run")).read_json("summary.json")["scores"]["pearson_r"][
        "overall"
    ]
    before = plain.read_json("summary.json")["scores"]["pearson_r"]["overall"]
    assert again == pytest.approx(before, abs=0.1)  # other folds


def test_target_keeps_one_group(root, plain, make_request, tmp_path):
    run = fit(make_request(root / "plain", tmp_path / "run", target="rh.hV4"))
    before = plain.read_json("summary.json")["scores"]["pearson_r"]["groups"]["rh.hV4"]
    assert run.read_json("summary.json")["scores"]["pearson_r"]["overall"] == pytest.approx(before, abs=1e-6)
    assert len(run.target_names()) == 2


def test_algonauts2023_is_scored_per_roi_and_hemisphere(make_request, extract_more, tmp_path):
    make_algonauts2023(tmp_path / "alg", n_train=24, n_test=6, ceiling="fraction", test_responses=True)
    data = f"algonauts2023:{tmp_path / 'alg'}"
    extract_more(data, "--subject", "1")
    summary = fit(make_request(data, tmp_path / "run", subject="1", cv=3)).read_json("summary.json")
    groups = summary["scores"]["pearson_r"]["groups"]
    assert {"lh.V1v", "rh.V1v", "lh.early", "rh.lateral"} <= groups.keys()
    assert summary["n_targets"] == 136
    assert summary["noise_ceiling"]["overall"] is not None


def test_extracting_first_gives_the_same_scores(plain, root, make_request, tmp_path):
    request = make_request(
        root / "plain",
        tmp_path / "run",
        params={"features__reduce": "grid:3"},
        extract=True,
        trust=True,
    )
    again = fit(type(request)(**{**vars(request), "cache": str(tmp_path / "cache")}))
    assert again.read_json("run.json")["extraction"][0]["computed"] == 48
    assert (again.path / "summary.json").read_bytes() == (plain.path / "summary.json").read_bytes()


def test_imported_features_are_as_good_as_any(data, root, make_request, tmp_path):
    from featpipe.imported import import_array
    from featpipe.store import FeatureCache

    pd.DataFrame({"id": [f"image_{row}" for row in range(48)]}).to_csv(tmp_path / "ids.csv", index=False)
    responses = np.load(data / "responses.npy")
    np.save(tmp_path / "oracle.npy", responses)
    import_array(
        tmp_path / "oracle.npy", FeatureCache(tmp_path / "cache"), name="oracle", ids=tmp_path / "ids.csv"
    )
    request = make_request(data, tmp_path / "run", params={"features__model": None, "features__layers": None})
    run = fit(type(request)(**{**vars(request), "cache": str(tmp_path / "cache")}))
    assert run.read_json("summary.json")["scores"]["pearson_r"]["overall"] > 0.95
    assert run.read_json("run.json")["features"][0]["spec"]["model"] == "imported:oracle"


def test_a_run_is_not_overwritten_unasked(plain, root, make_request):
    before = (plain.path / "run.json").read_bytes()
    with pytest.raises(RecipeError, match=r"holds a run already.*--overwrite"):
        fit(make_request(root / "plain", plain.path))
    assert (plain.path / "run.json").read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"nothing can be written in .*file\. Name another --out"):
        RunFolder.create(tmp_path / "file" / "run")
    monkeypatch.setattr("featpipe.runs._folder.os.access", lambda place, mode: place != tmp_path)
    with pytest.raises(RecipeError, match="nothing can be written in"):
        RunFolder.create(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_run_that_did_not_finish_is_no_run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RecipeError, match=r"no summary\.json"):
        RunFolder.open(tmp_path)
