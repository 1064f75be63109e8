"""``cache push`` and ``cache pull`` as people use them: what they print, and what a second machine gets."""

from __future__ import annotations

import json

import pytest

from featpipe.cli.cache._moving import _summary
from featpipe.store import Copied, FeatureCache
from featpipe.testing import file_server

pytest.importorskip("obstore")
FIT = (
    "fit baseline_ridge --data table:table --set features__layers=stem --set features__reduce=mean --cv 3 --set "
    "features__model=python:tiny.py:build"
)


def test_push_shows_what_moves_and_then_that_all_is_there(featpipe, tmp_path):
    code, out, err = featpipe(f"cache push {tmp_path}/there --cache cache --layers stem")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["key", "model", "layer", "reduce", "stimuli", "rows", "to", "move", "state"]
    assert sorted(line.split()[3] for line in lines[1:3]) == ["grid:2", "mean"]
    assert all(line.endswith(" new") for line in lines[1:3])
    assert lines[3].startswith("2 arrays, of which 2 shards moved, ")
    assert lines[3].endswith("B/s).")
    code, out, err = featpipe(f"cache push {tmp_path}/there --cache cache --layers stem")
    assert (code, out.splitlines()[-1], err) == (0, "2 arrays, and everything is there.", "")


def test_a_dry_run_moves_nothing(featpipe, featpipe_json, tmp_path):
    code, out, _ = featpipe(f"cache push {tmp_path}/there --cache cache --dry-run")
    assert code == 0
    assert out.splitlines()[-1].startswith("3 arrays, of which 3 shards would move, ")
    planned = featpipe_json(f"cache pull cache --cache {tmp_path}/there --dry-run")
    assert [array["state"] for array in planned["arrays"]] == ["new"] * 3
    assert planned["bytes"] == 0
    assert not (tmp_path / "there").exists()


def test_json_says_what_moved(featpipe_json, world, tmp_path):
    done = featpipe_json(f"cache push {tmp_path}/there --cache cache")
    assert done["bytes"] == sum(array.nbytes for array in FeatureCache(world / "cache").arrays())
    assert [array["moved_shards"] for array in done["arrays"]] == [1, 1, 1]
    again = featpipe_json(f"cache push {tmp_path}/there --cache cache")
    assert (again["bytes"], [array["state"] for array in again["arrays"]]) == (0, ["there"] * 3)


def test_damage_ends_with_exit_code_1_and_its_rows(featpipe, featpipe_json, tmp_path):
    assert featpipe(f"cache push {tmp_path}/there --cache cache")[0] == 0
    array = FeatureCache(tmp_path / "there").arrays()[0]
    path = array.shard_path(0)
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = featpipe(f"cache pull {tmp_path}/there --cache {tmp_path}/second")
    assert code == 1
    assert "3 arrays, of which 2 shards moved" in out
    assert err.startswith("featpipe: Shard 0 (rows 0 to 39) of array ")
    done = featpipe_json(f"cache pull {tmp_path}/there --cache {tmp_path}/third", code=1)
    assert [a["key"] for a in done["arrays"] if a["problems"]] == [array.key]
    assert len(done["problems"]) == 1


def test_shards_of_others_are_told():
    said = _summary([], {"a": Copied(there=2, kept=1)}, 1.0)
    assert (
        said == "0 arrays, and everything is there. 1 shards are there with other bytes and stay as they are."
    )


def test_a_second_machine_fits_from_a_bucket_and_over_http(featpipe, s3_bucket, tmp_path):
    """It has nothing but the URL: listing, one layer out of many, and a fit with the scores of the original."""
    to = f"{s3_bucket}/shared"
    assert featpipe(f"cache push {to} --cache cache")[0] == 0
    assert featpipe(f"cache push {tmp_path}/public --cache {to}")[0] == 0
    assert featpipe(f"{FIT} --cache cache --out {tmp_path}/local")[0] == 0
    expected = (tmp_path / "local" / "scores.csv").read_text()
    with file_server(tmp_path / "public") as server:
        for number, url in enumerate((to, server.url)):
            code, out, err = featpipe(f"cache ls --cache {url}")
            assert (code, out.splitlines()[-1].split(",")[0]) == (0, "3 arrays"), err
            code, _, err = featpipe(f"{FIT} --cache {url} --out {tmp_path}/run{number}")
            assert code == 0, err
            assert (tmp_path / f"run{number}" / "scores.csv").read_text() == expected
            code, _, err = featpipe(f"cache pull {url} --cache {tmp_path}/mine{number} --layers head")
            assert code == 0, err
            (array,) = FeatureCache(tmp_path / f"mine{number}").arrays()
            assert array.spec.layer == "head"
            assert array.complete
    index = [json.loads(line) for line in (tmp_path / "public" / "index.jsonl").read_text().splitlines()]
    assert [line["sealed"] for line in index] == [True] * 3
