"""A pass that goes on from what is kept gives what a whole pass gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from featpipe.tuning.images._row_memory import ACTIVATIONS

CASES = [
    ("timm:test_resnet", 64, "..layer2", "layer4", ("layer2",)),
    (
        "timm:test_resnet",
        64,
        "..layer3.0.conv1",
        "layer4",
        ("layer2",),
    ),  # inside a residual block: climbs out
    ("timm:test_vit", 160, "..blocks.2", "blocks.5", ("blocks.2",)),
    ("timm:test_vit", 160, "..blocks.2.attn", "output", ("blocks.1",)),
    ("timm:test_efficientnet", 64, "..blocks.2", "blocks.4", ("blocks.2",)),
    ("timm:mobilenetv2_100", 64, "..blocks.3", "blocks.5", ("blocks.3",)),
    ("timm:seresnext26d_32x4d", 64, "..layer2", "layer4", ("layer2",)),
    ("torchvision:squeezenet1_1", 64, "..features.7", "features.10", ("features.8",)),
    ("torchvision:resnet18", 64, "..layer2", "layer4", ("layer2",)),
    ("torchvision:vgg16", 64, "..features.26", "features.29", ("features.27",)),
    ("open_clip:ViT-S-32-alt", 224, "..transformer.resblocks.7", "output", ("transformer.resblocks.7",)),
]


@pytest.mark.parametrize(("model", "size", "frozen", "layer", "kept"), CASES)
def test_outputs_and_gradients_are_those_of_a_whole_pass(
    body_of, trained_of, model, size, frozen, layer, kept
):
    body = body_of(model, layer, size, frozen=frozen)
    assert body.kept == kept
    rows = torch.tensor([3, 0, 5, 3])
    whole = reference(body, rows)
    weight = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    trained = list(trained_of(body).values())
    wanted = torch.autograd.grad((whole * weight).sum(), trained)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for _ in range(2):  # computing what is kept, then taking it
        (found,) = body(rows)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5 * float(whole.detach().abs().max()))
        gradients = torch.autograd.grad((found * weight).sum(), trained)
        torch.testing.assert_close(gradients, wanted, rtol=1e-3, atol=1e-5 * largest)


def reference(body, rows):
    """Return the first tap of a whole pass."""
    with body._tapped as tapped:
        return tapped(body._pixels(rows, torch.zeros_like(rows), None))[body.taps[0]]


def test_an_image_is_asked_for_once(body_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2", n_images=20)
    body.images.asked = 0
    for _ in range(3):
        body(torch.arange(20))
    assert body.images.asked == 32  # two passes of sixteen; the last is filled up


def test_another_fold_and_another_tap_find_what_is_kept(body_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2")
    body(torch.arange(6))
    other = body_of("timm:test_resnet", ["layer3", "layer4:mean"], frozen="..layer2", images=body.images)
    body.images.asked = 0
    other(torch.arange(6))
    assert body.images.asked == 0


@pytest.mark.parametrize(
    "changed", [{"args": {"act_layer": "gelu"}}, {"frozen": "..layer1"}, {"frozen": None}]
)
def test_what_was_made_otherwise_is_not_taken(body_of, changed):
    options = {"frozen": "..layer2", **changed}
    body_of("timm:test_resnet", "layer4", frozen="..layer2")(torch.arange(6))
    body = body_of("timm:test_resnet", "layer4", **options)
    torch.testing.assert_close(body(torch.arange(4))[0], reference(body, torch.arange(4)))


def test_frozen_weights_that_change_all_the_same_are_noticed(body_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2")
    before = body(torch.arange(4))[0]
    with torch.no_grad():
        next(body.network.parameters()).mul_(2)
    torch.testing.assert_close(body(torch.arange(4))[0], reference(body, torch.arange(4)))
    assert not torch.allclose(body(torch.arange(4))[0], before)


def test_precision_is_told_apart(body_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2")
    full = body(torch.arange(4))[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = body(torch.arange(4))[0]
    assert not torch.equal(low, full)
    assert torch.equal(body(torch.arange(4))[0], full)


def test_each_view_is_kept_by_itself(body_of, tensors):
    images = tensors(6, (64, 64), views=3)
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2", images=images)
    rows = torch.arange(6)
    for seed in (0, 1, 0):
        views = images.choose(rows, torch.Generator().manual_seed(seed))
        (found,) = body(rows, torch.Generator().manual_seed(seed))
        with body._tapped as tapped:
            wanted = tapped(body._pixels(rows, views, None))[body.taps[0]]
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(body(rows)[0], reference(body, rows))


def test_fresh_crops_are_computed_every_time(body_of, tensors):
    images = tensors(6, (64, 64), views=3, reusable=False)
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2", images=images)
    body(torch.arange(6), torch.Generator())
    assert ACTIVATIONS.nbytes == 0
    body(torch.arange(6))  # an evaluation sees the images themselves
    assert ACTIVATIONS.nbytes > 0


def test_rows_made_in_inference_mode_serve_training(body_of, trained_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2")
    with torch.inference_mode():
        before = body(torch.arange(4))[0]
    after = body(torch.arange(4))[0]
    after.sum().backward()
    assert torch.equal(before, after)
    assert all(p.grad is not None for p in trained_of(body).values())


def test_what_is_kept_is_not_overwritten_in_place(body_of, trained_of):
    """`features.3` of SqueezeNet is cut off before ReLUs that work in place."""
    body = body_of(
        "torchvision:squeezenet1_1", ["features.3.squeeze", "features.4"], frozen="..features.3.squeeze"
    )
    first = [body(torch.arange(4)) for _ in range(3)]
    for again in first[1:]:
        torch.testing.assert_close(again, first[0], rtol=0, atol=0)


def test_a_row_does_not_depend_on_those_beside_it(body_of):
    body = body_of("timm:test_resnet", "layer2", frozen="**", n_images=40)
    alone = torch.cat([body(torch.tensor([row]))[0] for row in (7, 39, 2)])
    ACTIVATIONS.clear()
    assert torch.equal(body(torch.arange(40))[0][[7, 39, 2]], alone)


def test_only_the_taps_are_kept_where_all_is_frozen(body_of):
    body = body_of("timm:test_resnet", ["layer1:mean", "layer4:mean"], frozen="**")
    assert body.kept == ("layer1", "layer4")
    body(torch.arange(6))
    sizes = [shape[0] for shape in body.shapes]
    assert ACTIVATIONS.nbytes <= 64 * 4 * sum(sizes)  # a block holds 64 rows
    body.images.asked = 0
    body(torch.arange(6))
    assert body.images.asked == 0


def test_taps_before_the_cut_are_kept_beside_it(body_of):
    body = body_of("timm:test_resnet", ["layer1.0:mean", "layer4"], frozen="..layer2")
    assert body.kept == ("layer2", "layer1.0")
    whole = body_of("timm:test_resnet", ["layer1.0:mean", "layer4"])
    assert whole.kept == ()
    for found, wanted in zip(body(torch.arange(5)), whole(torch.arange(5)), strict=True):
        torch.testing.assert_close(found, wanted)


DROPPING = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Dropout(0.5), nn.Linear(5, 5), nn.Linear(5, 5))
    return net, {"resize": 2, "crop": [2, 2], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
"""


