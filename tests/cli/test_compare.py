"""``featpipe compare``: its numbers equal those of scipy in a loop; its tables, files and refusals."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial.distance import pdist
from scipy.stats import false_discovery_control, kendalltau, pearsonr, rankdata, spearmanr

from featpipe.cli import main
from featpipe.datasets import load_dataset
from featpipe.errors import RequestError
from featpipe.features import CachedFeatures
from featpipe.runs import ComparisonFolder
from featpipe.runs._compare import network_names
from featpipe.testing import make_algonauts2019, make_table_dataset

NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 3, stride=2))
    net.add_module("body", nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.ReLU()))
    net.add_module("head", nn.Conv2d(6, 4, 3))
    size = {"resize": [24, 24], "crop": None, "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""
LAYERS = ["stem", "body", "head"]
TARGETS = ["EVC", "IT", "MEG-early", "MEG-late"]
TINY = "compare --data algonauts2019:data --cache cache --model python:tiny.py:build --draws 50"


def run(words: str) -> int:
    try:
        main(shlex.split(words))
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Challenge data (8 + 9 images, MEG over 3 times), a table with one unnamed RDM, and two cached networks."""
    root = tmp_path_factory.mktemp("compare")
    make_algonauts2019(root / "data", sets={"92": 8, "118": 9}, n_subjects=3)
    make_table_dataset(root / "responses", n=8)
    home = root / "data" / "Training_Data" / "92_Image_Set"
    (root / "own").mkdir()
    (root / "own" / "stimuli").symlink_to(home / "92images")
    one = load_dataset(f"algonauts2019:{home}", target="EVC").rdms.values[0]
    np.save(root / "own" / "rdms.npy", one)
    (root / "tiny.py").write_text(NET)
    (root / "other.py").write_text(NET.replace("stem", "first").replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("compare-cache")))
        patch.chdir(root)
        extract = "extract --trust --images algonauts2019:data --cache cache --json --model"
        assert run(f"{extract} python:tiny.py:build --layers stem --layers body --layers head") == 0
        assert run(f"{extract} python:other.py:build --layers first --layers body") == 0
        assert run(f"{extract} python:tiny.py:build --layers head --layers head:mean --cache two") == 0
        own = f"--images {home / '92images'} --cache own-cache --json --trust"
        assert run(f"extract {own} --model python:tiny.py:build --layers stem --layers head") == 0
    return root


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def compared(place, capsys):
    """Return a function that runs the command with ``--json`` and reads what it printed."""

    def found(more: str = "", words: str = TINY):
        capsys.readouterr()
        assert run(f"{words} {more} --json") == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return found


def by_hand(metric="correlation"):
    """Upper triangles of each set, measured by target, subject and time, and of each layer: naive."""
    data = load_dataset("algonauts2019:data")
    features = CachedFeatures("cache", model="python:tiny.py:build", layers=LAYERS, output="blocks")
    sets = []
    for _, part in data.rdms.split_sets():
        blocks = features.fit(part.ids).transform(part.ids)
        pairs = np.triu_indices(len(part), 1)
        measured = {}
        for target, subject, values in zip(part.targets, part.subjects, part.values, strict=True):
            measured.setdefault((target, subject), []).append(values[pairs])
        flat = {name: values.reshape(len(part), -1).astype(float) for name, values in blocks}
        sets.append((measured, {name: pdist(values, metric) for name, values in flat.items()}))
    return sets


def score_by_hand(layer, target, similarity, metric="correlation"):
    """Mean over subjects of the mean over sets of the mean over times."""
    scores = {}
    for measured, models in by_hand(metric):
        for (name, subject), times in measured.items():
            if name == target:
                over_times = np.mean([similarity(models[layer], vector) for vector in times])
                scores.setdefault(subject, []).append(over_times)
    return np.mean([np.mean(of_sets) for of_sets in scores.values()])


def spearman(a, b):
    return spearmanr(a, b).statistic


def test_scores_are_those_of_scipy_in_a_loop(compared):
    found = compared()
    assert (found["models"], found["targets"], found["n_stimuli"]) == (LAYERS, TARGETS, 17)
    expected = [score_by_hand(layer, target, spearman) for layer in LAYERS for target in TARGETS]
    np.testing.assert_allclose([row["score"] for row in found["layers"]], expected, atol=1e-6)
    assert all(row["low"] <= row["score"] <= row["high"] for row in found["layers"])
    assert found["n_subjects"] == dict.fromkeys(TARGETS, 3)


