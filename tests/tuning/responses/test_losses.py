"""Contrastive losses against the equation written out and torch's own cross-entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featpipe.errors import RequestError
from featpipe.tuning.responses import contrastive_loss

VARIANTS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture
def pair(rng):
    """Projected responses and images of 9 stimuli, float64."""
    return torch.tensor(rng.standard_normal((9, 4))), torch.tensor(rng.standard_normal((9, 4)))


def equation_1(zy, zx, temperature, include_positive=False):
    """Equation 1, one anchor and one contrast at a time."""

    def similarity(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    zy, zx = zy.tolist(), zx.tolist()
    losses = []
    for i, anchor in enumerate(zy):
        total = 0.0
        for j, contrast in enumerate(zx):
            if j != i or include_positive:
                total += math.exp(similarity(anchor, contrast) / temperature)
        losses.append(-math.log(math.exp(similarity(anchor, zx[i]) / temperature) / total))
    return np.array(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(("include_positive", "symmetric"), VARIANTS)
def test_matches_the_equation_written_out(pair, temperature, include_positive, symmetric):
    zy, zx = pair
    wanted = equation_1(zy, zx, temperature, include_positive)
    if symmetric:
        wanted = (wanted + equation_1(zx, zy, temperature, include_positive)) / 2
    found = contrastive_loss(
        zy, zx, temperature=temperature, include_positive=include_positive, symmetric=symmetric
    )
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_with_both_options_it_is_clips(pair):
    zy, zx = pair
    logits = F.normalize(zy) @ F.normalize(zx).T / 0.2
    own = torch.arange(len(zy))
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    found = contrastive_loss(zy, zx, temperature=0.2, include_positive=True, symmetric=True)
    torch.testing.assert_close(found.mean(), wanted)


@pytest.mark.parametrize(("include_positive", "symmetric"), VARIANTS)
def test_gradient(pair, include_positive, symmetric):
    zy, zx = (z.requires_grad_() for z in pair)
    how = {"temperature": 0.3, "include_positive": include_positive, "symmetric": symmetric}
    assert torch.autograd.gradcheck(lambda a, b: contrastive_loss(a, b, **how), (zy, zx))


def test_responses_are_the_anchors(pair):
    """Only the anchor's own row counts: another response changes no other loss, another image changes all."""
    zy, zx = pair
    before = contrastive_loss(zy, zx, temperature=0.5)
    others, moved = zy.clone(), zx.clone()
    others[0], moved[0] = -zy[0], -zx[0]
    assert torch.equal(contrastive_loss(others, zx, temperature=0.5)[1:], before[1:])
    assert (contrastive_loss(zy, moved, temperature=0.5) != before).all()


def test_the_positive_is_not_in_the_denominator():
    """With the pair alike and all others opposed the loss is ``log(n - 1) - 2 / τ``, below 0."""
    responses = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    images = -responses
    images[0] = responses[0]
    found = contrastive_loss(responses, images, temperature=0.5)[0]
    torch.testing.assert_close(found, torch.tensor(math.log(4) - 2 / 0.5))


def test_lengths_do_not_matter(pair):
    zy, zx = pair
    scaled = contrastive_loss(7 * zy, zx * torch.arange(1, 10)[:, None], temperature=0.5)
    torch.testing.assert_close(scaled, contrastive_loss(zy, zx, temperature=0.5))


def test_small_temperatures_stay_finite(pair):
    zy, zx = (z.float() for z in pair)
    assert contrastive_loss(zy, zx, temperature=1e-3).isfinite().all()


def test_bfloat16_and_autocast_compute_in_float32(pair):
    zy, zx = (z.bfloat16() for z in pair)
    wanted = contrastive_loss(zy.float(), zx.float(), temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(zy, zx, temperature=0.05)
        under = contrastive_loss(zy.float(), zx.float(), temperature=0.05)
    assert torch.equal(found, wanted)
    assert torch.equal(under, wanted)


def test_one_stimulus_is_refused(pair):
    with pytest.raises(RequestError, match="at least two stimuli in a batch, got 1"):
        contrastive_loss(pair[0][:1], pair[1][:1], temperature=0.1)
