"""The commands that look into a cache, tidy it and take arrays out of it; no network runs and no torch is needed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from datetime import timedelta

import numpy as np
import pytest

from featpipe.cli import main
from featpipe.cli.cache._amounts import parse_age, parse_size
from featpipe.errors import RequestError
from featpipe.spec import FeatureSpec
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.store.location import Folder

N_ROWS, SHARD_ROWS = 20, 8


def _add(cache, layer, *, width=3, name="few", shards=(0, 1, 2), model="timm:resnet50", **said):
    ids = tuple(f"{name}_{row}" for row in range(N_ROWS))
    manifest = StimulusManifest(
        ids, tuple(hashlib.sha256(i.encode()).hexdigest() for i in ids), name, "photos"
    )
    cache.add_stimuli(manifest, shard_rows=SHARD_ROWS)
    spec = FeatureSpec(model, "ab" * 32, layer, None)
    writer = cache.writer(spec, manifest.digest, row_shape=(width,), dims=("channel",), codec="none")
    rows = np.maximum(np.random.default_rng(0).standard_normal((N_ROWS, width)), 0).astype(np.float32)
    for shard in shards:
        part = writer.array.layout.rows_of(shard)
        provenance = {
            name: value[shard] if isinstance(value, list) else value for name, value in said.items()
        }
        writer.publish(shard, rows[part.start : part.stop], provenance)
    return writer.array, rows


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Three arrays in ``cache``, in the working directory, by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    cache = FeatureCache("cache")
    hosts = {"host": ["node1", "node1", "node2"], "versions": [{"torch": "2.9"}] * 2 + [{"torch": "2.10"}]}
    return {
        "shared": _add(
            cache, "layer1", written=[f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)], **hosts
        ),
        "large": _add(cache, "layer2.0", width=4000, name="many", model="open_clip:ViT-B-32"),
        "part": _add(cache, "layer3", shards=[0, 2]),
    }


@pytest.fixture
def run(arrays, capfd):
    """Return a function that runs ``featpipe cache …``: (exit code, stdout, stderr)."""

    def command(words):
        capfd.readouterr()
        code = 0
        try:
            main(["cache", *shlex.split(words)])
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return command


@pytest.fixture
def run_json(run):
    def command(words, code=0):
        came, out, err = run(f"{words} --json")
        assert came == code, err
        assert out.count("\n") == 1, out
        return json.loads(out)

    return command


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", "shared large part"),
        ("--model timm:*", "shared part"),
        ("--layers layer?", "shared part"),
        ("--layers nothing --layers layer?", "shared part"),
        ("--stimuli many", "large"),
        ("--older 1d", "shared"),
        ("--newer 1d", "large part"),
        ("--larger 10kB", "large"),
        ("--smaller 10kB", "shared part"),
        ("--incomplete", "part"),
        ("--incomplete --stimuli many", ""),
    ],
)
def test_ls_lists_what_is_asked_for(run, run_json, arrays, words, names):
    wanted = {arrays[name][0].key for name in names.split()}
    listed = run_json(f"ls {words}")["arrays"]
    assert {array["key"] for array in listed} == wanted
    *_, total = run(f"ls {words}")[1].splitlines()
    assert total.startswith(f"{len(wanted)} arrays, ")


def test_ls_leaves_a_damaged_array_out_and_ends_with_1(run, run_json, arrays):
    bad = arrays["part"][0]
    (bad.folder / "commits/0.json").write_text("{}")
    listed = run_json("ls", code=1)
    assert len(listed["arrays"]) == 2
    assert list(listed["damaged"]) == [bad.key]
    code, out, err = run("ls")
    assert (code, "2 arrays" in out, bad.key in err) == (1, True, True)


def test_ls_reads_two_small_files_of_each_array_that_it_leaves_out(run, arrays, monkeypatch):
    for number in range(20):
        _add(FeatureCache("cache"), f"block.{number}", width=1)
    read, names = Folder.read, []
    monkeypatch.setattr(
        Folder, "read", lambda self, name, largest: names.append(name) or read(self, name, largest)
    )
    assert "1 arrays" in run("ls --layers block.7")[1]
    assert (
        len([name for name in names if name.startswith("arrays/")]) <= 2 * 23 + 2
    )  # and the commits of the one
    assert len([name for name in names if name.startswith("stimuli/")]) == 1


def test_show_says_who_wrote_what_and_what_the_values_are(run, run_json, arrays):
    array, rows = arrays["shared"]
    shown = run_json(f"show {array.key[:10]}")
    assert [(o["shards"], o["shard_numbers"], o["host"]) for o in shown["origins"]] == [
        (2, "0-1", "node1"),
        (1, "2", "node2"),
    ]
    assert shown["origins"][0]["last_written"] == "2026-01-02T00:00:00+00:00"
    assert shown["stimulus_set"] == {
        "name": "few", "digest": array.stimuli_digest, "images": N_ROWS, "source": "photos",
    }  # fmt: skip
    assert shown["raw_bytes"] == rows.nbytes
    statistics = shown["statistics"]
    assert statistics["mean"] == pytest.approx(rows.mean(dtype=np.float64), rel=1e-9)
    assert statistics["zeros"] == pytest.approx((rows == 0).mean())
    assert (statistics["values"], statistics["nan"], statistics["infinite"]) == (rows.size, 0, 0)
    out = run(f"show {array.key}")[1]
    assert [
        word for word in ("node2", "torch 2.10", "2 of 3 shards", "statistics:", "photos") if word not in out
    ] == []


def test_show_names_missing_shards_and_reads_nothing_if_asked(run, run_json, arrays):
    key = arrays["part"][0].key
    assert run_json(f"show {key}")["missing_shards"] == [1]
    assert run_json(f"show {key}")["statistics"]["values"] == 12 * 3
    assert run_json(f"show {key} --no-statistics")["statistics"] is None
    assert "statistics" not in run(f"show {key} --no-statistics")[1]


def test_show_of_a_damaged_shard_shows_all_else_and_ends_with_1(run, arrays):
    array = arrays["part"][0]
    array.shard_path(0).write_bytes(b"torn")
    code, out, err = run(f"show {array.key}")
    assert (code, "layer3" in out, "Shard 0" in err) == (1, True, True)


@pytest.fixture
def leftover(arrays, tmp_path):
    folder = tmp_path / "cache/tmp/0123"
    folder.mkdir()
    (folder / "file").write_bytes(b"1234")
    then = time.time() - 7200
    for path in (folder / "file", folder):
        os.utime(path, (then, then))
    return folder


def test_gc_lists_first_and_removes_when_told(run, run_json, leftover):
    code, out, _ = run("gc")
    assert (code, "tmp/0123" in out, "--yes" in out, leftover.exists()) == (0, True, True, True)
    assert run_json("gc")["removed"] == []
    assert run_json("gc --older 1d")["garbage"] == []
    found = run_json("gc --yes")
    assert [row["path"] for row in found["removed"]] == ["tmp/0123"]
    assert found["bytes"] == 4
    assert not leftover.exists()
    assert run("gc --yes")[1] == "0 removed, 0 B\n"


def test_gc_names_what_it_could_not_remove_and_ends_with_1(run, leftover, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("featpipe.store.finding._garbage.os.rename", refuse)
    code, out, err = run("gc --yes")
    assert (code, "0 removed" in out, "tmp/0123 stays" in err) == (1, True, True)


@pytest.mark.parametrize("to", ["npy", "h5"])
def test_export_writes_a_file(run_json, arrays, tmp_path, to):
    array, _ = arrays["large"]
    done = run_json(f"export {array.key[:9]} --to {to} --out out/file")
    assert (tmp_path / "out/file").stat().st_size == done["bytes"] > array.nbytes / 2
    assert run_json(f"export {array.key} --to {to}")["out"].startswith("open_clip-ViT-B-32_layer2.0_none_")


def test_export_of_an_incomplete_array_is_asked_for(run, arrays, tmp_path):
    array, rows = arrays["part"]
    code, _, err = run(f"export {array.key} --out part.npy")
    assert (code, "--partial" in err) == (2, True)
    assert run(f"export {array.key} --out part.npy --partial")[0] == 0
    np.testing.assert_array_equal(np.load("part.npy"), rows[[*range(8), *range(16, 20)]])


def test_catalog_writes_a_page(run, run_json, tmp_path):
    assert "index.html" in run("catalog --out site/index.html")[1]
    assert run_json("catalog --out site/index.html --url s3://lab/cache")["damaged"] == {}
    assert "s3://lab/cache" in (tmp_path / "site/index.html").read_text()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("ls --older 7", ["--older", "'7'", "12h"]),
        ("ls --newer 3months", ["--newer", "'3months'"]),
        ("ls --newer -1d", ["--newer"]),
        ("ls --larger 10MiBs", ["--larger", "'10MiBs'", "10MB"]),
        ("ls --smaller big", ["--smaller", "'big'"]),
        ("show ff00", ["ff00", "cache ls"]),
        ("gc --older soon", ["--older", "'soon'"]),
        ("gc --cache nowhere", ["nowhere", "nothing to collect"]),
        ("export ff00 --to npy", ["ff00", "cache ls"]),
        ("export PART --to mat", ["'mat'", "npy, h5, netcdf, parquet"]),
        ("export PART", ["--to", "--out"]),
        ("export PART --out x.bin", ["x.bin", "--to"]),
        ("export PART --out cache/x.npy", ["--partial"]),
        ("export LARGE --to npy --out cache", ["cache", "folder"]),
        ("catalog", ["--out"]),
        ("catalog --out cache", ["cache", "folder", "index.html"]),
    ],
)
def test_bad_requests_end_with_2_and_change_nothing(run, arrays, tmp_path, words, wanted):
    before = set(tmp_path.rglob("*"))
    for name in ("part", "large"):
        words = words.replace(name.upper(), arrays[name][0].key)
    code, out, err = run(words)
    assert (code, out) == (2, ""), err
    assert [word for word in wanted if word not in err] == [], err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("7d", 168), ("2w", 336), ("1.5 d", 36), ("30min", 0.5), ("0s", 0)]
)
def test_ages(text, hours):
    assert parse_age("--older", text) == timedelta(hours=hours)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("10", 10),
        ("10B", 10),
        ("1.5kB", 1500),
        ("10MB", 10**7),
        ("1 GiB", 2**30),
        ("2tb", 2 * 10**12),
    ],
)
def test_sizes(text, size):
    assert parse_size("--larger", text) == size


@pytest.mark.parametrize("text", ["", "d", "-1d", "1e3d", "7 days", "nan", "99999999999999w", "1m"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(RequestError, match=r"--older .* is no age.*7d"):
        parse_age("--older", text)
