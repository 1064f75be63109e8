"""Caches that a stranger made: a good one, and what a stranger may have done to it, by name.

A stranger can write any file, and make keys, checksums, commit records, seal and index agree with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from functools import partial

import numpy as np
import pytest

from featpipe.spec import FeatureSpec, canonical_json, digest_of
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.store._codec import crc32c
from featpipe.store._index import INDEX, CacheIndex, index_line

BIG = 2**53 - 1  # the largest whole number of canonical JSON
ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202etxt.\r\n\x00\x7f"


def _manifest(n_stimuli=21, name="tiny", suffix=""):
    ids = tuple(f"bild_{row}{suffix}" for row in range(n_stimuli))
    return StimulusManifest(ids, tuple(hashlib.sha256(text.encode()).hexdigest() for text in ids), name, "")


def make(root, manifest=None, provenance=None, **spec):
    """Write arrays of both kinds, uncompressed and compressed, and an index."""
    cache, manifest = FeatureCache(root), manifest or _manifest()
    cache.add_stimuli(manifest, shard_rows=8)
    rows = np.random.default_rng(3).standard_normal((len(manifest), 64, 8, 8)).astype("float32")
    given = {"model": "imported:tiny", "weights": "0" * 64, "layer": "layer1", "preprocessing": None} | spec
    for codec in ("none", "zstd-fast", "blosc-lz4"):
        named = FeatureSpec(**(given | {"element": codec}))
        writer = cache.writer(
            named, manifest.digest, row_shape=rows.shape[1:], dims=("channel", "height", "width"), codec=codec
        )
        for shard in range(writer.array.layout.n_shards):
            part = writer.array.layout.rows_of(shard)
            writer.publish(shard, rows[part.start : part.stop], provenance or {"batch_size": 8})
    reindex(root)
    return root


def reindex(root):
    """Write the index that `push` would."""
    lines = {}
    for folder in (root / "arrays").iterdir():
        committed = [int(path.stem) for path in (folder / "commits").iterdir()]
        spec = json.loads((folder / "spec.json").read_bytes())
        lines[folder.name] = index_line(
            folder.name, spec, committed, sealed=(folder / "sealed.json").exists()
        )
    (root / INDEX).write_bytes(CacheIndex(lines).encode())


def arrays(root, codec=None):
    """Return the folders of arrays, all or those of one codec."""
    specs = {f: json.loads((f / "spec.json").read_bytes()) for f in sorted((root / "arrays").iterdir())}
    return [folder for folder, spec in specs.items() if codec in (None, spec["element"])]


def write(path, value):
    """Write a document with the checksum that it should have."""
    content = {name: item for name, item in value.items() if name != "checksum"}
    path.write_bytes(canonical_json(content | {"checksum": digest_of(content)}))


def change(path, **fields):
    """Replace fields of a document with a checksum."""
    write(path, json.loads(path.read_bytes()) | fields)


def change_commits(folder, edit):
    """Change the commit records, and let the seal repeat them."""
    records = []
    for path in sorted((folder / "commits").iterdir()):
        record = json.loads(path.read_bytes())
        edit(record)
        write(path, record)
        records.append(json.loads(path.read_bytes()))
    change(folder / "sealed.json", commits=records)


def say_of_shard(record, size, sha256):
    record.update(size=size, sha256=sha256)


def change_metadata(root, edit):
    """Change what all arrays say about their features."""
    for folder in arrays(root):
        path = folder / "data.zarr/features/zarr.json"
        value = json.loads(path.read_bytes())
        edit(value, value["codecs"][0]["configuration"])
        path.write_bytes(canonical_json(value))


def change_spec(root, **fields):
    """Change the spec of all arrays, and their keys with it."""
    for folder in arrays(root):
        document = json.loads((folder / "spec.json").read_bytes()) | fields
        content = canonical_json(document)
        key = hashlib.sha256(content).hexdigest()
        (folder / "spec.json").write_bytes(content)
        change(folder / "sealed.json", key=key)
        change_commits(folder, lambda record, key=key: record.update(key=key))
        folder.rename(folder.parent / key)
    reindex(root)


def change_stimuli(root, **fields):
    (path,) = (root / "stimuli").glob("*/stimuli.json")
    change(path, **fields)
    return path


def forge_chunk(root, codec, chunk):
    """Put another chunk into every shard, with index, checksum and commit record to match."""
    for folder in arrays(root, codec):
        packed = chunk + crc32c(chunk)
        index = struct.pack("<QQ", 0, len(packed))
        content = packed + index + crc32c(index)
        for path in (folder / "data.zarr/features/c").glob("*/0/0/0"):
            path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        change_commits(folder, partial(say_of_shard, size=len(content), sha256=digest))


def nested(depth, inner=0):
    for _ in range(depth):
        inner = [inner]
    return inner


def zstd_frame(size_field, blocks):
    """Return a zstd frame: its descriptor and size field, and blocks that repeat one byte 128 KiB often."""
    block = (1 << 1) | ((128 << 10) << 3)
    body = b"".join((block | (number == blocks - 1)).to_bytes(3, "little") + b"x" for number in range(blocks))
    return b"\x28\xb5\x2f\xfd" + size_field + body


# What a stranger may have done: name -> (what, actions that must fail).

VARIANTS = {}


def variant(name, *must_fail):
    def register(function):
        VARIANTS[name] = function, must_fail
        return function

    return register


def _metadata(name, edit, *must_fail):
    VARIANTS[f"metadata: {name}"] = lambda root: change_metadata(root, edit), must_fail or ("array",)


def _shape(*shape, chunk=None):
    def edit(value, sharding):
        value["shape"] = list(shape)
        if chunk is not None:
            value["chunk_grid"]["configuration"]["chunk_shape"] = list(chunk[0])
            sharding["chunk_shape"] = list(chunk[1])

    return edit


_metadata("2^31 stimuli", _shape(2**31, 64, 8, 8), "read", "ids")
_metadata("2^23 stimuli", _shape(2**23, 64, 8, 8), "read", "ids")
_metadata("2^53 stimuli", _shape(BIG, 64, 8, 8))
_metadata("no stimuli", _shape(0, 64, 8, 8))
_metadata("fewer stimuli", _shape(5, 64, 8, 8), "manifest")
_metadata("a row of 2^80 bytes", _shape(21, BIG, BIG, chunk=([8, BIG, BIG], [8, BIG, BIG])))
_metadata("a chunk of 1 GiB", _shape(21, 1 << 23, 2, 2, chunk=([8, 1 << 23, 2, 2],) * 2), "read")
_metadata(
    "2^31 rows in shards of 65536 and 512 MiB",
    _shape(2**31, 2048, 1, 1, chunk=([65536, 2048, 1, 1],) * 2),
    "read",
    "ids",
)
_metadata("many axes", _shape(21, *[1] * 900))
_metadata("another rank", _shape(21, 64, chunk=([8, 64], [8, 64])))
_metadata("negative", _shape(21, -64, 8, 8))
_metadata("texts", _shape("21", "64"))
_metadata("nothing", lambda value, _: value.clear())
_metadata("shape is an object", lambda value, _: value.update(shape={"0": 21}))
_metadata("true", _shape(True, True, chunk=([True, True], [True, True])))
_metadata("no codecs", lambda value, _: value.update(codecs=[]))
_metadata("codec gzip", lambda _, sharding: sharding["codecs"].append({"name": "gzip"}))
_metadata(
    "a shard in a shard", lambda value, sharding: sharding.update(codecs=value["codecs"][:]) or nest(value)
)
_metadata("attributes", lambda value, _: value.update(attributes={"x": nested(300)}))
_metadata("escapes", lambda value, _: value.update(dimension_names=["stimulus", ESCAPES, "b", "c"]), "verify")
_metadata("dtype", lambda value, _: value.update(data_type="object"))
_metadata("fill value", lambda value, _: value.update(fill_value=0))
_metadata("storage transformers", lambda value, _: value.update(storage_transformers=[{"name": "x"}]))


def nest(value):
    inner = json.loads(canonical_json({**value, "codecs": []}))
    value["codecs"][0]["configuration"]["codecs"] = [inner]


BODIES = {
    "deep": b"[" * 500_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "less deep": b'{"a":' + b"[" * 320 + b"]" * 320 + b"}",
    "10 MiB": b'{"a":"' + b"x" * (10 << 20) + b'"}',
    "many lists": b'{"a":[' + b"[]," * 50_000 + b"[]]}",
    "twice": b'{"format":1,"format":1}',
    "NaN": b'{"format":NaN}',
    "infinite": b'{"format":1e999}',
    "float": b'{"format":1.0}',
    "huge number": b'{"format":' + b"9" * 4000 + b"}",
    "huger number": b'{"format":' + b"9" * 900_000 + b"}",
    "surrogate": b'{"format":1,"x":"\\ud800"}',
    "escapes": canonical_json({"format": ESCAPES * 100}),
    "newer": b'{"format":2}',
    "list": b"[]",
    "text": b'"x"',
    "UTF-16": '{"format":1}'.encode("utf-16"),
    "empty": b"",
    "zeros": bytes(1000),
    "another's": b'{"checksum":"' + b"0" * 64 + b'","format":1}',
}
FILES = {
    "spec.json": "array",
    "data.zarr/features/zarr.json": "array",
    "commits/0.json": "verify",
    "sealed.json": "verify",
    "data.zarr/stimulus/c/0": "verify",
    "stimuli.json": "manifest",
    INDEX: "keys",
}


def _body(file, body):
    def damage(root):
        places = [folder / file for folder in arrays(root)]
        if file == "stimuli.json":
            places = list((root / "stimuli").glob("*/stimuli.json"))
        for place in [root / INDEX] if file == INDEX else places:
            place.write_bytes(BODIES[body])

    return damage


for _file, _action in FILES.items():
    for _name in (
        BODIES
        if _file in ("commits/0.json", INDEX)
        else ("deep", "10 MiB", "surrogate", "empty", "another's")
    ):
        empty_index = _file == INDEX and _name == "empty"
        VARIANTS[f"{_file} is {_name}"] = _body(_file, _name), () if empty_index else (_action,)


def _commits(name, /, *must_fail, **fields):
    def damage(root):
        for folder in arrays(root):
            change_commits(folder, lambda record: record.update(fields))

    VARIANTS[f"commit: {name}"] = damage, must_fail or ("verify",)


_commits("size 2^53", size=BIG)
_commits("size 64 MiB", size=64 << 20)
_commits("size 0", size=0)
_commits("size below 0", size=-BIG)
_commits("size true", size=True)
_commits("other rows", rows=[0, BIG])
_commits("no rows", rows=[])
_commits("rows within rows", rows=nested(50))
_commits("another shard", shard=7)
_commits("no digest", sha256="x")
_commits("no static", static={})
_commits("strange static", static={"../../../etc/passwd": "0" * 64, ESCAPES: 1})
_commits("provenance of a megabyte", "nothing", provenance={"batch_size": 8, "x": "y" * 300_000})
_commits("nested provenance", provenance={"batch_size": nested(310)})
_commits("provenance of lists", "nothing", provenance={"layer_order": nested(9), "weights_label": [ESCAPES]})
_commits("escapes", "nothing", provenance={"weights_label": ESCAPES, ESCAPES: ESCAPES, "layer_order": 1})
_commits("no object", provenance=[])
_commits("reused nothing", "nothing", reused=[1, None, nested(20)])


@variant("seal: more commits", "verify")
def _(root):
    for folder in arrays(root):
        seal = json.loads((folder / "sealed.json").read_bytes())
        change(folder / "sealed.json", commits=seal["commits"] * 300)


@variant("seal: commits swapped", "verify")
def _(root):
    for folder in arrays(root):
        seal = json.loads((folder / "sealed.json").read_bytes())
        change(folder / "sealed.json", commits=seal["commits"][::-1])


@variant("seal: no records", "verify")
def _(root):
    for folder in arrays(root):
        change(folder / "sealed.json", commits=[1, "x", None])


def _stimuli(name, /, *must_fail, **fields):
    VARIANTS[f"stimuli: {name}"] = lambda root: change_stimuli(root, **fields), must_fail or ("verify",)


_pairs = [[f"bild_{row}", "0" * 64] for row in range(21)]
_stimuli("one id", images=[["a", "0" * 64]] * 21)
_stimuli("digests that are none", images=[[name, "g" * 64] for name, _ in _pairs])
_stimuli("digests of the wrong length", images=[[name, "0" * 65] for name, _ in _pairs])
_stimuli("numbers", images=[[1, 2]] * 21)
_stimuli("other pairs", images=_pairs)
_stimuli("5 000 images", images=[[f"x{row}", "0" * 64] for row in range(5_000)])
_stimuli("no images", images=[])
_stimuli("objects", images={"a": "b"})
_stimuli("nested", images=nested(300))
_stimuli("no name", name=None)
_stimuli("rows per shard", shard_rows=BIG)
_stimuli("escapes as name", "nothing", name=ESCAPES)
_stimuli("one more field", more=1)


@variant("stimuli: a name that is no text", "verify")
def _(root):
    (path,) = (root / "stimuli").glob("*/stimuli.json")
    path.write_bytes(path.read_bytes().replace(b'"name":"tiny"', b'"name":"\\ud800"'))


def _spec(name, /, *must_fail, **fields):
    VARIANTS[f"spec: {name}"] = lambda root: change_spec(root, **fields), must_fail or ("array",)


_spec("no text", layer=1)
_spec("model is a list", model=["a"])
_spec("stimuli elsewhere", "manifest", stimuli="../../../etc")
_spec("stimuli nowhere", "manifest", stimuli="0" * 64)
_spec("stimuli no text", stimuli=1)
_spec("nested", layer=nested(300))
_spec("view is a text", view="1")
_spec("call is a float", call=0.5)
_spec("more fields", more=1)
_spec("model_args", model_args=[1, 2])
_spec("model_args nested", model_args={"a": {"b": 1}})
_spec("preprocessing", preprocessing=[1])
_spec("a reduction", reduction="grid:999999999", weights="0" * 63)
_spec("escapes", "nothing", layer=ESCAPES, model=f"imported:{ESCAPES}", augmentation=ESCAPES)
_spec("a long name", "nothing", layer="x" * 200_000)


def _chunk(name, codec, chunk, *must_fail):
    VARIANTS[f"chunk: {name}"] = lambda root: forge_chunk(root, codec, chunk), must_fail or ("read",)


_CHUNK = 8 * 64 * 64 * 4  # bytes of one, decoded
_chunk("a zstd bomb without its size", "zstd-fast", zstd_frame(b"\x00\x58", 30_000))
_chunk("a zstd bomb with a size of 2^60", "zstd-fast", zstd_frame(b"\xe0" + (2**60).to_bytes(8, "little"), 1))
_chunk(
    "a zstd bomb that claims to fit", "zstd-fast", zstd_frame(b"\xa0" + _CHUNK.to_bytes(4, "little"), 9000)
)
_chunk("fewer rows than there are", "zstd-fast", zstd_frame(b"\xa0" + (_CHUNK // 4).to_bytes(4, "little"), 1))
_chunk("nothing at all", "zstd-fast", b"\x28\xb5\x2f\xfd")
_chunk("no frame", "zstd-fast", b"x" * 100)
_chunk("two frames", "zstd-fast", zstd_frame(b"\xa0" + _CHUNK.to_bytes(4, "little"), 1) * 2)
_blosc = (_CHUNK).to_bytes(4, "little") + (0).to_bytes(4, "little") + (100).to_bytes(4, "little")
_chunk("a blosc header and nothing", "blosc-lz4", b"\x02\x01\x21\x04" + _blosc + b"\xff" * 84)
_chunk("blosc of another size", "blosc-lz4", b"\x02\x01\x21\x04" + b"\xff" * 96)
_chunk("blosc with types of 0 bytes", "blosc-lz4", b"\x02\x01\x21\x00" + _blosc + b"\x00" * 84)


def _shard_index(name, *entries):
    def damage(root):
        for folder in arrays(root):
            index = struct.pack(f"<{len(entries)}Q", *entries)
            content = bytes(1000) + index + crc32c(index)
            for path in (folder / "data.zarr/features/c").glob("*/0/0/0"):
                path.write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            change_commits(folder, partial(say_of_shard, size=len(content), sha256=digest))

    VARIANTS[f"shard index: {name}"] = damage, ("read",)


_shard_index("behind the end", 0, 2**40)
_shard_index("overflow", 2**64 - 1, 1001)
_shard_index("backwards", 2**63, 2**63 + 1000)
_shard_index("absent", 2**64 - 1, 2**64 - 1)
_shard_index("too large", 0, 1000)
_shard_index("longer", 0, 500, 500, 500)


def _ids_chunk(name, content):
    def damage(root):
        for folder in arrays(root):
            (folder / "data.zarr/stimulus/c/0").write_bytes(content)

    VARIANTS[f"ids: {name}"] = damage, ("verify",)


_ids_chunk("2^32 of them", struct.pack("<I", 2**32 - 1))
_ids_chunk("2^32 bytes long", struct.pack("<II", 21, 2**32 - 1) + b"x" * 100)
_ids_chunk("millions of empty ones", struct.pack("<I", 2_000_000) + bytes(16_000_000))
_ids_chunk("fewer", struct.pack("<II", 1, 1) + b"x")
_ids_chunk("no text", struct.pack("<I", 21) + struct.pack("<I", 1) * 21 + b"\xff")


def _index(name, edit, *must_fail):
    def damage(root):
        lines = [json.loads(line) for line in (root / INDEX).read_bytes().splitlines()]
        (root / INDEX).write_bytes(b"".join(canonical_json(line) + b"\n" for line in edit(lines)))

    VARIANTS[f"index: {name}"] = damage, must_fail or ("keys",)


def _each(**fields):
    return lambda lines: [line | fields for line in lines]


_index("keys that climb", _each(key="../../../../etc/passwd"))
_index("keys from the root", _each(key="/etc/passwd"))
_index("keys that are no digest", _each(key="x"))
_index("another's key", _each(key="0" * 64))
_index("no spec", _each(spec={}))
_index("stimuli that climb", lambda lines: [_relined(line, stimuli="../../etc") for line in lines])
_index("a spec of nothing else", lambda lines: [_relined(line, x=nested(100)) for line in lines])
_index("a million shards", _each(shards=[[0, 1_000_000]]))
_index("many shards", _each(shards=[[0, 1 << 18]]), "nothing")
_index("2^53 shards", _each(shards=[[0, BIG]]))
_index("many ranges", _each(shards=[[2 * n, 2 * n + 1] for n in range(70_000)]), "nothing")
_index("ranges below 0", _each(shards=[[-5, 3]]))
_index("ranges that overlap", _each(shards=[[0, 3], [1, 2]]))
_index("no ranges", _each(shards=[0, 1, 2]))
_index("sealed, but is not", _each(sealed=1))
_index("the same again", lambda lines: lines * 3000, "nothing")
_index("deep", lambda lines: [line | {"spec": {"stimuli": "0" * 64, "x": nested(320)}} for line in lines])


def _relined(line, **fields):
    spec = line["spec"] | fields
    return line | {"spec": spec, "key": hashlib.sha256(canonical_json(spec)).hexdigest()}


def pytest_generate_tests(metafunc):
    """Run a test that takes `damage` once a variant; in a folder there is no index to damage."""
    if "damage" not in metafunc.fixturenames:
        return
    names = list(VARIANTS)
    if "s3_bucket" in metafunc.fixturenames:
        names = metafunc.module.IN_A_BUCKET
    elif "served" not in metafunc.fixturenames:
        names = [name for name in names if not name.startswith(("index", INDEX))]
    metafunc.parametrize(("name", "damage", "must_fail"), [(n, *VARIANTS[n]) for n in names], ids=names)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A good cache of three arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        return make(tmp_path_factory.mktemp("good") / "cache")


@pytest.fixture
def make_strange():
    """Return what makes a cache with any spec, stimuli and provenance."""
    return make
