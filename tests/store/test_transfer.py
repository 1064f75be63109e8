"""Copying between caches: bit by bit, checked on arrival, going on after any stop, replacing nothing."""

from __future__ import annotations

import json
import secrets
import threading

import numpy as np
import pytest

from featpipe.errors import CacheUnreachable, FeaturesNotCached, RequestError
from featpipe.store import ArrayChoice, FeatureCache, Problem, plan_transfer, publish_index, transfer
from featpipe.store._commits import commit_name
from featpipe.store._index import INDEX
from featpipe.store.copying._copy import Budget
from featpipe.store.copying._published import read_index
from featpipe.testing import file_server

obstore = pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("impatient_disk")
LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture
def source(tmp_path, make_writer, fill):
    """A cache of three arrays of three shards each."""
    for layer in LAYERS:
        fill(*make_writer(tmp_path / "source", layer=layer))
    return FeatureCache(tmp_path / "source")


@pytest.fixture(params=["folder", "memory", "s3"])
def target(request, tmp_path):
    """The name of a cache that is not there yet."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/team/cache"
    return f"memory://{secrets.token_hex(8)}/cache" if request.param == "memory" else str(tmp_path / "target")


def copy(source, target, **choice):
    """Copy arrays, from cache or name to cache or name."""
    here, there = (c if isinstance(c, FeatureCache) else FeatureCache(c) for c in (source, target))
    keys, _ = ArrayChoice(**choice).of(here)
    moves, problems = plan_transfer(here, there, keys)
    copied = transfer(here, there, moves)
    publish_index(there.location, [key for key, done in copied.items() if done.moved])
    return moves, copied, problems


def files(cache):
    """Return every file that readers look at, by name, wherever the cache lies."""
    found, folders = {}, ["arrays", "stimuli"]
    while folders:
        folder = folders.pop()
        for name in cache.location.names(folder):
            path = f"{folder}/{name}"
            try:
                found[path] = cache.location.read(path, 1 << 30)
            except FileNotFoundError:
                folders.append(path)
    return found


def same(one, other):
    assert files(FeatureCache(one) if isinstance(one, str) else one) == files(FeatureCache(other))


def key_of(cache, layer):
    (key,) = ArrayChoice(layers=[layer]).of(cache)[0]
    return key


def test_a_copy_is_equal_bit_by_bit_there_and_back(source, target, tmp_path):
    moves, copied, _ = copy(source, target)
    assert [(move.state, move.shards) for move in moves] == [("new", 3)] * 3
    assert sum(done.size for done in copied.values()) == sum(a.nbytes for a in source.arrays())
    same(source, target)
    assert FeatureCache(target).verify() == []
    copy(target, tmp_path / "back")
    same(source, str(tmp_path / "back"))


def test_what_is_there_is_not_copied_again(source, target):
    copy(source, target)
    moves, copied, _ = copy(source, target)
    assert [(move.state, move.size) for move in moves] == [("there", 0)] * 3
    assert [(done.moved, done.there, done.kept) for done in copied.values()] == [(0, 3, 0)] * 3


def test_a_part_of_a_cache_brings_its_stimuli_and_nothing_else(source, target):
    copy(source, target, layers=["layer2"])
    there = FeatureCache(target)
    assert there.keys() == [key_of(source, "layer2")]
    assert there.verify() == []


def test_an_incomplete_array_moves_as_far_as_it_is_there_and_goes_on(tmp_path, make_writer, fill, target):
    writer, rows = make_writer(tmp_path / "source")
    fill(writer, rows, shards=[1])
    copy(tmp_path / "source", target)
    assert FeatureCache(target).array(writer.array.key).missing == [0, 2]
    fill(writer, rows)
    (move,), copied, _ = copy(tmp_path / "source", target)
    assert (move.state, move.shards) == ("goes on", 2)
    assert copied[move.array.key].there == 1
    same(str(tmp_path / "source"), target)
    assert np.array_equal(FeatureCache(target).array(move.array.key).read(), rows)


def test_data_come_first_and_what_makes_them_count_last(source, monkeypatch):
    there, order = FeatureCache(f"memory://{secrets.token_hex(8)}"), []
    create = type(there.location).create
    monkeypatch.setattr(
        type(there.location),
        "create",
        lambda self, name, parts: order.append(name) or create(self, name, parts),
    )
    key = key_of(source, "layer1")
    copy(source, there, keys=[key])
    place = {name.removeprefix(f"arrays/{key}/"): number for number, name in enumerate(order)}
    for shard in range(3):
        assert place[f"data.zarr/features/c/{shard}/0/0/0"] < place[f"commits/{shard}.json"]
    assert list(place)[-2:] == ["sealed.json", "spec.json"]
    assert next(iter(place)).startswith("stimuli/")


def test_a_stop_anywhere_leaves_nothing_that_a_reader_takes_for_complete(source, monkeypatch):
    """Fail at each write in turn: no array is complete before all of it is there, and the next run goes on."""
    there = FeatureCache(f"memory://{secrets.token_hex(8)}")
    kind, allowed = type(there.location), 0
    create = kind.create

    def failing(self, name, parts):
        nonlocal left
        left -= 1
        if left < 0:
            raise CacheUnreachable("cut off")
        return create(self, name, parts)

    monkeypatch.setattr(kind, "create", failing)
    for allowed in range(60):
        left = allowed % 5 + 1
        try:
            copy(source, there, layers=["layer1"])
            break
        except CacheUnreachable:
            for array in FeatureCache(there.root).arrays():
                assert array.complete
                array.read()
    assert allowed > 3
    left = 1 << 30
    copy(source, there)
    same(source, str(there.root))


def test_a_different_array_under_the_same_key_is_never_overwritten(source, target, make_spec, tmp_path):
    copy(source, target, layers=["layer1"])
    key, location = key_of(source, "layer1"), FeatureCache(target).location
    name = f"arrays/{key}/data.zarr/features/zarr.json"
    location.replace(name, location.read(name, 1 << 20).replace(b'"channel"', b'"chanel"'))
    before = files(FeatureCache(target))
    _, copied, _ = copy(source, target)
    (problem,) = copied[key].problems
    assert "different array under the key" in problem
    assert key in problem
    assert {name: content for name, content in files(FeatureCache(target)).items() if key in name} == {
        name: content for name, content in before.items() if key in name
    }
    assert [done.moved for k, done in copied.items() if k != key] == [3, 3]


def test_shards_that_another_machine_computed_stay(tmp_path, source, make_writer, fill, target):
    writer, rows = make_writer(tmp_path / "other", layer="layer1")
    fill(writer, rows + np.float32(1e-6), shards=[0])
    copy(tmp_path / "other", target)
    _, copied, _ = copy(source, target)
    done = copied[writer.array.key]
    assert (done.moved, done.kept, done.problems) == (2, 1, [])
    there = FeatureCache(target).array(writer.array.key)
    assert np.array_equal(there.read(np.arange(8)), rows[:8] + np.float32(1e-6))
    assert there.complete
    assert FeatureCache(target).verify() == []


@pytest.mark.parametrize(
    ("what", "expected"), [("equal", (2, 1, 0)), ("torn", (3, 0, 0)), ("other", (2, 0, 1))]
)
def test_a_shard_without_a_commit_is_adopted_or_set_aside(
    tmp_path, source, make_writer, fill, target, what, expected
):
    """Its writer was killed, or is about to commit it."""
    writer, rows = make_writer(tmp_path / "other", layer="layer1")
    fill(writer, rows + np.float32(what == "other"))
    copy(tmp_path / "other", target)
    there = FeatureCache(target)
    for name in (commit_name(writer.array.base, 1), f"{writer.array.base}/sealed.json", *_rest(writer.array)):
        there.location.remove(name)
    if what == "torn":
        place = writer.array.shard_name(1)
        there.location.replace(place, there.location.read(place, 1 << 20)[:-1])
    _, copied, _ = copy(source, target, layers=["layer1"])
    done = copied[writer.array.key]
    assert (done.moved, done.there, done.kept) == expected
    assert FeatureCache(target).verify() == []
    assert FeatureCache(target).array(writer.array.key).complete
    assert bool(there.location.names("aside")) == (what == "torn")


def _rest(array):
    """The other shards, with their commits."""
    for shard in (0, 2):
        yield commit_name(array.base, shard)
        yield f"{array.base}/data.zarr/features/c/{shard}"


@pytest.mark.parametrize("place", ["shard", "commit", "spec", "stimuli"])
def test_damage_at_the_source_is_refused_and_the_rest_goes_on(source, target, place):
    key = key_of(source, "layer2")
    array = source.array(key)
    path = {
        "shard": array.shard_path(1),
        "commit": array.folder / "commits/1.json",
        "spec": array.folder / "spec.json",
        "stimuli": source.root / "stimuli" / array.stimuli_digest / "stimuli.json",
    }[place]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _, copied, problems = copy(source, target)
    there = FeatureCache(target)
    texts = [*problems.values(), *(text for done in copied.values() for text in done.problems)]
    if place == "stimuli":
        assert len(texts) == 3
        assert there.keys() == []
        return
    assert len(texts) == 1
    if place == "shard":
        assert "Shard 1 (rows 8 to 15)" in texts[0]
    if place != "spec":
        assert key in texts[0]
        assert there.array(key).missing == [1]
        assert sorted(there.location.names(f"arrays/{key}/data.zarr/features/c")) == ["0", "2"]
    assert there.verify() == []
    assert all(there.array(k).complete for k in source.keys() if k != key)


def test_a_cache_is_not_copied_to_itself(source, tmp_path):
    (tmp_path / "link").symlink_to(source.root)
    for name in (source.root, f"file://{source.root}", tmp_path / "link"):
        with pytest.raises(RequestError, match="itself"):
            plan_transfer(source, FeatureCache(name), source.keys())


def test_another_number_of_rows_in_a_shard_is_refused(source, target):
    (digest,) = source.stimuli_digests()
    FeatureCache(target).add_stimuli(source.stimuli(digest).manifest, shard_rows=16)
    _, copied, _ = copy(source, target)
    assert all("16 rows per shard" in done.problems[0] for done in copied.values())
    assert FeatureCache(target).keys() == []


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"keys": ["ffff"]}, ["array 'ffff'"]),
        ({"model": "timm:none"}, ["model 'timm:none'", "imported:tiny"]),
        ({"layers": ["layer1", "layr*"]}, ["layer 'layr*'", "layer1, layer2, layer3"]),
        ({"stimuli": "other"}, ["stimulus set 'other'", "tiny ("]),
    ],
)
def test_a_choice_of_nothing_says_what_there_is(source, choice, words):
    with pytest.raises(FeaturesNotCached) as error:
        ArrayChoice(**choice).of(source)
    assert all(word in str(error.value) for word in words)


def test_conditions_hold_together(source):
    digest = source.stimuli_digests()[0]
    keys, _ = ArrayChoice(model="imported:*", layers=["layer[13]"], stimuli=digest[:8]).of(source)
    assert keys == sorted([key_of(source, "layer1"), key_of(source, "layer3")])
    assert ArrayChoice(keys=[keys[0][:10]], stimuli="tiny").of(source)[0] == [keys[0]]


def test_pushes_at_once_lose_no_line_of_the_index(source, target):
    barrier = threading.Barrier(3)

    def push(layer):
        barrier.wait()
        copy(source.root, target, layers=[layer])

    threads = [threading.Thread(target=push, args=[layer]) for layer in LAYERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = FeatureCache(target).location.read(INDEX, 1 << 20).splitlines()
    assert [json.loads(line)["key"] for line in lines] == source.keys()
    same(source, target)


def test_the_same_push_at_once_gives_the_same_cache(source, target):
    barrier, results = threading.Barrier(3), []

    def push():
        barrier.wait()
        results.append(copy(source.root, target)[1])

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(done.problems == [] and done.kept == 0 for copied in results for done in copied.values())
    same(source, target)


def test_the_index_says_what_is_there_now(source, target):
    copy(source, target)
    there = FeatureCache(target)
    first = there.location.read(INDEX, 1 << 20)
    there.remove([key_of(source, "layer1")])
    assert not publish_index(there.location)  # done by what removed it
    assert b"layer1" not in there.location.read(INDEX, 1 << 20)
    copy(source, target)
    assert there.location.read(INDEX, 1 << 20) == first
    there.location.replace(INDEX, b"rubbish\n")
    copy(source, target)
    assert there.location.read(INDEX, 1 << 20) == first
    assert not publish_index(there.location)


def test_a_second_machine_reads_what_was_pushed_with_only_the_url(source, tmp_path):
    """Three requests open a sealed array (four with its rows' ids), and no other array is touched."""
    copy(source, tmp_path / "public")
    key = key_of(source, "layer2")
    with file_server(tmp_path / "public") as server:
        array = FeatureCache(server.url).array(key)
        assert array.complete
        assert [request["path"] for request in server.requests()] == [
            "/index.jsonl",
            f"/arrays/{key}/data.zarr/features/zarr.json",
            f"/arrays/{key}/sealed.json",
        ]
        assert np.array_equal(array.read(), source.array(key).read())
        copy_from = FeatureCache(server.url)
        keys, _ = ArrayChoice(layers=["layer2"]).of(copy_from)
        moves, _ = plan_transfer(copy_from, FeatureCache(tmp_path / "second"), keys)
        transfer(copy_from, FeatureCache(tmp_path / "second"), moves)
        others = [request["path"] for request in server.requests() if "/arrays/" in request["path"]]
        assert all(key in path for path in others)
    assert FeatureCache(tmp_path / "second").verify() == []
    assert FeatureCache(tmp_path / "second").keys() == [key]


def test_a_byte_that_a_server_changes_is_found_out(source, tmp_path):
    copy(source, tmp_path / "public")
    array = FeatureCache(tmp_path / "public").array(key_of(source, "layer2"))
    content = array.shard_path(2).read_bytes()
    array.shard_path(2).write_bytes(content[:7] + bytes([content[7] ^ 1]) + content[8:])
    with file_server(tmp_path / "public") as server:
        here, there = FeatureCache(server.url), FeatureCache(tmp_path / "second")
        moves, _ = plan_transfer(here, there, here.keys())
        copied = transfer(here, there, moves)
    (problem,) = copied[array.key].problems
    assert "Shard 2 (rows 16 to 20)" in problem
    assert there.array(array.key).missing == [2]
    assert there.verify() == []


def test_bytes_under_way_stay_within_the_budget():
    budget, under_way, most = Budget(100), 0, 0
    lock = threading.Lock()

    def take(size):
        nonlocal under_way, most
        with budget.of(size):
            with lock:
                under_way += min(size, 100)
                most = max(most, under_way)
            with lock:
                under_way -= min(size, 100)

    threads = [threading.Thread(target=take, args=[size]) for size in (40, 70, 30, 400, 100, 60) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 100


def test_what_was_removed_or_moved_aside_leaves_the_list(source, target):
    copy(source, target)
    there = FeatureCache(target)
    first, second, *_ = there.keys()
    there.remove([first])
    assert first not in read_index(there.location).arrays
    there.set_aside([Problem(second, 1, (8, 16), "", "")])
    line = read_index(there.location).arrays[second]
    assert (line["sealed"], line["shards"]) == (False, [[0, 1], [2, 3]])