@pytest.mark.parametrize(
    ("metric", "method", "similarity"),
    [
        ("euclidean", "pearson", lambda a, b: pearsonr(a, b).statistic),
        ("cosine", "cosine", lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))),
        ("sqeuclidean", "kendall", lambda a, b: kendalltau(a, b).statistic),  # no ties: tau-a is tau-b
        ("correlation", "rho_a", spearman),
    ],
)
def test_metrics_and_methods_are_those_of_scipy(compared, metric, method, similarity):
    found = compared(f"--target IT --metric {metric} --method {method}")
    expected = [score_by_hand(layer, "IT", similarity, metric) for layer in LAYERS]
    np.testing.assert_allclose([row["score"] for row in found["layers"]], expected, atol=1e-6)


def test_ceilings_are_each_subjects_rank_correlation_with_the_mean_ranks(compared):
    ends = {"ceiling_upper": [], "ceiling_lower": []}
    for measured, _ in by_hand():
        ranks = {s: rankdata(times[0]) for (target, s), times in measured.items() if target == "EVC"}
        for subject, own in ranks.items():
            others = [vector for name, vector in ranks.items() if name != subject]
            ends["ceiling_upper"].append(spearman(own, np.mean([own, *others], axis=0)))
            ends["ceiling_lower"].append(spearman(own, np.mean(others, axis=0)))
    row = compared("--target EVC")["layers"][0]
    for name, values in ends.items():
        assert row[name] == pytest.approx(np.mean(values))


def test_differences_are_of_scores_and_p_is_corrected_over_all(compared):
    found = compared("--correction fdr")
    score = {(row["layer"], row["target"]): row["score"] for row in found["layers"]}
    assert len(found["differences"]) == 3 * 4
    for row in found["differences"]:
        target = row["target"]
        assert row["difference"] == pytest.approx(score[row["first"], target] - score[row["second"], target])
    for table in (found["layers"], found["differences"]):
        p = [row["p"] for row in table]
        np.testing.assert_allclose([row["p_corrected"] for row in table], false_discovery_control(p))


def test_the_layer_that_made_the_rdms_is_found_and_noise_is_not(place, compared, tmp_path):
    """Responses of one's own: the RDM is that of the layer ``head``, so it scores 1 and its p is the least."""
    ids = load_dataset("table:own").ids
    features = CachedFeatures("own-cache", layers="head").fit(ids).transform(ids)
    values = 1 - np.corrcoef(features.astype(float))
    (tmp_path / "stimuli").symlink_to((place / "own" / "stimuli").resolve())
    np.save(tmp_path / "rdms.npy", np.stack([values, values * 2]))
    found = compared("--method pearson", f"compare --data table:{tmp_path} --cache own-cache --draws 200")
    stem, head = found["layers"]
    assert (head["score"], head["p"]) == (pytest.approx(1), pytest.approx(1 / 201))
    assert stem["score"] < head["score"]


def test_layers_with_layers_are_symmetric_and_equal_scipy(compared):
    between = pd.DataFrame(compared("--second-order")["second_order"]).pivot(
        index="first", columns="second", values="similarity"
    )
    np.testing.assert_allclose(between, between.T)
    np.testing.assert_allclose(np.diag(between), 1)
    expected = np.mean([spearman(models["stem"], models["head"]) for _, models in by_hand()])
    assert between.loc["stem", "head"] == pytest.approx(expected)
    assert "second_order" not in compared()


def test_same_seed_same_numbers_and_another_seed_other_intervals(compared):
    assert compared() == compared()
    first, second = compared(), compared("--seed 1")
    assert [row["score"] for row in first["layers"]] == [row["score"] for row in second["layers"]]
    assert [row["low"] for row in first["layers"]] != [row["low"] for row in second["layers"]]


@pytest.mark.parametrize("over", ["subjects", "stimuli", "both"])
def test_intervals_are_over_what_was_asked(compared, over):
    found = compared(f"--over {over} --target EVC")
    assert found["over"] == over
    assert all(row["low"] <= row["high"] for row in found["layers"])