def test_dropout_ends_the_prefix(body_of, tmp_path):
    """What is frozen behind a layer that drops differs from epoch to epoch."""
    (tmp_path / "net.py").write_text(DROPPING)
    make = partial(body_of, f"python:{tmp_path / 'net.py'}:build", "4", 2, trust=True)
    assert make(frozen=["1", "3"]).kept == ("3",)
    assert make(frozen=["1", "3"], dropout=True).kept == ("1",)
    assert make(frozen="..3", dropout=True).kept == ("3",)  # what is frozen does not drop


def test_letting_more_be_trained_is_noticed(body_of, trained_of):
    body = body_of("timm:test_resnet", "layer4", frozen="..layer2")
    body(torch.arange(4))
    before = set(trained_of(body))
    body.freeze("..layer1")
    assert body.kept == ("layer1",)
    body.network.requires_grad_(True)
    body(torch.arange(4))[0].sum().backward()
    assert body.kept == ()
    assert before < {name for name, p in trained_of(body).items() if p.grad is not None}


CROSSING = """
import torch
from torch import nn


class Crossing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        return self.third(second) + first  # goes around the second


def build():
    torch.manual_seed(0)
    size = {"resize": 32, "crop": [32, 32], "interpolation": "bilinear"}
    return Crossing(), {**size, "mean": [0.5] * 3, "std": [0.25] * 3}
"""


def test_a_network_that_cannot_go_on_is_run_whole(body_of, tmp_path):
    (tmp_path / "net.py").write_text(CROSSING)
    model = f"python:{tmp_path / 'net.py'}:build"
    with pytest.warns(UserWarning, match="cannot go on from the end of its frozen part"):
        body = body_of(model, "output", 32, trust=True, frozen="..second")
    assert body.kept == ()
    torch.testing.assert_close(body(torch.arange(4))[0], reference(body, torch.arange(4)))
    assert body_of(model, "output", 32, trust=True, frozen="first").kept == ("first",)
