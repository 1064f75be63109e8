"""The outputs of a body: those of extraction, in the right mode, with the memory of a micro-batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from featpipe.errors import RequestError, UnsupportedOutput
from featpipe.models import Backbone, ModelRequest, Tap, load, normalise
from featpipe.stimuli import StimulusSet
from featpipe.tuning.images import Images
from featpipe.tuning.network import Body


@pytest.mark.parametrize(
    ("model", "layers"), [("timm:test_resnet", ("layer2", "layer4")), ("timm:test_vit", ("blocks.3",))]
)
def test_outputs_are_those_of_extraction(tiny_stimuli, model, layers):
    """The untouched network, on images that are decoded, read through hooks as extraction reads them."""
    backbone = load(ModelRequest(model, "random:0", preprocess="whole"))
    card, stimuli, taps = backbone.card, StimulusSet.from_source(tiny_stimuli), [Tap(name) for name in layers]
    images = Images(stimuli, stimuli.ids, card.preprocessing, device=torch.device("cpu"))
    pixels = images._pixels(torch.arange(4).numpy(), torch.zeros(4, dtype=torch.long).numpy())
    memory = torch.channels_last if card.channels_last else torch.contiguous_format
    backbone.module.to(memory_format=memory)
    batch = normalise(pixels, card.preprocessing).contiguous(memory_format=memory)
    with torch.inference_mode(), backbone.tapped(taps) as tapped:
        wanted = tapped(batch)
    body = Body(backbone, taps, images)
    assert body.shapes == tuple(tuple(value.shape[1:]) for value in wanted.values())
    for found, value in zip(body(torch.arange(4)), wanted.values(), strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=0)


def test_names_of_axes(body_of):
    body = body_of("timm:test_vit", ["blocks.1", "blocks.1:mean"], 160)
    assert body.dims == (("token", "channel"), ("channel",))


def test_normalisation_never_learns_from_batches(body_of):
    body = body_of("timm:test_resnet", "layer2").train()
    before = {name: value.clone() for name, value in body.network.named_buffers()}
    body(torch.arange(6))[0].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in body.network.named_buffers())
    assert not any(layer.training for layer in body.network.modules())


def test_dropout_drops_in_training_only_and_outside_frozen_layers(body_of):
    args = {"drop_path_rate": 0.3, "proj_drop_rate": 0.3}
    plain = body_of("timm:test_vit", "blocks.5", 160, args=args, frozen="..blocks.2").train()
    body = body_of("timm:test_vit", "blocks.5", 160, args=args, frozen="..blocks.2", dropout=True).train()
    assert not any(layer.training for layer in plain.network.modules())
    training = {name for name, layer in body.network.named_modules() if layer.training}
    assert {"blocks.3.mlp.drop1", "blocks.5.drop_path1"} <= training
    assert all(
        name.split(".")[-1].startswith(("drop", "attn_drop", "proj_drop", "head_drop")) or "drop" in name
        for name in training
    )
    assert not any(name.startswith(("blocks.0", "blocks.1.", "blocks.2", "pos_drop")) for name in training)
    rows = torch.arange(3)
    assert not torch.equal(body(rows)[0], body(rows)[0])
    body.eval()
    assert torch.equal(body(rows)[0], body(rows)[0])
    torch.testing.assert_close(body(rows)[0], plain(rows)[0])


@pytest.mark.parametrize("frozen", [None, "..blocks.1"])
@pytest.mark.parametrize("views", [0, 3])
def test_micro_batches_give_outputs_and_gradients_of_the_whole_batch(
    body_of, tensors, trained_of, frozen, views
):
    images = tensors(6, (160, 160), views=views)
    whole = body_of("timm:test_vit", "blocks.3", images=images, size=160, frozen=frozen)
    parts = body_of("timm:test_vit", "blocks.3", images=images, size=160, frozen=frozen, micro_batch=4)
    found = []
    for body in (whole, parts):
        (rows,) = body.train()(torch.tensor([5, 0, 1, 1, 4]), torch.Generator().manual_seed(3))
        loss = torch.cdist(rows.flatten(1), rows.flatten(1)).square().mean()  # of all pairs in the batch
        found.append([rows, *torch.autograd.grad(loss, list(trained_of(body).values()))])
    torch.testing.assert_close(
        found[1][0], found[0][0], rtol=0, atol=1e-6 * float(found[0][0].detach().abs().max())
    )
    largest = max(float(gradient.abs().max()) for gradient in found[0][1:])
    torch.testing.assert_close(found[1][1:], found[0][1:], rtol=0, atol=1e-6 * largest)


def test_micro_batches_drop_the_same_again(body_of, trained_of):
    """Against the same parts one after another, with all activations held."""
    args = {"drop_path_rate": 0.3, "proj_drop_rate": 0.3}
    make = partial(body_of, "timm:test_vit", "blocks.3", 160, args=args, dropout=True)
    whole, parts = make().train(), make(micro_batch=2).train()
    torch.manual_seed(0)
    held = torch.cat([whole(part)[0] for part in torch.arange(6).split(2)])
    torch.manual_seed(0)
    (again,) = parts(torch.arange(6))
    torch.testing.assert_close(again, held, rtol=0, atol=0)
    torch.rand(5)  # what others draw between the passes changes nothing
    state = torch.get_rng_state()
    losses = [rows.flatten(1).cov().square().mean() for rows in (held, again)]
    wanted, found = (
        torch.autograd.grad(loss, list(trained_of(body).values()))
        for loss, body in zip(losses, (whole, parts), strict=True)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_micro_batches_hold_the_activations_of_one(body_of):
    """Bytes that autograd keeps for the backward pass."""
    held = []
    for micro_batch in (None, 2):
        body, seen = body_of("timm:test_resnet", "layer4:mean", micro_batch=micro_batch, n_images=16), {}

        def note(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            body(torch.arange(16))
        held.append(sum(seen.values()))
    assert held[1] < held[0] / 4


def test_layers_that_depend_on_absent_weights_are_refused(tmp_path, tensors):
    backbone = load(ModelRequest("torchvision:squeezenet1_1", "random:0", preprocess="whole", image_size=64))
    missing = tuple(n for n, _ in backbone.module.named_parameters() if n.startswith("classifier"))
    partly = Backbone(replace(backbone.card, missing=missing), backbone.module)
    images = tensors(3, (64, 64))
    assert Body(partly, [Tap("features.12")], images).shapes
    with pytest.raises(
        UnsupportedOutput, match=r"lacks 2 weights, first 'classifier\.1\.weight', and classifier\.1, output"
    ):
        Body(partly, [Tap("features.12"), Tap("classifier.1"), Tap("output")], images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "lora_rank must be an int >= 1, got 0"),
        ({"lora_rank": 2, "lora_scale": 0}, "lora_scale must be a number > 0"),
        ({"micro_batch": 0}, "micro_batch must be an int >= 1, got 0"),
    ],
)
def test_numbers_out_of_range(body_of, options, message):
    with pytest.raises(RequestError, match=message):
        body_of("timm:test_resnet", "layer2", **options)


def test_the_network_runs_to_its_end_once_only(body_of):
    """Later passes stop at the deepest tap."""
    body = body_of("timm:test_resnet", "layer2")
    ends: list[nn.Module] = []
    hook = body.network.get_submodule("layer3").register_forward_hook(lambda layer, *_: ends.append(layer))
    body(torch.arange(4))
    hook.remove()
    assert not ends