def test_several_networks_are_told_apart_and_patterns_match_where_they_can(compared):
    words = TINY.replace("--draws", "--model python:other.py:build --draws")
    found = compared("--layers first --layers body --layers head", words)
    assert found["models"] == [
        "tiny.py:build:body",
        "tiny.py:build:head",
        "other.py:build:first",
        "other.py:build:body",
    ]
    assert [(row["network"], row["layer"], row["depth"]) for row in found["layers"][::4]] == [
        ("tiny.py:build", "body", 0),
        ("tiny.py:build", "head", 1),
        ("other.py:build", "first", 0),
        ("other.py:build", "body", 1),
    ]
    alone = compared("--layers body --layers head")
    assert found["layers"][0]["score"] == alone["layers"][0]["score"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ([("timm:a", None), ("timm:b", None)], ["a", "b"]),
        ([("timm:a", "default"), ("timm:a", "random:0")], ["a default", "a random:0"]),
        ([("timm:a", None), ("torchvision:a", None)], ["timm:a", "torchvision:a"]),
        ([("imported:words", None)], ["words"]),
    ],
)
def test_networks_have_the_shortest_names_that_differ(asked, names):
    assert network_names(asked) == names


def test_the_same_network_twice_is_refused():
    with pytest.raises(RequestError, match=r"--model timm:a is given twice; .* --weights"):
        network_names([("timm:a", None), ("timm:a", None)])


def test_one_subject_of_one_unnamed_target(place, compared, capsys):
    words = "compare --data table:own --cache own-cache --over stimuli --draws 20"
    found = compared("", words)
    assert found["targets"] == [""]
    assert [row["ceiling_lower"] for row in found["layers"]] == [None, None]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "RDM" in out.splitlines()[0]
    assert "ceiling, lower  -" in out


def test_people_see_scores_ceilings_differences_and_what_they_are_not(place, capsys):
    assert run(f"{TINY} --target EVC --target IT --second-order") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["layer", "EVC", "p", "(fdr)", "IT", "p", "(fdr)"]
    assert [line.split()[0] for line in out.splitlines()[1:6]] == [*LAYERS, "ceiling,", "ceiling,"]
    assert "stem − head" in out
    assert "of 3 differences between layers have p ≤ 0.05 (fdr); the highest, " in out
    assert "no held-out score" in out
    assert "featpipe fit baseline_algonauts2019 --search" in out
    assert "1.00" in out


def test_a_folder_holds_tidy_tables_and_a_plot(compared, tmp_path):
    out = tmp_path / "out"
    found = compared(f"--second-order --out {out}")
    assert found["files"] == sorted(found["files"], key=found["files"].index)
    assert (
        {path.name for path in out.iterdir()}
        == set(found["files"])
        == {
            *("compare.json", "layers.csv", "differences.csv", "second_order.csv", "layers.svg", "layers.png")
        }
    )
    assert json.loads((out / "compare.json").read_text()) == {
        name: value for name, value in found.items() if name not in ("out", "files")
    }
    for name in ("layers", "differences", "second_order"):
        pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), pd.DataFrame(found[name]))
    pixels = np.asarray(Image.open(out / "layers.png").convert("L"))
    assert pixels.std() > 5  # something is drawn


def test_writing_again_needs_leave_and_removes_what_is_old(place, tmp_path, capsys):
    words = f"{TINY} --target EVC --out {tmp_path / 'out'}"
    assert run(f"{words} --second-order") == 0
    assert run(words) == 2
    assert "holds a comparison already" in capsys.readouterr().err
    before = (tmp_path / "out" / "layers.svg").read_bytes()
    assert run(f"{words} --overwrite") == 0
    assert (tmp_path / "out" / "layers.svg").read_bytes() == before
    assert not (tmp_path / "out" / "second_order.csv").exists()


def test_without_matplotlib_the_tables_are_written(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "featpipe.runs._layer_plot", None)
    assert run(f"{TINY} --target EVC --out {tmp_path / 'out'}") == 0
    said = capsys.readouterr()
    assert "compare.json, layers.csv, differences.csv" in said.out.splitlines()[-1]
    assert "matplotlib" in said.err
    assert ComparisonFolder(tmp_path / "out").files() == ["compare.json", "layers.csv", "differences.csv"]


