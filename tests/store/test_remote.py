"""A cache somewhere else gives the same rows as a folder, in few requests, and is never trusted."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featpipe.errors import CacheCorrupt, CacheUnreachable, FeaturesNotCached, RequestError, StimulusNotCached
from featpipe.store import FeatureCache
from featpipe.store.location import _objects as objects
from featpipe.store.location import _web as web
from featpipe.store.location import locate
from featpipe.testing import file_server, proxy, s3_environment

pytestmark = pytest.mark.usefixtures("impatient_disk")
KINDS = ["file", "memory", "s3", "http"]


@pytest.fixture
def place(request, tmp_path, indexed):
    """Put arrays where a URL of some kind reads them: called with a function that writes into a root."""

    def put(kind, write):
        if kind in ("memory", "s3"):
            url = "memory://" + tmp_path.name if kind == "memory" else request.getfixturevalue("s3_bucket")
            write(f"{url}/cache")
            return f"{url}/cache"
        write(tmp_path / "cache")
        if kind == "file":
            return f"file://{tmp_path}/cache"
        indexed(tmp_path / "cache")
        return request.getfixturevalue("server").url

    return put


@pytest.fixture
def server(tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    with file_server(tmp_path / "cache") as running:
        yield running


@pytest.fixture
def published(tmp_path, make_writer, fill, indexed, server):
    """A server of a cache with a complete array: the server, the array's key, its rows."""
    writer, rows = make_writer(tmp_path / "cache")
    array = fill(writer, rows)
    indexed(tmp_path / "cache")
    return server, array.key, rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", ["none", "zstd-fast"])
def test_rows_ids_and_records_are_those_of_a_folder(place, make_writer, fill, make_manifest, kind, codec):
    made = {}
    url = place(kind, lambda root: made.update(array=fill(*make_writer(root, codec=codec))))
    rows = made["array"].read()
    cache = FeatureCache(url)
    array = cache.array(made["array"].key)
    scattered = np.array([20, 0, 0, 9, 8, 3])
    np.testing.assert_array_equal(array.read(), rows)
    np.testing.assert_array_equal(array.read(scattered), rows[scattered])
    assert array.ids == make_manifest(21).ids
    assert array.manifest == make_manifest(21)
    assert (array.complete, array.missing, len(array.commits())) == (True, [], 3)
    assert (array.nbytes, array.provenance) == (made["array"].nbytes, {"batch_size": 8})
    assert cache.keys() == [array.key]
    assert cache.verify() == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_said_and_the_rest_is_read(place, make_writer, fill, kind):
    made = {}
    url = place(kind, lambda root: made.update(array=fill(*make_writer(root), shards=[0, 2])))
    array = FeatureCache(url).array(made["array"].key)
    assert (array.missing, array.complete) == ([1], False)
    np.testing.assert_array_equal(array.read(np.array([16, 7])), made["array"].read(np.array([16, 7])))
    with pytest.raises(StimulusNotCached, match="1 of 2 stimuli have no row"):
        array.read(np.array([7, 8]))
    with pytest.raises(FeaturesNotCached, match="There is no array '0000"):
        FeatureCache(url).array("0" * 64)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_rows_that_come_later_are_found(place, make_writer, fill, kind):
    made = {}
    url = place(kind, lambda root: made.update(writer=make_writer(root)))
    writer, rows = made["writer"]
    fill(writer, rows, shards=[0])
    array = FeatureCache(url).array(writer.array.key)
    assert array.missing == [1, 2]
    fill(writer, rows, shards=[1, 2])
    np.testing.assert_array_equal(array.read(), rows)


@pytest.mark.parametrize("codec", ["none", "zstd-fast"])
def test_http_asks_rarely(tmp_path, make_writer, fill, indexed, server, codec):
    writer, rows = make_writer(tmp_path / "cache", codec=codec)
    key = fill(writer, rows).key
    indexed(tmp_path / "cache")
    cache = FeatureCache(server.url)
    array = cache.array(key)
    assert array.complete
    assert array.ids
    assert len(server.requests()) <= 4  # index, zarr.json, seal, stimuli
    server.forget()
    array.read()
    assert _shards_asked(server) == [1, 1, 1]
    server.forget()
    np.testing.assert_array_equal(array.read(np.array([0, 7, 20, 1])), rows[[0, 7, 20, 1]])
    assert max(_shards_asked(server)) <= 2


