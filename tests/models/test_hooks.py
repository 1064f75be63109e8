"""What a tap gives is what a plain forward pass with hooks gives, whatever comes after the layer."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from featpipe.errors import LayerNotFound, UnsupportedOutput
from featpipe.models import Tap, Tapped
from featpipe.models._zoo_timm import import_timm
from featpipe.spec import Reduction


class Toy(nn.Module):
    """Layers of every kind that a tap can meet."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.windows = Windows()
        self.first = First()
        self.words = Words()
        self.varying = Varying()
        self.training_head = nn.Linear(2, 2)
        self.deep = nn.Conv2d(4, 4, 1)
        self.passes = 0

    def forward(self, x):
        x = self.act(self.conv(x))
        x = self.act(self.pair(x)[1] - 1)
        self.windows(x), self.first(x), self.words(x), self.varying(x)
        self.passes += 1
        return {"map": self.deep(x), "tokens": x}


class Pair(nn.Module):
    def forward(self, x):
        return x, x * 2


class Windows(nn.Module):
    def forward(self, x):
        return x.flatten(2).repeat(4, 1, 1)


class First(nn.Module):
    def forward(self, x):
        return x.flatten(2).permute(2, 0, 1)


class Words(nn.Module):
    def forward(self, x):
        return "words"


class Varying(nn.Module):
    def forward(self, x):
        return x[:, :, : len(x)]


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy().eval()


@pytest.fixture
def images(rng):
    return torch.from_numpy(rng.standard_normal((4, 3, 8, 8), dtype="float32"))


def rows(module, images, *taps, card=None):
    with torch.inference_mode(), Tapped(module, taps, card=card) as tapped:
        return tapped(images)


def plain(module, images, layer):
    """Copy what a layer gives in a plain forward pass; ``output`` is the network's own."""
    seen = []
    hook = None
    if layer != "output":
        hook = module.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    with torch.inference_mode():
        own = module(images)
    if hook:
        hook.remove()
    return seen[0] if layer != "output" else own


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("timm:resnet10t", ["conv1", "layer2", "layer4.0.bn2", "output"]),
        ("timm:test_vit", ["patch_embed.proj", "blocks.1", "blocks.2.attn.qkv", "norm", "output"]),
        ("torchvision:squeezenet1_1", ["features.3.squeeze", "features.12", "output"]),
        ("open_clip:featpipe-tiny", ["conv1", "transformer.resblocks.0.mlp", "ln_post", "output"]),
    ],
)
def test_features_equal_a_plain_forward_pass(networks, rng, model, layers):
    backbone = networks(model)
    size = backbone.card.preprocessing.input_size
    images = torch.from_numpy(rng.standard_normal((4, 3, *size), dtype="float32"))
    found = rows(backbone.module, images, *map(Tap, layers), card=backbone.card)
    for tap, kept in found.items():
        expected = plain(backbone.module, images, tap.layer)
        torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_clip_output_is_encode_image_before_normalisation(networks, tiny_clip, rng):
    from featpipe.models._zoo_open_clip import import_open_clip

    clip = import_open_clip().create_model(tiny_clip).eval()
    backbone = networks("open_clip:featpipe-tiny")
    clip.visual.load_state_dict(backbone.module.state_dict())
    images = torch.from_numpy(rng.standard_normal((4, 3, 32, 32), dtype="float32"))
    with torch.inference_mode():
        expected = clip.encode_image(images, normalize=False)
    [(_, kept)] = rows(backbone.module, images, Tap("output")).items()
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        ("alexnet", ["features.6", "features.8", "classifier.4"]),
        ("timm", ["bn1", "layer1.0.se", "layer1.0.bn2", "layer2"]),
    ],
)
def test_later_in_place_operations_change_nothing(make, layers, rng):
    from featpipe.models._torchvision import import_torchvision

    torch.manual_seed(0)
    if make == "alexnet":
        module = import_torchvision().models.alexnet().eval()
    else:
        module = import_timm().create_model("seresnext26t_32x4d").eval()
    images = torch.from_numpy(rng.standard_normal((2, 3, 64, 64), dtype="float32"))
    found = rows(module, images, *map(Tap, layers))
    for layer in module.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    for tap, kept in found.items():
        torch.testing.assert_close(kept, plain(module, images, tap.layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "max", "grid:8", "srp:5"])