def test_nothing_is_extracted_and_no_torch_loaded(place):
    code = (
        "import sys; from featpipe.cli import main\n"
        f"try: main({shlex.split(TINY)!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BAD = {
    "no data": ("compare", "--data"),
    "responses": ("compare --data table:responses --cache cache", "holds responses; layers are compared with RDMs"),
    "missing data": ("compare --data algonauts2019:nowhere", "nowhere"),
    "unknown target": (f"{TINY} --target V1", "no target 'V1'; There are EVC, IT, MEG-early"),
    "unknown subject": (f"{TINY} --subject 99", "99"),
    "one subject": (f"{TINY} --subject 1", "EVC has one subject, which says nothing about other subjects"),
    "unknown metric": (f"{TINY} --metric mahalanobis", "--metric is 'mahalanobis'; choose from correlation, cosine"),
    "unknown method": (f"{TINY} --method tau", "--method is 'tau'; choose from spearman, pearson"),
    "unknown over": (f"{TINY} --over images", "--over is 'images'; choose from subjects, stimuli, both"),
    "unknown correction": (f"{TINY} --correction by", "--correction is 'by'; choose from fdr, holm, bonferroni, none"),
    "no draws": (f"{TINY} --draws 0", "--draws"),
    "a negative seed": (f"{TINY} --seed -1", "--seed"),
    "one layer": (f"{TINY} --layers head", "one layer, 'head', and nothing to compare it with"),
    "unknown layer": (f"{TINY} --layers tail", "No cached layer matches 'tail'; cached are stem, body, head"),
    "layer with a reduction": (f"{TINY} --layers head:mean", "'head:mean' names a reduction, which is the same for"),
    "unknown reduction": (f"{TINY} --reduce avg", "'avg'"),
    "reduction not cached": (f"{TINY} --reduce mean", "nothing with model='python:tiny.py:build', reduce='mean'"),
    "no such model": (f"{TINY} --model timm:resnet50", "timm:resnet50: There is nothing with"),
    "no kind of model": ("compare --data algonauts2019:data --cache cache --model resnet50", "ZOO:NAME"),
    "models to choose from": ("compare --data algonauts2019:data --cache cache", "Choose one: give --model, --weights"),
    "the same model twice": (f"{TINY} --model python:tiny.py:build", "is given twice; tell the networks apart"),
    "layer of no model": (
        f"{TINY} --model python:other.py:build --layers tail",
        "No cached layer of any of the 2 models matches --layers 'tail'",
    ),
    "model without a layer": (
        f"{TINY} --model python:other.py:build --layers stem",
        "python:other.py:build: No cached layer matches 'stem'",
    ),
    "weights for some": (
        f"{TINY} --weights default --weights random:0",
        "--weights is given 2 times and --model 1 times",
    ),
    "weights not cached": (f"{TINY} --weights random:7", "weights='random:7'"),
    "reductions to choose from": (
        "compare --data algonauts2019:data --cache two --layers head",
        "differ in reduction: mean, none. Choose one: give --reduce",
    ),
    "setting of something else": (f"{TINY} --set views=2", "--set views does not choose among cached features"),
    "setting without value": (f"{TINY} --set precision", "'precision' is not KEY=VALUE"),
    "number for a precision": (f"{TINY} --set precision=3", "--set precision is 3; give a text"),
    "number for a preprocessing": (f"{TINY} --set preprocess=3", "--set preprocess is 3; give model, whole"),
    "text for arguments": (f"{TINY} --set model_args=x", "--set model_args is 'x'; give a dict"),
    "empty cache": (TINY.replace("cache cache", "cache none"), "There is nothing with"),
    "images not cached": ("compare --data algonauts2019:data --cache own-cache", "featpipe extract"),
    "out is a file": (f"{TINY} --out tiny.py", "--out tiny.py is a file; name a folder"),
    "out holds other files": (f"{TINY} --out own", "--out own holds other files, such as"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD)
def test_wrong_requests_say_what_would_be_right(place, words, says, capsys):
    assert run(words) == 2
    said = capsys.readouterr()
    assert says in " ".join(said.err.split())
    assert said.out == ""
