"""Reductions against naive ones; the random projection against its definition."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from featpipe.errors import UnsupportedOutput
from featpipe.reduce import SparseProjection, dims, make_reducer, sparse_signs
from featpipe.spec import REDUCTION_VERSIONS, Reduction


@pytest.fixture
def maps(rng):
    return torch.from_numpy(rng.standard_normal((3, 5, 6, 6), dtype=np.float32))


@pytest.fixture
def tokens(rng):
    return torch.from_numpy(rng.standard_normal((3, 11, 7), dtype=np.float32))  # 2 prefix + 3×3


def reduced(text, output, **known):
    return make_reducer(Reduction.parse(text), **known)(output)


def test_maps(maps):
    assert torch.equal(reduced("none", maps), maps)
    torch.testing.assert_close(reduced("mean", maps), maps.mean((2, 3)))
    torch.testing.assert_close(reduced("max", maps), maps.amax((2, 3)))
    torch.testing.assert_close(reduced("grid:3", maps), maps.reshape(3, 5, 3, 2, 3, 2).mean((3, 5)))


def test_tokens_leave_the_prefix_out(tokens):
    known = {"prefix_tokens": 2}
    torch.testing.assert_close(reduced("mean", tokens, **known), tokens[:, 2:].mean(1))
    torch.testing.assert_close(reduced("max", tokens, **known), tokens[:, 2:].amax(1))
    torch.testing.assert_close(reduced("cls", tokens, **known), tokens[:, 0])
    grid = tokens[:, 2:].transpose(1, 2).reshape(3, 7, 3, 3)
    torch.testing.assert_close(reduced("grid:3", tokens, **known), grid)


def test_a_grid_finer_than_the_map_is_refused(maps, tokens):
    with pytest.raises(UnsupportedOutput, match=r"grid:99 .* map is 6×6.*Write grid:6 or less"):
        reduced("grid:99", maps)
    with pytest.raises(UnsupportedOutput, match="map is 3×3"):
        reduced("grid:4", tokens, prefix_tokens=2)
    with pytest.raises(UnsupportedOutput, match="map is 2×6"):
        reduced("grid:3", maps[:, :, :2])


def test_a_sequence_before_its_prefix_has_none(rng):
    patches = torch.from_numpy(rng.standard_normal((3, 9, 7), dtype=np.float32))
    torch.testing.assert_close(reduced("mean", patches, prefix_tokens=1), patches.mean(1))
    with pytest.raises(UnsupportedOutput, match="cls cannot be taken"):
        reduced("cls", patches, prefix_tokens=1)


def test_tokens_of_an_oblong_image_may_be_square_in_number(rng):
    """13×15 patches and a class token are 14×14 tokens, 4×9 patches are 6×6."""
    tokens = torch.from_numpy(rng.standard_normal((3, 196, 7), dtype=np.float32))
    known = {"prefix_tokens": 1, "input_size": (208, 240)}
    torch.testing.assert_close(reduced("mean", tokens, **known), tokens[:, 1:].mean(1))
    torch.testing.assert_close(reduced("mean", tokens[:, 1:], **known), tokens[:, 1:].mean(1))
    with pytest.raises(UnsupportedOutput, match="grid:2 cannot be taken"):
        reduced("grid:2", tokens[:, :36], input_size=(64, 144))


@pytest.mark.parametrize("text", ["none", "mean", "max", "grid:2", "srp:4"])
def test_channels_last_gives_the_same_rows(maps, text):
    last = maps.permute(0, 2, 3, 1).contiguous()
    expected = reduced(text, maps)
    torch.testing.assert_close(reduced(text, last, layout="channels_last"), expected)
    torch.testing.assert_close(reduced(text, maps.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 4, 3), (2, 3, 4, 4), (2, 3, 1, 4, 4)])
@pytest.mark.parametrize("text", ["none", "mean", "max", "cls", "grid:2", "srp:4:1"])
def test_dims_name_every_axis_of_a_row(shape, text):
    output = torch.zeros(shape)
    try:
        rows = reduced(text, output, prefix_tokens=0 if text == "grid:2" else 1)
    except UnsupportedOutput:
        return
    assert len(dims(Reduction.parse(text), output.ndim)) == rows.ndim - 1
    assert rows.is_contiguous()


@pytest.mark.parametrize(
    ("text", "shape", "known", "possible"),
    [
        ("mean", (2, 3), {}, "none, srp"),
        ("cls", (2, 3, 4, 4), {}, "grid, max, mean, none, srp"),
        ("cls", (2, 5, 3), {}, "grid|max"),
        ("cls", (2, 5, 3), {"prefix_tokens": 4, "class_token": False}, "none, srp"),
        ("grid:2", (2, 6, 3), {"prefix_tokens": 1}, "cls, max, mean, none, srp"),
        ("mean", (2, 1, 3), {"prefix_tokens": 1}, "cls, none, srp"),
        ("max", (2, 3, 4, 4, 4), {}, "none, srp"),
    ],
)
def test_an_output_without_that_axis_says_what_is_possible(text, shape, known, possible):
    with pytest.raises(UnsupportedOutput, match=f"cannot be taken of here.*{possible}"):
        reduced(text, torch.zeros(shape), name="here", **known)


def test_every_reduction_has_a_version():
    assert REDUCTION_VERSIONS.keys() == {"none", "mean", "max", "cls", "grid", "srp"}


@pytest.mark.parametrize(("n_features", "size"), [(1, 3), (3, 5), (100, 20), (1000, 7)])
def test_projection_is_a_product_with_its_matrix(rng, n_features, size):
    positions, signs = sparse_signs(n_features, size, 3)
    matrix = np.zeros(n_features * size)
    matrix[positions] = signs
    matrix = matrix.reshape(size, n_features).T * np.sqrt(np.floor(np.sqrt(n_features)) / size)
    rows = rng.standard_normal((9, n_features))
    found = SparseProjection(size, 3)(torch.from_numpy(rows).float()).numpy()
    np.testing.assert_allclose(found, rows @ matrix, rtol=1e-4, atol=1e-4)


def test_projection_is_pinned():
    """The same on every machine and with every version of NumPy and torch; a change needs a new version."""
    positions, signs = sparse_signs(10_000, 64, 7)
    digest = hashlib.sha256(positions.astype("<i8").tobytes() + signs.astype("<i1").tobytes()).hexdigest()
    assert digest == "84b41e2116c0662e4b215d733ce7d0041160791918110c573213c91a39ec9441"


def test_projection_depends_on_its_seed_alone():
    one, again, other = (sparse_signs(500, 50, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_first_components_do_not_depend_on_how_many_follow():
    few, many = sparse_signs(500, 10, 0), sparse_signs(500, 50, 0)
    for a, b in zip(few, many, strict=True):
        assert np.array_equal(a, b[: len(a)])


def test_entries_have_the_stated_density_and_balance():
    positions, signs = sparse_signs(90_000, 300, 0)
    expected = 300 * 90_000 / 300
    assert abs(len(positions) - expected) < 5 * np.sqrt(expected)
    assert abs(signs.sum(dtype=np.int64)) < 5 * np.sqrt(expected)
    gaps = np.diff(positions)
    assert abs(gaps.mean() - 300) < 5 * 300 / np.sqrt(expected)
    assert abs((gaps == 1).mean() - 1 / 300) < 5 * np.sqrt(1 / 300 / expected)


def test_distances_survive_projection(rng):
    """Johnson and Lindenstrauss: squared distances keep within a few standard errors, √(2/size)."""
    rows = torch.from_numpy(rng.standard_normal((20, 20_000), dtype=np.float32))
    ratio = torch.pdist(SparseProjection(2000, 0)(rows)) ** 2 / torch.pdist(rows) ** 2
    assert abs(ratio.mean() - 1) < 0.02
    assert (ratio - 1).abs().max() < 5 * np.sqrt(2 / 2000)


def test_length_varies_as_documented():
    row = torch.zeros(1, 400)
    row[0, :4] = torch.tensor([3.0, 1.0, -2.0, 1.0])
    squared = torch.cat([SparseProjection(10, seed)(row) ** 2 for seed in range(400)]).sum(1).double()
    norm, fourth, s = float((row**2).sum()), float((row**4).sum()), 20
    variance = (2 * norm**2 + (s - 3) * fourth) / 10
    assert abs(squared.mean() - norm) < 5 * np.sqrt(variance / 400)
    assert 0.6 < squared.var() / variance < 1.6


def test_a_row_does_not_depend_on_its_batch(rng):
    rows = torch.from_numpy(rng.standard_normal((32, 4000), dtype=np.float32))
    projection = SparseProjection(64, 0)
    assert torch.equal(projection(rows)[8:16], projection(rows[8:16]))
    assert torch.equal(projection(rows.flip(0)).flip(0), projection(rows))


@pytest.mark.gpu
def test_projection_is_the_same_on_a_gpu(rng):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = torch.from_numpy(rng.standard_normal((16, 50_000), dtype=np.float32))
    projection = SparseProjection(256, 0)
    torch.testing.assert_close(projection(rows.cuda()).cpu(), projection(rows), rtol=1e-5, atol=1e-4)
