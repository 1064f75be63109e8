from __future__ import annotations

import pytest

from featpipe.errors import SpecError
from featpipe.models import ModelCard, ModelRequest


def test_card_survives_json(networks):
    card = networks("timm:test_vit").card
    assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize("change", [{"newer": 1}, {"weights": None}])
def test_card_with_another_field_is_refused(networks, change):
    value = {**networks("timm:test_vit").card.to_json(), **change}
    value = {name: item for name, item in value.items() if item is not None}
    with pytest.raises(SpecError, match="exactly the fields"):
        ModelCard.from_json(value)


def test_order_of_model_arguments_does_not_matter():
    one = ModelRequest("timm:x", model_args=(("b", 1), ("a", 2)))
    assert one == ModelRequest("timm:x", model_args=(("a", 2), ("b", 1)))


def test_unknown_preprocess_is_refused():
    with pytest.raises(SpecError, match="'model' or 'whole', got 'full'"):
        ModelRequest("timm:x", preprocess="full")


def test_layout_of_follows_exceptions(networks):
    card = networks("timm:swin_tiny_patch4_window7_224").card
    assert card.layout == "channels_last"
    assert card.layout_of("layers.0") == "channels_last"
    assert card.layout_of("patch_embed.proj") == "channels_first"
