from __future__ import annotations

import pytest

from featpipe.models import describe


@pytest.fixture
def layers(networks):
    return {info.name: info for info in describe(networks("timm:resnet10t"))}


def test_every_layer_in_network_order(networks, layers):
    assert tuple(layers) == networks("timm:resnet10t").card.layers


def test_shapes_are_of_one_image(layers):
    assert layers["layer1"].shape == (64, 44, 44)
    assert layers["layer1"].values == 64 * 44 * 44
    assert layers["output"].shape == (1000,)
    assert not layers["layer1"].reason


def test_what_cannot_be_stored_says_why(networks):
    swin = {info.name: info for info in describe(networks("timm:swin_tiny_patch4_window7_224"))}
    assert "first axis is not the image" in swin["layers.0.blocks.0.attn"].reason
    assert swin["layers.0.blocks.0"].shape == (56, 56, 24)
    attention = {info.name: info for info in describe(networks("open_clip:featpipe-tiny"))}
    assert attention["transformer.resblocks.0.attn"].elements == ("0", "1")
    assert attention["transformer.resblocks.0.attn.out_proj"].reason.startswith("never called")


def test_hooks_are_gone_afterwards(networks, layers):
    module = networks("timm:resnet10t").module
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