def test_rows_share_no_memory_with_the_network(toy, images, reduction):
    outputs = []
    toy.conv.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    [kept] = rows(toy, images, Tap("conv", reduction=Reduction.parse(reduction))).values()
    before = kept.clone()
    with torch.inference_mode():
        outputs[-1].fill_(-9)
    assert torch.equal(kept, before)


def test_the_pass_stops_at_the_deepest_layer(toy, images):
    with Tapped(toy, [Tap("conv"), Tap("pair", element="1")]) as tapped:
        tapped(images)
        passes = toy.passes
        tapped(images)
    assert toy.passes == passes == 1  # only the first call looked at the whole network


def test_several_reductions_of_one_layer_in_one_pass(toy, images):
    taps = [
        Tap("conv"),
        Tap("conv", reduction=Reduction("mean")),
        Tap("conv", reduction=Reduction("grid", 2)),
    ]
    found = rows(toy, images, *taps)
    torch.testing.assert_close(found[taps[1]], found[taps[0]].mean((2, 3)))
    assert found[taps[2]].shape == (4, 4, 2, 2)


def test_calls_are_told_apart(toy, images):
    zero, one = Tap("act", call=0), Tap("act", call=1)
    found = rows(toy, images, zero, one)
    torch.testing.assert_close(found[one], (found[zero] * 2 - 1).relu())


def test_elements_of_tuples_and_dicts(toy, images):
    found = rows(toy, images, Tap("pair", element="0"), Tap("output", element="tokens"))
    assert {kept.shape for kept in found.values()} == {(4, 4, 8, 8)}


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("act"), "called 2 times in one pass. Say which: act@0, act@1"),
        (Tap("act", call=2), "act@2 does not exist: act is called 2 times"),
        (Tap("pair"), "Ask for one element: pair/0, pair/1"),
        (Tap("pair", element="2"), "Ask for one element"),
        (Tap("conv", element="0"), "has no element '0'"),
        (Tap("output"), "output/map, output/tokens"),
        (Tap("windows"), r"gives shape \(\d+, 4, 64\) for \d images: its first axis is not the image"),
        (Tap("first"), "first axis is not the image"),
        (Tap("words"), "returns a str, which is no tensor"),
        (Tap("varying"), "varies in size"),
        (Tap("training_head"), "never called in a forward pass"),
        (
            Tap("conv", reduction=Reduction("cls")),
            "cls cannot be taken of conv.*Possible here: grid, max, mean",
        ),
    ],
)
def test_what_cannot_be_stored_says_why(toy, images, tap, message):
    with pytest.raises(UnsupportedOutput, match=message):
        rows(toy, images, tap)


def test_an_unknown_layer_is_named(toy):
    with pytest.raises(LayerNotFound, match="no layer 'wing'"):
        Tapped(toy, [Tap("wing")])


def test_hooks_are_removed_also_after_a_failure(toy, images):
    for tap in (Tap("conv"), Tap("windows")):
        with suppress(UnsupportedOutput):
            rows(toy, images, tap)
    with pytest.raises(RuntimeError, match="channels"):
        rows(toy, images[:, :2], Tap("conv"))
    assert not any(layer._forward_hooks for layer in toy.modules())


def test_fused_attention_does_not_hide_layers(rng):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    tokens = torch.from_numpy(rng.standard_normal((4, 5, 8), dtype="float32"))
    before = torch.backends.mha.get_fastpath_enabled()
    [kept] = rows(encoder, tokens, Tap("layers.0.linear1")).values()
    assert kept.shape == (4, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_network_that_swallows_exceptions_still_stops(toy, images):
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy

        def forward(self, x):
            try:
                return self.inner(x)
            except Exception as error:
                raise AssertionError("swallowed") from error

    assert rows(Stubborn(), images, Tap("inner.conv"))


def test_rows_are_float32_under_autocast(toy, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rows(toy, images, Tap("conv"), Tap("conv", reduction=Reduction("srp", 3)))
    assert {kept.dtype for kept in found.values()} == {torch.float32}


def test_a_row_does_not_depend_on_the_other_images(toy, images):
    tap = Tap("deep", reduction=Reduction("grid", 2))
    torch.testing.assert_close(rows(toy, images, tap)[tap][1:2], rows(toy, images[1:2], tap)[tap])