def _shards_asked(server):
    return list(Counter(asked["path"] for asked in server.requests() if "/c/" in asked["path"]).values())


def test_s3_asks_rarely(s3_bucket, make_writer, fill, monkeypatch):
    writer, rows = make_writer(f"{s3_bucket}/cache")
    key = fill(writer, rows).key
    asked = []
    for name in ("get", "get_range", "head", "list_with_delimiter", "get_ranges"):
        _counting(monkeypatch, name, asked)
    array = FeatureCache(f"{s3_bucket}/cache").array(key)
    assert array.complete
    assert len(asked) <= 4, asked
    asked.clear()
    np.testing.assert_array_equal(array.read(), rows)
    assert asked == ["get_ranges"] * 3


def _counting(monkeypatch, name, asked):
    original = getattr(objects.obstore, name)

    def counted(*args, **kwargs):
        asked.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(objects.obstore, name, counted)


def test_far_rows_of_a_large_shard_come_without_what_lies_between(
    tmp_path, make_writer, fill, indexed, server
):
    writer, rows = make_writer(tmp_path / "cache", shape=(600_000,), n_stimuli=8)
    key = fill(writer, rows).key
    indexed(tmp_path / "cache")
    array = FeatureCache(server.url).array(key)
    server.forget()
    np.testing.assert_array_equal(array.read(np.array([0, 7])), rows[[0, 7]])
    came = [_length(asked["range"]) for asked in server.requests() if asked["range"]]
    assert sum(came) < 3 * rows[0].nbytes
    assert len(came) <= 3


def _length(asked):
    start, stop = asked.removeprefix("bytes=").split("-")
    return int(stop) - int(start) + 1


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_line_that_is_cut_gives_right_rows_or_says_so(place, make_writer, fill, s3, monkeypatch, kind):
    made = {}
    url = place(kind, lambda root: made.update(array=fill(*make_writer(root, shape=(40_000,)))))
    rows, key = made["array"].read(), made["array"].key
    monkeypatch.setattr(objects, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.01)
    with proxy(s3.url if kind == "s3" else url, latency=0.01, drop_after=700_000, drop_every=2) as line:
        if kind == "s3":
            for name, value in s3_environment(line.url).items():
                monkeypatch.setenv(name, value)
            through = objects.Objects(url)
        else:
            through = web.Web(line.url)
        array = _open_at(through, key)
        np.testing.assert_array_equal(array.read(), rows)
        assert line.counts()["dropped"]
        line.change(drop_after=0)
        with pytest.raises(CacheUnreachable, match="cannot be reached"):
            array.read()


def _open_at(location, key):
    cache = FeatureCache("memory://none")
    cache.location = location
    return cache.array(key)


def test_a_server_that_is_gone_is_given_up_soon(tmp_path, published):
    server, key, _ = published
    array = FeatureCache(server.url).array(key)
    assert array.complete
    server.close()
    began = time.monotonic()
    with pytest.raises(CacheUnreachable, match=r"cannot be reached: .*refused.*Check the network"):
        array.read()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("faults", "error", "said"),
    [
        (
            {"redirect": {"/arrays/": "http://localhost:9/"}},
            RequestError,
            "sends readers on to another server",
        ),
        ({"status": {"/arrays/": 403}}, CacheUnreachable, r"refuses access \(status 403\).*netrc"),
        ({"status": {"/arrays/": 500}}, CacheUnreachable, "cannot be reached: status 500"),
        ({"status": {"/arrays/": 418}}, CacheUnreachable, "answered with status 418"),
        ({"status": {"/arrays/": 404}}, CacheCorrupt, "not there, but what stands beside it needs it"),
        ({"status": {"/index.jsonl": 404}}, FeaturesNotCached, r"no .*/index\.jsonl.*cache push"),
    ],
)
def test_what_a_server_refuses_is_said(published, monkeypatch, faults, error, said):
    server, key, _ = published
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.01)
    server.misbehave(**faults)
    with pytest.raises(error, match=said):
        FeatureCache(server.url).array(key).read()


