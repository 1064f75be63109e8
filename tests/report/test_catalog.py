"""The catalogue of a cache finds arrays, says how to read them, and is safe whatever names are in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from featpipe import CachedFeatures
from featpipe.cli import main
from featpipe.errors import CacheCorrupt, RequestError
from featpipe.report import write_catalog
from featpipe.report._catalog import catalog_entries
from featpipe.spec import FeatureSpec, Preprocessing, Reduction
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache

pytest.importorskip("jinja2")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
PREP = Preprocessing(36, (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SAID = {
    "weights_label": "a1_in1k",
    "device": "cpu",
    "versions": {"torch": "2.9.1"},
    "written": "2026-03-04T05:06:07+00:00",
    "source": "/home/anna/images",
    "weights_asked": "/home/anna/weights.pth",
}


def _add(cache, *, layer, name="photos", width=3, n_shards=2, said=SAID, **changes):
    ids = tuple(f"{name}_{row}" for row in range(16))
    manifest = StimulusManifest(ids, tuple(hashlib.sha256(i.encode()).hexdigest() for i in ids), name, "")
    cache.add_stimuli(manifest, shard_rows=8)
    spec = FeatureSpec(
        **{"model": "timm:resnet50", "weights": "ab" * 32, "preprocessing": PREP, **changes}, layer=layer
    )
    writer = cache.writer(spec, manifest.digest, row_shape=(width,), dims=("channel",), codec="none")
    rows = np.random.default_rng(width).standard_normal((16, width)).astype(spec.store_dtype)
    for shard in range(n_shards):
        writer.publish(shard, rows[8 * shard : 8 * shard + 8], {"layer_order": width, **said})
    return writer.array


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    cache = FeatureCache(tmp_path / "it's a cache")
    _add(cache, layer="layer1", width=5)
    _add(cache, layer="layer3", width=40)
    _add(cache, layer="layer3", width=20, store_dtype="float16")
    _add(cache, layer="layer3", width=30, reduction=Reduction("max"), n_shards=1)
    _add(cache, layer="head", width=7, model="torchvision:alexnet", name="nsd", weights="cd" * 32)
    return cache


def _entries(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(data[1])


@pytest.fixture
def browsed(tmp_path):
    """Return a function that opens a page in a browser and gives what stands there then."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"

    def dom(page, fragment=""):
        words = [
            browser,
            *f"--headless --no-sandbox --disable-gpu {quiet}".split(),
            f"--user-data-dir={tmp_path / 'user'}",
        ]
        done = subprocess.run(
            [*words, "--dump-dom", f"file://{page}{fragment}"], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return dom


def _rows(dom):
    """Return the text of the cells of each row that the browser shows."""
    rows = re.findall(r'<tr class="row[^>]*>(.*?)</tr>', dom, re.S)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", row)] for row in rows]


def test_the_page_has_every_array_with_its_figures(cache, tmp_path):
    entries = _entries(write_catalog(cache, tmp_path / "index.html"))
    assert {entry["key"] for entry in entries} == set(cache.keys())
    by_layer = {(e["layer"], e["reduce"], e["dtype"]): e for e in entries}
    part = by_layer["layer3", "max", "float32"]
    assert (part["rows"], part["missing"], part["shape"], part["written"]) == (16, 8, [30], "2026-03-04")
    assert part["raw_bytes"] == 8 * 30 * 4
    assert ["Versions", "torch 2.9.1"] in part["facts"]
    assert ["Device", "cpu"] in part["facts"]


def test_the_page_needs_nothing_else_and_tells_no_paths_of_writers(cache, tmp_path):
    text = write_catalog(cache, tmp_path / "index.html").read_text()
    assert re.findall(r"""(?:src|href)=|url\(|@import|https?:""", text) == []
    assert "/home/anna" not in text


@pytest.mark.slow
def test_searching_and_sorting_in_a_browser(cache, tmp_path, browsed):
    page = write_catalog(cache, tmp_path / "index.html")
    dom = browsed(page, "#q=layer3")
    assert [row[2] for row in _rows(dom)] == ["layer3"] * 3
    assert "3 of 5 arrays" in dom
    assert [row[4] for row in _rows(browsed(page, "#q=layer3&sort=-Shape"))] == ["40", "30", "20"]
    assert [row[6] for row in _rows(browsed(page, "#q=LAYER3%20incomplete"))] == ["8 of 16"]
    alone = browsed(page, "#q=nsd")  # the only one is opened
    assert "CachedFeatures(" in alone
    assert "torch 2.9.1" in alone


@pytest.mark.slow
def test_hostile_names_are_text(cache, tmp_path, browsed):
    said = SAID | {"weights_label": EVIL, "device": EVIL, "versions": {EVIL: EVIL}}
    _add(cache, layer=EVIL, width=2, model=EVIL, name=EVIL, said=said)
    page = write_catalog(cache, tmp_path / "index.html", url=f"s3://{EVIL}")
    assert EVIL not in page.read_text()
    dom = browsed(page, "#q=owned")  # found, and opened as the only one
    (row,) = _rows(dom)
    assert [row[column] for column in (0, 1, 2, 5)] == [EVIL] * 4
    assert "CachedFeatures(" in dom
    assert "<title>Feature cache" in dom
    assert "<img" not in dom


@pytest.mark.slow
def test_many_arrays_are_shown_bit_by_bit(cache, tmp_path, browsed, monkeypatch):
    entry, *_ = catalog_entries(cache, "cache")
    many = [entry | {"key": f"{n:064x}", "layer": f"layer{n}"} for n in range(4000)]
    monkeypatch.setattr("featpipe.report._catalog.catalog_entries", lambda *_: many)
    page = write_catalog(cache, tmp_path / "index.html")
    dom = browsed(page)
    assert len(_rows(dom)) == 250
    assert "Show all 4000" in dom
    assert [row[2] for row in _rows(browsed(page, "#q=layer3999"))] == ["layer3999"]


def test_the_python_that_it_shows_reads_just_that_array(cache, tmp_path):
    """Each names as much as tells its array from the others, and no more than `CachedFeatures` knows."""
    pytest.importorskip("xarray")
    for entry in _entries(write_catalog(cache, tmp_path / "index.html")):
        array = cache.array(entry["key"])
        there = array.ids[:8]
        by_id, _, by_key = entry["python"].partition("# or all rows")
        known = {"ids": np.array(there)}
        exec(by_id, known)
        np.testing.assert_array_equal(known["X"], array.read(np.arange(8)).astype(np.float32))
        assert isinstance(known["features"], CachedFeatures)
        if not entry["missing"]:
            exec("#" + by_key, known)
            np.testing.assert_array_equal(known["rows"].values, array.read())


def test_the_command_that_it_shows_exports_that_array(cache, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for entry in _entries(write_catalog(cache, tmp_path / "index.html")):
        program, *words = shlex.split(entry["shell"])
        assert program == "featpipe"
        with contextlib.suppress(SystemExit):
            main([*words, "--json"])
        assert json.loads(capfd.readouterr().out)["key"] == entry["key"]


def test_readers_are_told_where_they_find_the_cache(cache, tmp_path):
    page = write_catalog(cache, tmp_path / "index.html", url="https://anna:secret@example.org/cache?token=1")
    for entry in _entries(page):
        assert "cache='https://example.org/cache'" in entry["python"]
        assert f"featpipe cache pull https://example.org/cache {entry['key'][:16]}" in entry["shell"]
    assert "secret" not in page.read_text()
    assert "token" not in page.read_text()


def test_a_damaged_array_hides_no_other(cache, tmp_path):
    bad, *_ = cache.keys()
    (tmp_path / "it's a cache" / "arrays" / bad / "spec.json").write_text("{}")
    with pytest.raises(CacheCorrupt):
        write_catalog(cache, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()
    told = {}
    assert len(_entries(write_catalog(cache, tmp_path / "index.html", unreadable=told.__setitem__))) == 4
    assert list(told) == [bad]


def test_a_folder_is_no_page(cache, tmp_path):
    with pytest.raises(RequestError, match=r"is a folder; name a file, such as .*index\.html"):
        write_catalog(cache, tmp_path)
