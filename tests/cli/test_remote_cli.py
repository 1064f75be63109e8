"""Commands read and write caches that are named by a URL, and keep their credentials to themselves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest

from featpipe.cli import main
from featpipe.store import FeatureCache
from featpipe.store._index import INDEX, CacheIndex, index_line
from featpipe.testing import file_server, make_images, make_table_dataset

TINY_NET = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Conv2d(8, 4, 3, stride=2))
    size = {"resize": 36, "crop": [32, 32], "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
"""
EXTRACT = "extract --model python:tiny.py:build --trust --layers stem:grid:2 --layers head:mean --images table:table"
FIT = "fit baseline_ridge --data table:table --set features__layers=stem --cv 3 --threads 1"
ACCESS, SECRET, TOKEN, PASSWORD = (
    "AKIDUNMISTAKABLE",
    "unmistakableSecret",
    "unmistakableToken",
    "unmistakableWord",
)


def _main(words):
    try:
        main(shlex.split(words))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def run(capfd):
    """Return a function that runs a command: (exit code, stdout, stderr)."""

    def command(words):
        capfd.readouterr()
        return _main(words), *capfd.readouterr()

    return command


@pytest.fixture
def run_json(run):
    def command(words):
        code, out, err = run(f"{words} --json")
        assert code == 0, err
        return json.loads(out)

    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network, data, new images, and a cache of theirs that has an index."""
    root = tmp_path_factory.mktemp("place")
    (root / "tiny.py").write_text(TINY_NET)
    make_table_dataset(root / "table", n=24)
    make_images(root / "images", [f"new_{number}.png" for number in range(3)], size=40, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))
        assert _main(f"{EXTRACT} --cache cache") == 0
        assert _main(f"{FIT} --cache cache --out run") == 0
    arrays = FeatureCache(root / "cache").arrays()
    lines = {
        a.key: index_line(a.key, a.spec.document(a.stimuli_digest), a.committed, sealed=True) for a in arrays
    }
    (root / "cache" / INDEX).write_bytes(CacheIndex(lines).encode())
    return root


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def served(place):
    with file_server(place / "cache") as server:
        yield server


def test_a_bucket_is_written_and_read_as_a_folder_is(here, s3_bucket, run, run_json, tmp_path):
    url = f"{s3_bucket}/cache"
    assert run_json(f"{EXTRACT} --cache {url}")["computed"] == 24
    assert run_json(f"{EXTRACT} --cache {url}")["computed"] == 0
    listed = run_json(f"cache ls --cache {url}")
    there = run_json("cache ls --cache cache")
    for array in (*listed["arrays"], *there["arrays"]):
        del array["written"]
    assert (listed["cache"], listed["arrays"]) == (url, there["arrays"])
    key = listed["arrays"][0]["key"]
    assert run_json(f"cache show {key[:9]} --cache {url}")["path"] == f"{url}/arrays/{key}"
    assert run_json(f"cache verify --cache {url}")["problems"] == []
    fitted = run_json(f"{FIT} --cache {url} --out {tmp_path}/run")
    assert fitted["scores"] == json.loads((here / "run" / "summary.json").read_text())["scores"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache"] == url
    assert run(f"predict {tmp_path}/run --trust --images images --out {tmp_path}/new.npz")[0] == 0
    assert (
        run(f"predict run --trust --images images --cache {tmp_path}/other --out {tmp_path}/same.npz")[0] == 0
    )
    ours, same = (np.load(tmp_path / name)["predictions"] for name in ("new.npz", "same.npz"))
    np.testing.assert_allclose(ours, same, rtol=1e-5)
    assert run(f"cache rm {key} --yes --cache {url}")[0] == 0
    assert key not in {array["key"] for array in run_json(f"cache ls --cache {url}")["arrays"]}
    imported = "cache import vectors.npy --name mine --ids ids.csv"
    np.save("vectors.npy", np.zeros((2, 3), np.float32))
    Path("ids.csv").write_text("id\na\nb\n")
    assert run_json(f"{imported} --cache {url}")["model"] == "imported:mine"


def test_a_web_server_is_read_through_a_mirror_that_no_run_remembers(here, served, run, run_json, tmp_path):
    served.misbehave()
    mirror = f"--mirror {tmp_path}/mirror --mirror-size 1GB"
    fitted = run_json(f"{FIT} --cache {served.url} {mirror} --out {tmp_path}/run")
    assert fitted["scores"] == json.loads((here / "run" / "summary.json").read_text())["scores"]
    assert list(tmp_path.glob("mirror/shards/*/*"))
    record = (tmp_path / "run" / "run.json").read_text()
    assert json.loads(record)["cache"] == served.url
    assert "mirror=" not in record
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or str(tmp_path / "mirror").encode() not in path.read_bytes()
    served.forget()
    out = tmp_path / "again.npz"
    assert run(f"predict {tmp_path}/run --images table:table {mirror} --out {out}")[0] == 0
    assert not [asked for asked in served.requests() if "/c/" in asked["path"]]
    assert len(np.load(out)["ids"]) == 24
    code, _, err = run(f"predict {tmp_path}/run --trust --images images --out {tmp_path}/new.npz")
    assert code == 2
    assert "can only be read" in err
    assert "Name a cache to write to with --cache" in err


def test_workers_of_dask_read_a_bucket(here, s3_bucket, run_json, tmp_path):
    assert run_json(f"{EXTRACT} --cache {s3_bucket}/cache --dask 2")["computed"] == 24
    mirror = f"--mirror {tmp_path}/mirror"
    fitted = run_json(f"{FIT} --cache {s3_bucket}/cache --dask 2 {mirror} --out {tmp_path}/run")
    scores = json.loads((here / "run" / "summary.json").read_text())["scores"]
    assert fitted["scores"]["pearson_r"]["overall"] == pytest.approx(scores["pearson_r"]["overall"], rel=1e-6)
    assert list(tmp_path.glob("mirror/shards/*/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("extract --model timm:nothing --layers a --images nowhere --cache URL", "can only be read"),
        ("cache import nowhere.npy --name mine --ids ids.csv --cache URL", "can only be read"),
        ("cache rm 00 --yes --cache URL", "can only be read"),
        (f"{EXTRACT} --cache memory://here --dask 2", "memory of one process"),
        (f"{FIT} --cache memory://here --dask 2 --out new", "memory of one process"),
        (f"{FIT} --cache memory://here --jobs 2 --out new", "memory of one process"),
        (f"{FIT} --cache cache --mirror m --out new", "A mirror is for a URL"),
        (f"{FIT} --cache URL --mirror-size 5GB --out new", "goes with --mirror"),
        (f"{FIT} --cache URL --mirror m --mirror-size large --out new", "--mirror-size 'large' is no size"),
        (f"{FIT} --cache URL --mirror m --mirror-size 0 --out new", "no room"),
        ("predict run --images table:table --mirror m --out new.npz", "A mirror is for a URL"),
        ("score run --data table:table --mirror-size 5GB", "goes with --mirror"),
        ("cache ls --cache https://me:word@host/cache", "no user, password"),
        ("cache ls --cache ftp://host/cache", "begins with s3://"),
        ("cache ls --cache URL/nothing", r"no .*index\.jsonl"),
    ],
)
def test_what_a_url_cannot_do_is_said_at_once(here, served, run, words, said):
    served.misbehave()
    code, out, err = run(words.replace("URL", served.url))
    assert (code, out) == (2, "")
    assert re.search(said, err), err
    assert not (here / "m").exists()
    assert not (here / "new").exists()


def test_a_server_that_is_not_there_is_failed_work(here, run):
    code, _, err = run("cache ls --cache http://127.0.0.1:9/cache")
    assert code == 1
    assert "cannot be reached" in err


def test_credentials_are_written_nowhere(here, s3, s3_bucket, served, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    (home / ".netrc").chmod(0o600)
    given = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    served.misbehave()
    url = f"{s3_bucket}/secret"
    said = []
    for words in (
        f"{EXTRACT} --cache {url}",
        f"{FIT} --cache {url} --mirror {tmp_path}/mirror --out {tmp_path}/run --dask 1",
        f"cache show 00 --cache {url}",
        f"cache ls --cache {url} --json",
        f"cache verify --cache {served.url}",
        f"cache ls --cache {s3_bucket}-not-there/cache",
        f"cache ls --cache {served.url}/nothing",
    ):
        command = [sys.executable, "-m", "featpipe", *shlex.split(words)]
        environment = {**os.environ, **s3.environment, **given, **where}
        done = subprocess.run(command, env=environment, capture_output=True, cwd=here)
        said.append(done.stdout + done.stderr)
    objects = FeatureCache(url).location
    names = [item["path"] for part in obstore.list(objects._store) for item in part]
    assert len(names) > 10
    said += [bytes(obstore.get(objects._store, name).bytes()) for name in names]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert any(path.name == "run.json" for path in files)
    said += [path.read_bytes() for path in files]
    for secret in (ACCESS, SECRET, TOKEN, PASSWORD):
        assert not [text for text in said if secret.encode() in text]
