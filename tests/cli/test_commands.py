"""What commands print, for people and for machines, and how they end."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from featpipe.cli._console import show_table
from featpipe.cli._scores import show_tuned

M = "--model python:tiny.py:build --trust"

# Every command, and the options that documentation names
COMMANDS = {
    "demo": "--out",
    "models": "--zoo --json",
    "layers": "--weights --json",
    "extract": (
        "--model --layers --images --cache --weights --model-arg --mean --std --image-size --interpolation "
        "--precision --preprocess --store-dtype --views --augmentation --view-seed --batch-size "
        "--device --dask --recipe --data --set --skip-broken --dry-run --trust --json"
    ),
    "fit": "--data --target --subject --cache --set --search --cv --extract --out --trust --json",
    "predict": "--images --out --cache --weights --trust --json",
    "score": "--data --subject --target --trust --json",
    "report": "--out",
    "recipes": "--json",
    "cache ls": "--model --layers --stimuli --newer --older --larger --smaller --incomplete --cache --json",
    "cache show": "--no-statistics --cache --json",
    "cache verify": (
        "--cache --sample --recompute --repair --images --weights --model --subject --split --seed --device --workers "
        "--trust --json"
    ),
    "cache push": "--cache --model --layers --stimuli --dry-run --json",
    "cache pull": "--cache --model --layers --stimuli --dry-run --json",
    "cache rm": "--cache --yes --json",
    "cache gc": "--yes --older --aside --stimuli --empty --cache --json",
    "cache export": "--to --out --partial --overwrite --cache --json",
    "cache catalog": "--out --url --cache --json",
    "cache import": "--name --ids --images --store-dtype --cache --json",
}

# Commands that change nothing, and what the object that --json prints must have
SHOWN = {
    "models resnet1* --zoo timm": {"models"},
    "layers python:tiny.py:build --trust": {"model", "weights", "weights_label", "preprocessing", "layers"},
    "recipes": {"recipes"},
    "cache ls --cache cache": {"cache", "arrays", "damaged"},
    "cache gc --cache cache": {"cache", "garbage", "removed", "kept", "bytes"},
    "cache verify --cache cache": {"cache", "arrays", "seed", "problems"},
    "cache push new --cache cache --dry-run": {
        "from",
        "to",
        "dry_run",
        "arrays",
        "bytes",
        "seconds",
        "problems",
    },
    f"extract {M} --layers stem:mean --images images --cache new --dry-run": {
        "layers",
        "n_stimuli",
        "bytes_on_disk",
        "peak_memory",
        "seconds",
        "device",
        "batch_size",
    },
    f"extract {M} --layers head:mean --images table:table --cache cache": {
        "computed",
        "reused",
        "arrays",
        "stimuli",
    },
}


@pytest.fixture
def cache(world, tmp_path):
    """A copy of the world's cache, to be changed."""
    shutil.copytree(world / "cache", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(featpipe, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = featpipe(f"{command} --help")
    assert (code, err) == (0, "")
    assert [option for option in COMMANDS[command].split() if option not in out] == []


@pytest.mark.parametrize("words", SHOWN)
def test_json_is_one_object_and_people_get_a_text(featpipe, featpipe_json, words):
    assert featpipe_json(words).keys() >= SHOWN[words]
    code, out, err = featpipe(words)
    assert code == 0
    assert out.strip()
    assert not out.startswith("{")
    assert err == ""  # no progress where nobody looks


def test_a_narrow_terminal_cuts_no_cell(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=40, soft_wrap=True)
    monkeypatch.setattr("featpipe.cli._console.OUT", terminal)
    show_table(
        ["key", "layer", "rows"],
        [("0123456789ab", f"blocks.{'x' * 40}.1", 7), ("é", "b", 1234)],
        right=["rows"],
    )
    _, *rows = terminal.file.getvalue().splitlines()
    assert rows == [f"0123456789ab  blocks.{'x' * 40}.1     7", f"é             b{' ' * 48}  1234"]


def test_no_line_of_a_table_ends_in_blanks(featpipe):
    out = featpipe("recipes")[1].splitlines()
    assert out == [line.rstrip() for line in out]


def test_no_command_at_all_prints_the_help(featpipe):
    code, out, err = featpipe("")
    assert code == 2
    assert "extract" in out + err


def test_module_runs_as_a_program(world):
    done = subprocess.run(
        [sys.executable, "-m", "featpipe", "cache", "show", "ffff", "--cache", "cache"],
        cwd=world,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_looking_into_a_cache_loads_no_torch(world):
    code = (
        "import sys; from featpipe.cli import main\n"
        "try: main(['cache', 'ls', '--cache', 'cache'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=world, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_extraction_has_nothing_to_do(featpipe, cache):
    words = f"extract {M} --layers stem:max --images images --cache {cache}"
    assert "6 images computed and 0 copied" in featpipe(words)[1]
    assert "Nothing to do: all 6 stimuli are cached" in featpipe(words)[1]


def test_dry_run_writes_nothing_and_tells_what_is_cached(featpipe_json, world):
    plan = featpipe_json(
        f"extract {M} --layers stem:grid:2 --layers stem:none --images table:table --cache cache --dry-run"
    )
    assert [layer["cached"] for layer in plan["layers"]] == [True, False]
    assert [layer["shape"] for layer in plan["layers"]] == [[8, 2, 2], [8, 15, 15]]
    assert plan["layers"][1]["bytes_per_image"] == 8 * 15 * 15 * 4
    featpipe_json(f"extract {M} --layers stem:mean --images images --cache new --dry-run")
    assert not (world / "new").exists()


def test_skip_broken_lists_what_it_leaves_out(featpipe, featpipe_json, tmp_path):
    words = f"extract {M} --layers stem:mean --images broken --skip-broken --cache {tmp_path / 'new'}"
    done = featpipe_json(words)
    assert done["n_stimuli"] == 1
    assert [name for name, _ in done["skipped"]] == ["broken/broken.png"]
    assert "left out broken/broken.png" in featpipe(words)[2]
    truncated = featpipe_json(words.replace("broken --skip", "truncated --skip"))
    assert [name for name, _ in truncated["skipped"]] == ["truncated/half.jpg"]


def test_split_chooses_images_of_data(featpipe_json, tmp_path):
    words = f"extract {M} --layers stem:mean --images table:split --cache {tmp_path}"
    assert [featpipe_json(words + more)["n_stimuli"] for more in ("", " --split test")] == [24, 6]


def test_ls_chooses_by_model_and_layer(featpipe_json):
    def count(more):
        return len(featpipe_json("cache ls --cache cache" + more)["arrays"])

    assert [count(more) for more in ("", " --layers stem", " --layers s*", " --model timm:x")] == [3, 2, 2, 0]


def test_show_takes_the_first_digits_of_a_key(featpipe, featpipe_json):
    key = featpipe_json("cache ls --cache cache")["arrays"][0]["key"]
    shown = featpipe_json(f"cache show {key[:12]} --cache cache")
    assert shown["key"] == key
    assert shown["spec"]["weights"]
    assert shown["provenance"]["batch_size"]
    assert shown["missing_shards"] == []
    assert "provenance of 1 of 1 shards:" in featpipe(f"cache show {key} --cache cache")[1]


def test_rm_removes_what_it_names_after_asking(featpipe, featpipe_json, cache, monkeypatch):
    key, *others = [array["key"] for array in featpipe_json(f"cache ls --cache {cache}")["arrays"]]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert featpipe(f"cache rm {key} --cache {cache}")[0] == 1
    code, out, _ = featpipe(f"cache rm {key[:12]} --yes --cache {cache}")
    assert (code, out.split()[0]) == (0, key)
    assert [array["key"] for array in featpipe_json(f"cache ls --cache {cache}")["arrays"]] == others


def test_rm_as_json_asks_nothing(featpipe, featpipe_json, cache):
    key = featpipe_json(f"cache ls --cache {cache}")["arrays"][0]["key"]
    code, _, err = featpipe(f"cache rm {key} --cache {cache} --json")
    assert (code, "--yes" in err) == (2, True)
    assert [row["key"] for row in featpipe_json(f"cache rm {key} --yes --cache {cache}")["removed"]] == [key]


def test_verify_finds_a_flipped_byte(featpipe, featpipe_json, cache):
    largest = max((path for path in cache.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    problem, *others = featpipe_json(f"cache verify --cache {cache}", code=1)["problems"]
    assert (problem["shard"], others) == (0, [])
    code, out, _ = featpipe(f"cache verify --cache {cache}")
    assert code == 1
    assert problem["key"][:12] in out
    assert "3 arrays checked, 1 problems" in out


def test_import_is_found_by_its_name(featpipe, featpipe_json, world, tmp_path):
    row = featpipe_json(f"cache import embedding.npy --name emb --ids ids.csv --cache {tmp_path}")
    assert (row["model"], row["rows"], row["shape"]) == ("imported:emb", 40, [5])
    again = featpipe_json(f"cache import embedding.npy --name emb --ids ids.csv --cache {tmp_path}")
    assert again["key"] == row["key"]
    code, out, _ = featpipe(f"cache import embedding.npy --name emb --ids ids.csv --cache {tmp_path}")
    assert (code, row["key"] in out) == (0, True)


def test_import_refuses_what_is_not_finite(featpipe, tmp_path):
    code, out, err = featpipe(f"cache import nan.npy --name n --ids ids.csv --cache {tmp_path / 'new'}")
    assert (code, out) == (1, "")
    assert "'image_0'" in err
    assert not (tmp_path / "new").exists()


def test_run_from_fit_to_report(featpipe, featpipe_json, tmp_path):
    run = tmp_path / "run"
    fit = (
        "fit baseline_ridge --data table:split --set features__model=python:tiny.py:build --trust --extract "
    )
    fit += f"--set features__layers=head --set features__reduce=mean --cache {tmp_path / 'cache'} --out {run}"
    done = featpipe_json(fit)
    assert (done["cv"], done["n_folds"], done["report"]) == ("splits", 1, str(run / "report.html"))
    scored = featpipe_json(f"score {run} --data table:split")
    assert scored["scores"]["pearson_r"]["overall"] == pytest.approx(done["scores"]["pearson_r"]["overall"])
    out = tmp_path / "new.npz"
    predicted = featpipe_json(f"predict {run} --images images --out {out} --trust")
    assert predicted == {"out": str(out), "n_stimuli": 6, "n_targets": 8}
    with np.load(out) as data:
        assert data["ids"].tolist() == [f"new_{number}" for number in range(6)]
    for words in (f"score {run} --data table:split", f"report {run} --out {tmp_path / 'again.html'}"):
        assert featpipe(words)[0] == 0
    assert (tmp_path / "again.html").stat().st_size > 1000


def test_fit_says_how_many_stimuli_were_scored(featpipe, tmp_path):
    fit = "fit baseline_ridge --set features__model=python:tiny.py:build --trust --extract"
    fit += " --set features__layers=head --set features__reduce=mean --data table:split"
    assert (
        "24 stimuli (6 scored), 8 targets, 1 fold\n"
        in featpipe(f"{fit} --cache {tmp_path / 'cache'} --out {tmp_path / 'run'}")[1]
    )


def test_fit_says_what_a_search_chose(featpipe, tmp_path):
    fit = "fit baseline_ridge --data table:table --cache cache --set features__reduce=mean --cv 3"
    out = featpipe(f"{fit} --search 'features__layers=[[\"stem\"]]' --out {tmp_path / 'run'}")[1]
    assert 'features__layers: ["stem"] in 3 of 3 folds; saved ["stem"]\n' in out


def test_work_that_fails_ends_with_one(featpipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, out, err = featpipe(
        f"extract {M} --layers stem:mean --images images --cache {tmp_path / 'file' / 'c'}"
    )
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert "file" in err


def test_version(featpipe):
    assert featpipe("--version")[1].startswith("featpipe 0.")


@pytest.mark.parametrize(
    ("n_epochs", "best", "said"),
    [(0, 0, "as it came, not trained"), (3, 0, "which is best (by 4 held-out"), (3, 2, "epoch 2 of 3")],
)
def test_a_network_that_was_not_trained_is_not_called_best(capsys, n_epochs, best, said):
    known = {"model": "timm:test_resnet", "checkpoint": None, "n_trained": 9, "learning_rate": 0.1}
    chosen = {"validation_folds": None, "n_validation": 4, "n_fitted": 36}
    show_tuned({**known, **chosen, "n_epochs": n_epochs, "best_epoch": best})
    assert said in capsys.readouterr().out
