from __future__ import annotations

import hashlib
import json
import pickle
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from featpipe.errors import DuplicateIds, EmptySource, ImageTooLarge, StimulusError, UnsafePath
from featpipe.stimuli import StimulusSet
from featpipe.stimuli._arrays import require_layout

KINDS = ["npy", "npz", "npz-compressed", "h5", "h5-chunked", "zarr", "zarr-v2"]


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path):
    """Return a function that writes an array in some kind of file and gives its source."""

    def store(array, kind="npy"):
        if kind == "npy":
            np.save(tmp_path / "x.npy", array)
        elif kind.startswith("npz"):
            (np.savez_compressed if "-" in kind else np.savez)(tmp_path / "x.npz", images=array)
        elif kind.startswith("h5"):
            with h5py.File(tmp_path / "x.h5", "w") as file:
                chunks = {"chunks": (1, *array.shape[1:]), "compression": "gzip"} if "-" in kind else {}
                file.create_dataset("group/images", data=array, **chunks)
            return f"{tmp_path}/x.h5:group/images"
        else:
            zarr = pytest.importorskip("zarr")
            version = 2 if "-" in kind else 3
            zarr.create_array(
                str(tmp_path / "x.zarr"), data=array, zarr_format=version, chunks=(2, *array.shape[1:])
            )
        return tmp_path / f"x.{kind.split('-')[0]}"

    return store


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_one_set_however_it_is_kept(store, pixels, kind):
    found = pickle.loads(pickle.dumps(StimulusSet.from_source(store(pixels, kind))))
    assert found.ids == ("00000", "00001", "00002", "00003", "00004", "00005")
    assert found.digest == "668183f56ae95debf53516607d9abde5ef19bca0f206d63ec5433f6a7d0f3fc0"
    for row, wanted in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(found.open(row)), wanted)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_digest_is_of_type_shape_and_little_endian_pixels(store, rng, dtype):
    pixels = rng.integers(0, 65536, (2, 5, 7)).astype(dtype)
    digest = hashlib.sha256(b"featpipe-pixels uint16 5x7\n" + pixels[1].astype("<u2").tobytes())
    assert StimulusSet.from_source(store(pixels)).sha256[1] == digest.hexdigest()


def test_fortran_order_is_the_same_set(store, pixels):
    digest = StimulusSet.from_source(store(pixels)).digest
    assert StimulusSet.from_source(store(np.asfortranarray(pixels))).digest == digest


@pytest.mark.parametrize(
    "shape", [(2, 8, 9), (2, 8, 9, 1), (2, 1, 8, 9), (2, 3, 8, 9), (2, 4, 8, 9), (2, 8, 9, 4)]
)
def test_channels_are_found_where_they_can_only_be(store, rng, shape):
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    image = np.asarray(StimulusSet.from_source(store(pixels)).open(1))
    last = pixels[1] if shape[1] == 8 else pixels[1].transpose(1, 2, 0)
    wanted = np.broadcast_to(last.reshape(8, 9, -1), (8, 9, max(3, last.reshape(8, 9, -1).shape[-1])))
    if wanted.shape[-1] == 4:  # over white
        alpha = wanted[..., 3:] / 255
        wanted = wanted[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(image, wanted, atol=1)


def test_sixteen_bits_are_scaled_not_clipped(store):
    pixels = np.array([[[0, 128, 129, 257, 32768, 65535]]], dtype=np.uint16)
    image = StimulusSet.from_source(store(pixels)).open(0)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize(
    ("shape", "error", "match"),
    [
        ((0, 8, 9, 3), EmptySource, "holds no image"),
        ((8,), StimulusError, "not one of images. Wanted: "),
        ((2, 8, 0), StimulusError, "not one of images"),
        ((2, 2, 8, 9, 3), StimulusError, "not one of images"),
        ((8, 9, 3), StimulusError, r"looks like one image and not a stack. Save it as images\[np.newaxis\]"),
        ((2, 3, 8, 3), StimulusError, "either the second or the last axis can be the channels"),
        ((2, 8, 9, 2), StimulusError, "neither the second nor the last axis can be the channels"),
    ],
)
def test_a_shape_that_is_not_one_of_images_is_refused(store, shape, error, match):
    with pytest.raises(error, match=match):
        StimulusSet.from_source(store(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, bool, np.int64])
def test_other_types_say_how_to_convert(store, dtype):
    with pytest.raises(StimulusError, match=r"images are uint8 .* or uint16 .*np.round\(images \* 255\)"):
        StimulusSet.from_source(store(np.zeros((2, 8, 9), dtype)))


def test_an_array_of_huge_images_is_refused_before_any_is_read(store, pixels):
    with pytest.raises(ImageTooLarge, match=r"x.npy\[0\]' is too large: 9 × 8 = 72 pixels, where 71 are"):
        StimulusSet.from_source(store(pixels), max_pixels=71)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "x.npy", objects)
    np.savez(tmp_path / "x.npz", images=objects)
    with pytest.raises(StimulusError, match=r"holds Python objects \(a pickle\), which are never loaded"):
        StimulusSet.from_source(tmp_path / name)


