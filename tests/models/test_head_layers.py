"""Test `finetune.models.head_layers`."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from finetune.models.head_layers import LAYERS, build_layers, describe_layers, head_record, parse_head

EXAMPLES: dict[str, tuple[Any, ...]] = {
    "AdaptiveAvgPool2d": (1,), "AdaptiveMaxPool2d": ((2, 1),), "BatchNorm1d": (4,), "BatchNorm2d": (4,), "Conv2d": (3, 4, 3, 2, 1),
    "Dropout": (0.3,), "Dropout2d": (0.3,), "ELU": (0.5,), "GroupNorm": (2, 4), "LayerNorm": ((4,), 1e-3),
    "LeakyReLU": (0.2,), "Linear": (4, 3, False), "PReLU": (4,),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_built_again_from_plain_data(name: str) -> None:
    layer = LAYERS[name](*EXAMPLES.get(name, ()))
    head = nn.Sequential(layer, nn.Identity())
    description = json.loads(json.dumps(describe_layers(head)))
    again = build_layers(description)
    assert repr(again) == repr(head)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in head.state_dict().items()}
    again.load_state_dict(head.state_dict())


class Doubled(nn.Linear):
    """A layer with code of its own."""


@pytest.mark.parametrize("head", [Doubled(2, 2), nn.Sequential(Doubled(2, 2)), nn.LSTM(2, 2)])
def test_layers_of_unknown_code_are_not_described(head: nn.Module) -> None:
    assert describe_layers(head) is None


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "Embedding", "arguments": {}}, "has the layer 'Embedding'; known are"),
        ({"type": "Linear", "arguments": {"in_features": 2}}, "the layer Linear of a head cannot be built"),
        ({"type": "Sequential", "layers": 3}, "make no sense"),
        ({}, "has the layer None"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(description: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_layers(description)


def test_a_head_is_a_path_layers_or_both() -> None:
    layer = nn.Linear(2, 3)
    assert parse_head("fc") == ("fc", None)
    assert parse_head(None) == (None, None)
    assert parse_head(layer) == (None, layer)
    path, built = parse_head(
        {"path": "fc", "layers": {"type": "Linear", "arguments": {"in_features": 2, "out_features": 3}}}
    )
    assert (path, repr(built)) == ("fc", repr(layer))
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 3)))
    assert head_record(network, "0", is_own=False) == "0"
    record: Any = head_record(network, "1", is_own=True)
    assert (record["path"], list(record["layers"]["layers"])) == ("1", ["0", "1"])
    assert torch.equal(build_layers(record["layers"])(torch.zeros(1, 2)).isnan(), torch.zeros(1, 3, dtype=torch.bool))
