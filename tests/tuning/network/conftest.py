"""Networks with random weights, and images that are tensors."""

from __future__ import annotations

import pytest
import torch

from featpipe.models import ModelRequest, Tap, load
from featpipe.spec import LayerRequest
from featpipe.tuning.images._row_memory import ACTIVATIONS
from featpipe.tuning.network import Body


@pytest.fixture(autouse=True)
def _nothing_kept():
    ACTIVATIONS.clear()
    yield
    ACTIVATIONS.clear()


class Tensors:
    """Stands for `Images`: made-up pixels, and a count of those that were asked for."""

    device = torch.device("cpu")

    def __init__(self, n_images, size, *, views=0, reusable=True):
        generator = torch.Generator().manual_seed(n_images)
        self.pixels = torch.randn(views + 1, n_images, 3, *size, generator=generator)
        self.sha256 = tuple(f"{n_images}-{row}" for row in range(n_images))
        self.views, self.reusable, self.asked = views, reusable, 0

    def __len__(self):
        return len(self.sha256)

    def choose(self, rows, generator):
        if generator is None or not self.views:
            return torch.zeros_like(rows)
        return torch.randint(1, self.views + 1, (len(rows),), generator=generator)

    def labels(self, rows, views):
        return [(self.sha256[row], view) for row, view in zip(rows.tolist(), views.tolist(), strict=True)]

    def __call__(self, rows, views, generator):
        self.asked += len(rows)
        return self.pixels[views, rows]


@pytest.fixture
def body_of():
    """Return a body over made-up images: (model, layers, size of an image, images=…, **options)."""

    def make(model, layers, size=64, *, n_images=6, images=None, args=None, trust=False, **options):
        request = ModelRequest(
            model, "random:0", tuple((args or {}).items()), preprocess="whole", image_size=size, trust=trust
        )
        backbone = load(request)
        images = images or Tensors(n_images, backbone.card.preprocessing.input_size)
        return Body(backbone, taps_of(layers), images, **options)

    return make


def taps_of(layers):
    """Return the taps that texts mean."""
    requests = [LayerRequest.parse(text) for text in ([layers] if isinstance(layers, str) else layers)]
    return [Tap(request.pattern, reduction=request.reduction) for request in requests]


@pytest.fixture
def tensors():
    return Tensors


@pytest.fixture
def trained_of():
    """Return the parameters of a body that are trained, by name."""
    return lambda body: {name: p for name, p in body.network.named_parameters() if p.requires_grad}