def test_a_busy_server_is_asked_again(published):
    server, key, rows = published
    server.misbehave(status={"/": 503}, times=2)
    np.testing.assert_array_equal(FeatureCache(server.url).array(key).read(), rows)


def test_ranges_that_are_ignored_or_wrong_are_refused_and_whole_files_are_not(
    tmp_path, make_writer, fill, indexed, server, monkeypatch
):
    writer, rows = make_writer(tmp_path / "cache", shape=(600_000,), n_stimuli=8)
    key = fill(writer, rows).key
    indexed(tmp_path / "cache")
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.01)
    array = FeatureCache(server.url).array(key)
    server.misbehave(ignore_range=True)
    np.testing.assert_array_equal(array.read(), rows)  # a whole file is a whole file
    with pytest.raises(RequestError, match=r"with the whole file: it does not serve ranges.*nginx"):
        array.read(np.array([5]))
    server.misbehave(shift_range=1)
    with pytest.raises(CacheUnreachable, match="from byte 12000000 on with others"):
        array.read(np.array([5]))
    server.misbehave(length_off=1)
    with pytest.raises(CacheUnreachable, match="cannot be reached"):
        array.read()


@pytest.mark.parametrize(
    ("kind", "name"),  # behind a web server the index holds the spec itself
    [*itertools.product(["memory", "http"], ["zarr", "seal", "stimuli", "commit"]), ("memory", "spec")],
)
def test_a_flipped_byte_in_a_small_file_is_seen(place, make_writer, fill, tmp_path, kind, name):
    made = {}
    shards = [0] if name == "commit" else None
    url = place(kind, lambda root: made.update(array=fill(*make_writer(root), shards=shards)))
    array = made["array"]
    file = {
        "zarr": f"{array.base}/data.zarr/features/zarr.json",
        "seal": f"{array.base}/sealed.json",
        "stimuli": f"stimuli/{array.stimuli_digest}/stimuli.json",
        "spec": f"{array.base}/spec.json",
        "commit": f"{array.base}/commits/0.json",
    }[name]
    here = array.location
    content = here.read(file, 1 << 20)
    rng = np.random.default_rng(0)
    for at in rng.choice(len(content), 12, replace=False):
        broken = bytearray(content)
        broken[at] ^= 1 << int(rng.integers(7))
        here.replace(file, bytes(broken))
        with pytest.raises((CacheCorrupt, RequestError)):  # another format is a wrong request
            _read_all(FeatureCache(url).array(array.key))


def _read_all(array):
    return array.read(np.array([0])), array.ids


def test_a_flipped_byte_in_a_shard_is_found_by_verify(published, tmp_path):
    server, key, _ = published
    array = FeatureCache(tmp_path / "cache").array(key)
    _flip(array.shard_path(1), 5)
    problems = FeatureCache(server.url).verify()
    assert [(problem.shard, problem.rows) for problem in problems] == [(1, (8, 16))]


def _flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_index_that_lies_is_refused(published, tmp_path):
    server, _, _ = published
    line = json.loads((tmp_path / "cache" / "index.jsonl").read_text())
    for change in ({"key": "../../etc"}, {"shards": [[0, 1 << 40]]}, {"spec": {"format": 1}}):
        (tmp_path / "cache" / "index.jsonl").write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises((CacheCorrupt, RequestError), match=r"index\.jsonl, line 1,"):
            web.Web(server.url).names("arrays")
    (tmp_path / "cache" / "index.jsonl").write_text(json.dumps(line)[:-9] + "\n")
    with pytest.raises(CacheCorrupt, match=r"line 1, is damaged.*cache push.*makes the list again"):
        web.Web(server.url).names("arrays")


@pytest.mark.parametrize("kind", ["memory", "s3", "http"])
def test_what_travels_to_workers_names_the_place_only(place, make_writer, fill, monkeypatch, kind):
    made = {}
    url = place(kind, lambda root: made.update(array=fill(*make_writer(root))))
    cache = FeatureCache(url)
    cache.array(made["array"].key).read()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    sent = pickle.dumps(cache)
    assert len(sent) < 500
    assert b"not-a-secret" not in sent
    assert pickle.loads(sent).keys() == cache.keys()


