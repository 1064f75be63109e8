"""The head sees the same channels of both images in each group, and convolves each image once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featpipe.errors import RequestError
from featpipe.tuning.rdms import _interleaved
from featpipe.tuning.rdms._interleaved import InterleavedHead, interleave


def _head(shape, **given):
    return InterleavedHead(shape, generator=torch.Generator().manual_seed(0), **given)


def _maps(shape, n=6, dtype=torch.float32):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_has_the_sizes_of_the_report():
    head = _head((256, 6, 6))
    assert head.convolution.in_channels == 512
    assert tuple(head.convolution.weight.shape) == (32, 512 // 16, 3, 3)
    assert tuple(head.linear.weight.shape) == (1, 128)
    assert head(*_maps((256, 6, 6), 2)[:, None]).shape == (1,)


def test_channels_of_the_two_images_alternate():
    A, B = torch.arange(3.0).reshape(1, 3, 1, 1), 10 + torch.arange(3.0).reshape(1, 3, 1, 1)
    assert interleave(A, B).flatten().tolist() == [0, 10, 1, 11, 2, 12]


@pytest.mark.parametrize("combine", [interleave, lambda A, B: torch.cat([A, B], dim=1)])
def test_each_group_sees_the_same_channels_of_both_images(combine):
    """Which channels of A and of B move the outputs of each group: equal sets, and not so when concatenated."""
    head = _head((8, 3, 3), channels=4, groups=4)
    A, B = (maps.requires_grad_() for maps in _maps((8, 3, 3), 2)[:, None])
    convolved = head.convolution(combine(A, B))
    seen = []
    for group in range(4):
        of_both = torch.autograd.grad(convolved[:, group].sum(), (A, B), retain_graph=True)
        seen.append([np.flatnonzero(part.abs().sum((0, 2, 3)).numpy()).tolist() for part in of_both])
    if combine is interleave:
        assert seen == [[[2 * group, 2 * group + 1]] * 2 for group in range(4)]
    else:
        assert all(not of_a or not of_b for of_a, of_b in seen)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(8, 6, 6), (8, 3, 3), (8, 4, 7)])  # pools of 2×2, 1×1, 2×2 with a rest
def test_pairs_by_sums_equal_the_naive_loop(shape, symmetric, monkeypatch):
    head, maps = _head(shape, groups=4, symmetric=symmetric).double(), _maps(shape, dtype=torch.float64)
    naive = torch.stack([torch.cat([head(a[None], b[None]) for b in maps]) for a in maps])
    monkeypatch.setattr(_interleaved, "_BLOCK_VALUES", 2 * len(maps) * head._n_values)  # blocks of two images
    torch.testing.assert_close(head.all_pairs(maps), naive)
    first, second = torch.tensor([0, 3, 5]), torch.tensor([2, 1, 4])
    torch.testing.assert_close(head.of_pairs(maps, first, second), naive[first, second])


def test_both_orders_are_averaged():
    A, B = _maps((8, 6, 6)), _maps((8, 6, 6)).flip(0)
    both, one = _head((8, 6, 6), groups=4), _head((8, 6, 6), groups=4, symmetric=False)
    torch.testing.assert_close(both(A, B), both(B, A))
    assert not torch.allclose(one(A, B), one(B, A))
    torch.testing.assert_close(both(A, B), (one(A, B) + one(B, A)) / 2)


def test_equals_the_layers_written_out():
    head, A, B = _head((8, 6, 6), groups=4, symmetric=False), *_maps((8, 6, 6), 2)[:, None]
    convolution = torch.nn.functional.conv2d(
        interleave(A, B), head.convolution.weight, head.convolution.bias, groups=4
    )
    pooled = convolution.clamp(min=0).reshape(1, 32, 2, 2, 2, 2).mean((3, 5))
    expected = pooled.flatten() @ head.linear.weight[0] + head.linear.bias
    torch.testing.assert_close(head(A, B), expected)


def test_maps_are_seen_in_units_of_their_root_mean_square():
    head, maps = _head((8, 6, 6), groups=4), 50 * _maps((8, 6, 6))
    expected = head.all_pairs(maps / maps.square().mean().sqrt())
    head.scale_to(maps.square().mean())
    torch.testing.assert_close(head.all_pairs(maps), expected)
    first, second = torch.tensor([0, 3]), torch.tensor([2, 1])
    torch.testing.assert_close(head.of_pairs(maps, first, second), head(maps[first], maps[second]))
    torch.testing.assert_close(head.of_pairs(maps, first, second), expected[first, second])


def test_weights_come_from_the_generator_and_are_as_large_as_torch_draws_them():
    weight = _head((256, 6, 6)).convolution.weight.detach()
    torch.testing.assert_close(weight, _head((256, 6, 6)).convolution.weight.detach())
    with torch.random.fork_rng():
        plain = torch.nn.Conv2d(512, 32, 3, groups=16).weight.detach()
    assert float(weight.std() / plain.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ((250, 6, 6), {}, "groups=16 does not divide both the 250 channels.*Groups that do: 1, 2"),
        ((256, 6, 6), {"channels": 24}, "channels=24. Groups that do: 1, 2, 4, 8"),
        ((256, 2, 6), {}, "maps of 2×6, smaller than the 3×3"),
        ((256,), {}, r"rows of shape \(256,\).*grid:K"),
    ],
)
def test_refuses_what_does_not_divide_or_fit(shape, given, message):
    with pytest.raises(RequestError, match=message):
        InterleavedHead(shape, **given)
