"""A classifier slid over a larger image against the plain one on each window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featpipe.errors import ModelError
from featpipe.models import Backbone, ModelRequest, Tap, load
from featpipe.tuning.network import Body, slide_classifier


class Small(nn.Module):
    """The shape of AlexNet and VGG, small: maps are an eighth of the image, and 3×3 of them are classified."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        layers = [nn.Linear(36, 6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, 5)]
        self.classifier = nn.Sequential(*layers)

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    card = load(ModelRequest("timm:test_resnet", "random:0")).card
    return Backbone(card, Small().eval().requires_grad_(False))


@pytest.fixture
def image():
    return torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(1))


def test_each_place_is_the_plain_network_on_its_window(backbone, image):
    windows = [[image[..., 8 * i : 8 * i + 24, 8 * j : 8 * j + 24] for j in range(2)] for i in range(3)]
    wanted = torch.stack([torch.stack([backbone.module(w) for w in row], -1) for row in windows], -2)
    with slide_classifier(backbone):
        torch.testing.assert_close(backbone.module(image), wanted)  # (2, 5, 3, 2)


@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
def test_a_map_that_is_no_larger_goes_the_plain_way(backbone, size):
    image = torch.randn(2, 3, *size)
    before = backbone.module(image)
    with slide_classifier(backbone):
        assert torch.equal(backbone.module(image), before)


def test_closing_makes_the_network_plain(backbone, image):
    before = backbone.module(image)
    with slide_classifier(backbone):
        assert backbone.module(image).shape == (2, 5, 3, 2)
    assert torch.equal(backbone.module(image), before)


def test_tuned_weights_apply_and_names_stay(backbone, image):
    names = [name for name, _ in backbone.module.named_modules()]
    slide_classifier(backbone)
    before = backbone.module(image)
    with torch.no_grad():
        backbone.module.classifier[0].weight.mul_(2)
        backbone.module.classifier[0].bias.mul_(2)
        backbone.module.classifier[3].bias.zero_()
    after = backbone.module(image)
    assert not torch.allclose(after, before)
    assert [name for name, _ in backbone.module.named_modules()] == names


def test_a_body_reads_its_layers_also_from_what_is_kept(backbone, tensors, image):
    slide_classifier(backbone)
    images = tensors(4, (40, 32))
    body = Body(backbone, [Tap("avgpool"), Tap("classifier.3")], images, frozen="..classifier.0", lora_rank=2)
    assert body.shapes == ((4, 5, 4), (5, 3, 2))
    assert body.kept == ("classifier.2", "avgpool")
    torch.testing.assert_close(body(torch.arange(4))[1], backbone.module(images.pixels[0]))


def test_another_network_is_refused(tiny_backbone):
    with pytest.raises(ModelError, match="no fully connected layers over a map"):
        slide_classifier(load(ModelRequest("torchvision:squeezenet1_1", "random:0")))
    with pytest.raises(ModelError, match="torchvision:vgg11 to vgg19"):
        slide_classifier(load(ModelRequest(tiny_backbone, trust=True)))


@pytest.mark.slow
def test_vgg_at_300_pixels():
    """9×9 maps give fc6, fc7 and the classes at 3×3 places."""
    backbone = load(ModelRequest("torchvision:vgg11", "random:0", preprocess="whole"))
    image = torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), slide_classifier(backbone):
        slid = backbone.module(image)
    assert slid.shape == (1, 1000, 3, 3)
    with torch.no_grad():
        maps = backbone.module.features(image)
        corner = backbone.module.classifier(maps[:, :, 2:, :7].flatten(1))
    torch.testing.assert_close(slid[:, :, 2, 0], corner, rtol=1e-4, atol=1e-5)