def test_a_web_server_is_not_written_to(published, make_manifest):
    server, _, _ = published
    with pytest.raises(RequestError, match="can only be read"):
        FeatureCache(server.url).add_stimuli(make_manifest(5))
    with pytest.raises(RequestError, match="can only be read"):
        FeatureCache(server.url).remove(FeatureCache(server.url).keys())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/cache", "begins with s3://, gs://, http://"),
        ("s3://user:word@bucket/cache", r"no user, password.*'s3://bucket/cache'"),
        ("https://host/cache?token=secret", r"no user, password, query.*'https://host/cache'\."),
        ("s3:///cache", "names no bucket"),
        ("https://host/a/../b", "has a part"),
        ("simplecache::s3://b/c", "cannot be at"),
        ("file://elsewhere/cache", "write file:///FOLDER"),
    ],
)
def test_a_url_that_is_none_of_a_cache_is_refused_without_repeating_secrets(url, said):
    with pytest.raises(RequestError, match=said) as told:
        locate(url)
    assert "word" not in str(told.value).replace("password", "")
    assert "secret" not in str(told.value)


def test_without_credentials_it_is_said_in_plain_words():
    asked = "error performing PUT http://169.254.169.254/latest/api/token in 1s, after 3 retries"
    told = objects.Objects("memory://plain")._unreachable(OSError(asked))
    assert "needs credentials, and none were found. Set AWS_ACCESS_KEY_ID" in str(told)
    assert "169" not in str(told)


def test_a_profile_is_read_where_nothing_else_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "given")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert not objects._has_profile()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert objects._has_profile()
    assert objects._profile_credentials()()["access_key_id"] == "a"
    (tmp_path / "credentials").unlink()
    assert not objects._has_profile()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(RequestError, match=r"profile of ~/\.aws gives no credentials.*nobody"):
        objects._profile_credentials()


def test_the_password_of_a_host_comes_from_netrc_and_goes_nowhere_else(published, tmp_path, monkeypatch):
    server, key, rows = published
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password unmistakable\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = FeatureCache("memory://none")
    cache.location = web.Web(server.url)
    np.testing.assert_array_equal(cache.array(key).read(), rows)
    assert all(asked["headers"]["authorization"].startswith("Basic ") for asked in server.requests())
    assert b"unmistakable" not in pickle.dumps(cache)
    assert "unmistakable" not in repr(cache.location)


def test_a_proxy_of_the_environment_is_used(published, monkeypatch):
    server, _, _ = published
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    location = web.Web("http://cache.invalid")
    assert location._pool.proxy is not None
    monkeypatch.setenv("no_proxy", "cache.invalid")
    assert web.Web("http://cache.invalid")._pool.proxy is None


def test_arrays_are_opened_beside_one_another(tmp_path, make_writer, fill, indexed, server, make_spec):
    from featpipe.features._settle import cached_arrays

    for number in range(6):
        fill(*make_writer(tmp_path / "cache", layer=f"layer{number}"))
    indexed(tmp_path / "cache")
    server.misbehave(delay=0.2)
    began = time.monotonic()
    assert len(cached_arrays(server.url)) == 6
    assert time.monotonic() - began < 6 * 2 * 0.2
    assert Path(tmp_path / "cache" / "index.jsonl").exists()
    shutil.rmtree(tmp_path / "cache")


def test_what_can_only_be_read_refuses_every_way_to_write():
    location = FeatureCache("http://127.0.0.1:9/cache").location
    ways = [
        lambda: location.create("a", [b""]),
        lambda: location.create_shard("a", "b", [b""]),
        lambda: location.create_folder("a", {"b": b""}, last="b"),
        lambda: location.replace("a", b""),
        lambda: location.replace_if("a", b"", None),
        lambda: location.set_aside("a", "b"),
        lambda: location.remove("a"),
    ]
    for way in ways:
        with pytest.raises(RequestError, match="can only be read"):
            way()
