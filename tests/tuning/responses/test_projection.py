"""The projection: one head for both modalities, each normalised by its own batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from featpipe.errors import RequestError
from featpipe.tuning.responses import SharedProjection


@pytest.fixture
def projection():
    return SharedProjection(7, 6, 5, 3, torch.Generator().manual_seed(0))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 7, generator=generator), 3 + torch.randn(20, 6, generator=generator)


def written_out(projection, h):
    """g_H of one modality in training, layer by layer."""
    for layer, norm in zip(projection.layers, projection.norms, strict=True):
        h = layer(h)
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        h = h.relu()
    return projection.last(h)


def test_both_modalities_pass_through_one_head(projection, batch):
    features, responses = batch
    of_responses, of_images = projection(features, responses)
    torch.testing.assert_close(of_images, written_out(projection, projection.of_features(features)))
    torch.testing.assert_close(of_responses, written_out(projection, projection.of_responses(responses)))
    assert of_images.shape == (20, 3)


def test_has_the_reports_layers(projection):
    shapes = [tuple(p.shape) for p in projection.parameters() if p.ndim == 2]
    assert shapes == [(5, 7), (5, 6), (5, 5), (5, 5), (3, 5)]


def test_a_modality_is_normalised_without_the_other(projection, batch):
    features, responses = batch
    before = projection(features, responses)[1]
    assert torch.equal(projection(features, responses + 10 * responses.flip(0))[1], before)


def test_evaluation_does_what_training_did(projection, batch):
    """Running statistics of each modality: after many batches of one kind both modes agree."""
    features, responses = batch
    for _ in range(200):
        trained = projection(features, responses)
    with torch.no_grad():
        evaluated = projection.eval()(features, responses)
    for found, wanted in zip(evaluated, trained, strict=True):
        assert F.cosine_similarity(found, wanted).min() > 0.99


def test_a_seed_draws_the_same_weights():
    first, again, other = (
        SharedProjection(4, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first.last.weight, again.last.weight)
    assert not torch.equal(first.last.weight, other.last.weight)


def test_default_sizes_stay_within_the_targets():
    assert SharedProjection(4, 1).last.weight.shape == (1, 1)
    assert SharedProjection(4, 9).last.weight.shape == (3, 3)
    assert SharedProjection(4, 2000).last.weight.shape == (128, 256)


@pytest.mark.parametrize(("shared", "projected"), [(7, 3), (4, 5), (0, 0), (5, 2.0)])
def test_sizes_that_the_report_excludes(shared, projected):
    with pytest.raises(RequestError, match=r"1 <= projected_size <= shared_size <= 6"):
        SharedProjection(7, 6, shared, projected)
