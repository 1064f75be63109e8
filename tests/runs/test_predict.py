"""Predicting new images with a saved run, and scoring what it predicts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import FunctionTransformer

from featpipe.cli import main
from featpipe.datasets import load_dataset
from featpipe.errors import RecipeError, RequestError
from featpipe.recipes import load_recipe
from featpipe.runs import RunFolder, fit, predict, read_predictions, score, write_predictions
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache


@pytest.fixture
def new(root):
    return StimulusSet.from_source(root / "new")


@pytest.fixture
def own_cache(root, tmp_path):
    """A copy of the cache, to be changed."""
    return str(shutil.copytree(root / "cache", tmp_path / "cache"))


def _overall(summary):
    return summary["scores"]["pearson_r"]["overall"]


def test_new_images_are_extracted_once(plain, new, own_cache):
    before = len(FeatureCache(own_cache).keys())
    first = predict(plain, new, cache=own_cache, trust=True)
    assert first.shape == (5, 8)
    assert len(FeatureCache(own_cache).keys()) == before + 1  # the layer that the run reads, not the other
    np.testing.assert_array_equal(predict(plain, new, cache=own_cache), first)  # cached: no code to trust


def test_predictions_are_those_of_the_pipeline(plain, new, own_cache):
    predicted = predict(plain, new, cache=own_cache, trust=True)
    pipeline = plain.load_pipeline().set_params(features__cache=own_cache)
    np.testing.assert_allclose(pipeline.predict(np.array(new.ids)), predicted, rtol=1e-6)
    swapped = new.select(new.ids[::-1])
    np.testing.assert_allclose(predict(plain, swapped, cache=own_cache), predicted[::-1], rtol=1e-5)


def test_part_of_a_cached_set_needs_no_network(split, root):
    dataset = load_dataset(f"table:{root / 'split'}", split="test")
    stimuli = dataset.stimuli.select(dataset.ids.tolist())
    assert predict(split, stimuli).shape == (10, 8)


def test_new_images_need_leave_to_run_the_code(plain, new, own_cache):
    with pytest.raises(RequestError, match=r"would execute tiny\.py.*--trust"):
        predict(plain, new, cache=own_cache)


def test_another_network_under_the_same_name_is_refused(plain, root, new, own_cache, tmp_path):
    other = tmp_path / "tiny.py"
    other.write_text((root / "tiny.py").read_text().replace("manual_seed(0)", "manual_seed(1)"))
    run = RunFolder(shutil.copytree(plain.path, tmp_path / "run"))
    record = run.read_json("run.json")
    record["features"][0]["model_asked"] = f"python:{other}:build"
    run.write_json("run.json", record)
    with pytest.raises(RecipeError, match=r"differs from the run's in code, weights.*--weights"):
        predict(run, new, cache=own_cache, trust=True)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".mat", ".csv"])
@pytest.mark.parametrize("n_targets", [1, 3])
def test_formats_go_round(rng, tmp_path, ending, n_targets):
    ids = ["092/ïmage_1", "007", "image_10"]
    values = rng.standard_normal((3, n_targets)).astype(np.float32)
    names = [f"lh.V1v.{number}" for number in range(n_targets)]
    for seen in (None, np.array([True, False, True])):
        write_predictions(tmp_path / f"out{ending}", ids, values, names, in_training=seen)
        read = read_predictions(tmp_path / f"out{ending}")
        assert read.ids.tolist() == ids
        np.testing.assert_allclose(read.values, values, rtol=1e-6)
        np.testing.assert_array_equal(read.in_training, seen)
        assert read.targets == (None if ending == ".npy" else names)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".mat", ".csv"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, ending):
    out = tmp_path / f"out{ending}"
    write_predictions(out, ["a"], np.ones((1, 2)), ["s", "t"])
    before = out.read_bytes()
    monkeypatch.setattr("featpipe.files.os.replace", _fail)
    with pytest.raises(OSError, match="no space"):
        write_predictions(out, ["a"], np.zeros((1, 2)), ["s", "t"])
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def _fail(*paths):
    raise OSError("no space")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.npz", "x"),
        ("a.npy", "x"),
        ("a.mat", "x"),
        ("a.csv", "x\n1\n"),
        ("b.npz", ""),
        ("b.npy", ""),
        ("b.csv", ""),
    ],
)
def test_other_files_are_no_predictions(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match="is not a file of predictions"):
        read_predictions(tmp_path / name)


def test_score_refuses_training_images(plain, root):
    with pytest.raises(RecipeError, match=r"48 of 48 images were in the training set.*summary\.json"):
        score(str(plain.path), f"table:{root / 'plain'}")


def test_score_refuses_training_images_under_other_ids(plain, root, tmp_path):
    data = shutil.copytree(root / "plain", tmp_path / "data")
    for image in sorted((data / "stimuli").iterdir()):
        image.rename(image.with_name(f"other_{image.name}"))
    with pytest.raises(RecipeError, match="48 of 48 images were in the training set"):
        score(str(plain.path), f"table:{data}")


def test_score_refuses_predictions_of_training_images(plain, split, root, tmp_path):
    for name, run in (("plain", plain), ("split", split)):
        out = tmp_path / f"{name}.csv"
        words = ["predict", str(run.path), "--images", f"table:{root / name}", "--out", str(out), "--json"]
        with pytest.raises(SystemExit, match="0"):
            main(words)
    with pytest.raises(RecipeError, match="48 of 48 images were in the training set of the run that made"):
        score(str(tmp_path / "plain.csv"), f"table:{root / 'plain'}")
    assert (
        score(str(tmp_path / "split.csv"), f"table:{root / 'split'}")["n_stimuli"] == 10
    )  # not those of train


def test_score_takes_the_test_split(split, root):
    summary = score(str(split.path), f"table:{root / 'split'}")
    assert (summary["n_stimuli"], summary["n_folds"]) == (10, 1)
    assert _overall(summary) == pytest.approx(_overall(split.read_json("summary.json")), abs=1e-6)


def test_score_of_a_file_joins_by_id(split, root, tmp_path):
    dataset = load_dataset(f"table:{root / 'split'}")
    predicted = predict(split, dataset.stimuli)
    wanted = _overall(score(str(split.path), f"table:{root / 'split'}"))
    order = np.random.default_rng(1).permutation(40)
    for ending in (".npz", ".csv"):
        out = tmp_path / f"out{ending}"
        write_predictions(out, np.array(dataset.stimuli.ids)[order], predicted[order], split.target_names())
        assert _overall(score(str(out), f"table:{root / 'split'}")) == pytest.approx(wanted, abs=1e-6)


def test_score_of_a_file_needs_every_image_and_every_target_once(split, root, tmp_path):
    data, out = f"table:{root / 'split'}", tmp_path / "out.npz"
    ids = np.array(load_dataset(data, split="test").ids)
    write_predictions(out, ids[1:], np.zeros((9, 8)), split.target_names())
    with pytest.raises(RequestError, match="1 of 10 stimuli of 'split' have no prediction"):
        score(str(out), data)
    write_predictions(out, ids[[0, *range(10)]], np.zeros((11, 8)), split.target_names())
    with pytest.raises(RequestError, match="has an id twice"):
        score(str(out), data)
    write_predictions(out, ids, np.zeros((10, 3)), list("abc"))
    with pytest.raises(RequestError, match="have 3 targets, 'split' has 8"):
        score(str(out), data)
    write_predictions(out, ids, np.zeros((10, 8)), split.target_names())
    summary = score(str(out), data)
    assert (_overall(summary), summary["constant_predictions"]) == (0, 8)


def test_score_refuses_the_targets_of_others(split, root, make_request, tmp_path):
    """The other hemisphere has as many targets, so that numbers would come out."""
    data = f"table:{root / 'split'}"
    run = fit(make_request(root / "split", tmp_path / "run", target="lh.V1v"))
    assert score(str(run.path), data, target="lh.V1v") == score(str(run.path), data)
    with pytest.raises(RequestError, match=r"predicts the targets lh\.V1v.*Leave --target out"):
        score(str(run.path), data, target="rh.V1v")
    images = load_dataset(data, split="test").stimuli
    for ending in (".npz", ".mat", ".csv"):
        out = tmp_path / f"out{ending}"
        write_predictions(out, images.ids, predict(run, images), run.target_names())
        assert score(str(out), data, target="lh.V1v")["n_targets"] == 2
        with pytest.raises(RequestError, match=r"of target 'lh\.V1v.* where 'split' has 'rh\.V1v"):
            score(str(out), data, target="rh.V1v")


def test_predictions_that_are_not_numbers_are_refused(split, root, tmp_path):
    data, out = f"table:{root / 'split'}", tmp_path / "out.npz"
    write_predictions(
        out, load_dataset(data, split="test").ids, np.full((10, 8), np.nan), split.target_names()
    )
    with pytest.raises(RequestError, match="NaN"):
        score(str(out), data)


def test_a_pipeline_of_foreign_types_needs_trust(plain, tmp_path):
    run = RunFolder(shutil.copytree(plain.path, tmp_path / "run"))
    pipeline = run.load_pipeline()
    pipeline.steps.insert(2, ("foreign", FunctionTransformer(json.dumps)))
    run.write_pipeline(pipeline)
    with pytest.raises(RecipeError, match=r"holds json\.dumps.*--trust"):
        run.load_pipeline()
    assert run.load_pipeline(trust=True)["foreign"].func is json.dumps


def test_a_callable_of_our_own_needs_trust_too(plain, tmp_path):
    """`load_recipe` runs the file that it is given."""
    run = RunFolder(shutil.copytree(plain.path, tmp_path / "run"))
    pipeline = run.load_pipeline()
    pipeline.steps.insert(2, ("ours", FunctionTransformer(load_recipe)))
    run.write_pipeline(pipeline)
    with pytest.raises(RecipeError, match=r"holds featpipe\.recipes\.load_recipe.*--trust"):
        run.load_pipeline()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "not a JSON object"),
        ("run.json", "3", "not a JSON object"),
        ("run.json", '{"format": 1}', "lacks data, targets, cache, features"),
        ("pipeline.skops", "junk", r"pipeline\.skops cannot be read"),
    ],
)
def test_damaged_runs_are_named(plain, new, tmp_path, name, content, message):
    path = shutil.copytree(plain.path, tmp_path / "run")
    (path / name).write_text(content)
    with pytest.raises(RecipeError, match=message):
        predict(RunFolder.open(path), new)


def test_saved_pipeline_pins_no_stimuli_and_holds_our_types_only(plain):
    pipeline = plain.load_pipeline()
    assert pipeline[0].stimuli is None
    assert [name for name, _ in pipeline.steps] == ["features", "scale", "ridge"]
    assert (plain.path / "pipeline.skops").read_bytes()[:2] == b"PK"


def test_imported_features_predict_what_was_imported(root, make_request, tmp_path):
    from featpipe.imported import import_array

    cache = FeatureCache(tmp_path / "cache")
    pd.DataFrame({"id": [f"image_{row}" for row in range(48)]}).to_csv(tmp_path / "ids.csv", index=False)
    np.save(tmp_path / "x.npy", np.load(root / "plain" / "responses.npy"))
    import_array(tmp_path / "x.npy", cache, name="x", ids=tmp_path / "ids.csv")
    request = make_request(
        root / "plain", tmp_path / "run", params={"features__model": None, "features__layers": None}
    )
    run = fit(type(request)(**{**vars(request), "cache": str(cache.root)}))
    stimuli = StimulusSet.from_source(root / "plain" / "stimuli")
    assert predict(run, stimuli.select(["image_3"])).shape == (1, 8)
    with pytest.raises(RecipeError, match=r"imported without 5 of these 5 stimuli, first 'new_0'"):
        predict(run, StimulusSet.from_source(root / "new"))