def test_a_bare_pickle_called_npy_is_never_loaded(tmp_path):
    (tmp_path / "x.npy").write_bytes(pickle.dumps([1]))
    with pytest.raises(StimulusError, match="not a plain NumPy array, or holds Python objects"):
        StimulusSet.from_source(tmp_path / "x.npy")


def test_compressed_objects_are_never_loaded(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", images=np.array([None, {}], dtype=object))
    with pytest.raises(StimulusError, match=r"holds Python objects \(a pickle\)"):
        StimulusSet.from_source(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "h5-chunked"])
def test_a_truncated_file_is_named(store, pixels, tmp_path, kind):
    source = store(pixels, kind)
    path = tmp_path / f"x.{kind.split('-')[0]}"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(StimulusError, match=rf"{path.name}' cannot be read as"):
        StimulusSet.from_source(source)


def test_npz_may_hold_ids(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", images=pixels, ids=np.array(list("abcdef")))
    assert StimulusSet.from_source(tmp_path / "x.npz").ids == tuple("abcdef")
    np.savez(tmp_path / "x.npz", anything=pixels, ids=np.arange(6))
    assert StimulusSet.from_source(tmp_path / "x.npz").ids == tuple("012345")


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (["a"] * 6, DuplicateIds, r"'a': '.*images\[0\]' and '.*images\[1\]'"),
        (["a", "b"], StimulusError, "has 6 images and 2 ids"),
        (np.zeros((6, 2)), StimulusError, r"are float64 of shape \(6, 2\)"),
        (np.array([None] * 6, dtype=object), StimulusError, "a pickle"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, pixels, ids, error, match):
    np.savez(tmp_path / "x.npz", images=pixels, ids=ids)
    with pytest.raises(error, match=match):
        StimulusSet.from_source(tmp_path / "x.npz")


def test_an_npz_of_several_arrays_needs_one_called_images(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", left=pixels, right=pixels)
    with pytest.raises(StimulusError, match="has the arrays left, right; it needs one called images"):
        StimulusSet.from_source(tmp_path / "x.npz")


def test_the_nsd_brick_has_nsd_ids(tmp_path, pixels):
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = pixels
    found = StimulusSet.from_source(f"{tmp_path}/nsd_stimuli.hdf5:imgBrick")
    assert (found.name, found.ids[:2]) == ("nsd_stimuli", ("nsd-00000", "nsd-00001"))


@pytest.fixture
def linked(tmp_path, pixels):
    """An HDF5 file that reaches out in every way there is."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = pixels
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["own"] = pixels
        file["external"] = h5py.ExternalLink("other.h5", "/images")
        file["dangling"] = h5py.ExternalLink("gone.h5", "/images")
        file["group"] = h5py.ExternalLink("other.h5", "/")
        file["soft"] = h5py.SoftLink("/own")
        file["folder/inner"] = pixels
        layout = h5py.VirtualLayout(pixels.shape, pixels.dtype)
        layout[:] = h5py.VirtualSource("other.h5", "images", pixels.shape)
        file.create_virtual_dataset("virtual", layout)
        raw = [(str(tmp_path / "raw.bin"), 0, pixels.nbytes)]
        file.create_dataset("raw", pixels.shape, pixels.dtype, external=raw)
    return tmp_path / "x.h5"


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        (":external", UnsafePath, "goes through the link 'external'"),
        (":dangling", UnsafePath, "goes through the link 'dangling'"),
        (":group/images", UnsafePath, "goes through the link 'group'"),
        (":soft", UnsafePath, "goes through the link 'soft'"),
        (":virtual", UnsafePath, "keeps its values in other files"),
        (":raw", UnsafePath, "keeps its values in other files"),
        (
            ":no",
            StimulusError,
            "does not exist: no 'no' in '/', which has dangling, external, folder, group, own",
        ),
        (":own/no", StimulusError, "no 'no' in '/own', which has none, it is a dataset"),
        (":folder", StimulusError, "is a group, not a dataset. It has inner"),
        (":", StimulusError, "say which dataset holds the images: .*x.h5:NAME, NAME one of"),
        ("", StimulusError, "say which dataset holds the images"),
    ],
)
def test_a_dataset_outside_its_file_is_refused(linked, name, error, match):
    with pytest.raises(error, match=match):
        StimulusSet.from_source(f"{linked}{name}")


def test_a_zarr_codec_that_could_run_code_is_refused(store, pixels):
    source = store(pixels, "zarr-v2")
    metadata = json.loads((source / ".zarray").read_text())
    metadata["filters"] = [{"id": "pickle"}]
    (source / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(
        StimulusError, match="uses the codecs pickle, which are not among those that are safe"
    ):
        StimulusSet.from_source(source)


@pytest.mark.parametrize("kind", ["zarr", "zarr-v2"])
def test_a_zarr_array_with_missing_chunks_is_refused(store, pixels, kind):
    """Zarr would give blank images for them."""
    source = store(pixels, kind)
    next(file for file in source.rglob("*0") if file.is_file()).unlink()
    with pytest.raises(StimulusError, match="lacks 1 of 3 chunks, which would read as blank images"):
        StimulusSet.from_source(source)


@pytest.mark.parametrize("chunks", [None, (2, 8, 9, 3)])
def test_hdf5_images_that_were_never_written_are_refused(tmp_path, pixels, chunks):
    """HDF5 would give blank images for them."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("images", pixels.shape, pixels.dtype, chunks=chunks)
        if chunks:
            dataset[:4] = pixels[:4]
    with pytest.raises(StimulusError, match=r"lacks 1 of [13] chunks, which would read as blank images"):
        StimulusSet.from_source(f"{tmp_path}/x.h5:images")


def test_more_images_than_there_can_be_are_refused():
    with pytest.raises(StimulusError, match=r"the shape \(10000001, 8, 9\), which is not one of images"):
        require_layout((10_000_001, 8, 9), "x")


def test_zarr_metadata_that_claims_too_much_is_refused(store, pixels):
    source = store(pixels, "zarr")
    metadata = json.loads((source / "zarr.json").read_text())
    metadata["shape"][0] = 10**15
    (source / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StimulusError, match="claims 500000000000000 chunks"):
        StimulusSet.from_source(source)


def test_chunks_that_would_fill_the_memory_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (600, 1024, 1024), "u1", chunks=(600, 1024, 1024))
        file.create_dataset("many", (10**9, 8, 9), "u1", chunks=(1000, 8, 9))
    with pytest.raises(StimulusError, match=r"chunks of \(600, 1024, 1024\), which are 629145600 bytes each"):
        StimulusSet.from_source(f"{tmp_path}/x.h5:images")
    with pytest.raises(StimulusError, match="lacks 1000000 of 1000000 chunks"):
        StimulusSet.from_source(f"{tmp_path}/x.h5:many")


@pytest.mark.parametrize("kind", ["npy", "npz", "npz-compressed", "h5", "h5-chunked"])
def test_damage_gives_images_or_says_why_not(store, pixels, rng, kind):
    source = store(pixels, kind)
    path = Path(str(source).partition(":")[0])
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(40):
        stored = whole.copy()
        at = np.concatenate([rng.integers(0, 400, 3), rng.integers(-300, 0, 3)])  # headers and directories
        stored[at] = rng.integers(0, 256, 6)
        path.write_bytes(stored.tobytes())
        with suppress(StimulusError):
            stimuli = StimulusSet.from_source(source)
            assert stimuli.open(len(stimuli) - 1).mode == "RGB"


@pytest.mark.parametrize("text", ["[" * 100_000, "no json", "{" + " " * (1 << 20) + "}"])
def test_zarr_metadata_of_a_stranger_is_refused(tmp_path, text):
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "zarr.json").write_text(text)
    with pytest.raises(StimulusError, match="is not the metadata of a Zarr array"):
        StimulusSet.from_source(tmp_path / "x.zarr")


def test_a_zarr_group_says_which_arrays_it_has(tmp_path, pixels):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(str(tmp_path / "x.zarr"), mode="w").create_array("images", data=pixels)
    with pytest.raises(StimulusError, match=r"is not a Zarr array. Give the folder .*x.zarr/images"):
        StimulusSet.from_source(tmp_path / "x.zarr")
    assert len(StimulusSet.from_source(tmp_path / "x.zarr" / "images")) == 6
