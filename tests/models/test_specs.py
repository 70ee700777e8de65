"""Test `finetune.models.specs`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune.checkpoints import restore
from finetune.models import specs
from finetune.models.specs import FAMILIES, Family, find_family, register
from finetune.runtime.suggestions import closest_matches


def test_find_family_unknown_name_gives_nearest_three_and_command() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet19'.*resnet18.*finetune\.models"):
        find_family("resnet19")
    assert len(closest_matches("resnet19", FAMILIES)) == 3


def test_register_adds_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "FAMILIES", dict(FAMILIES))
    register(
        Family(("mynet",), head="1", feature_boundary="1", build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    )
    assert find_family("mynet").head == "1"


def test_register_refuses_a_taken_name_and_a_family_without_build() -> None:
    with pytest.raises(ValueError, match="already has resnet18"):
        register(Family(("resnet18",), head="fc", feature_boundary="fc", build=nn.Identity))
    with pytest.raises(ValueError, match="needs build="):
        register(Family(("mynet",), head="fc", feature_boundary="fc"))


# one small member of each row; the slow tests build all eighty
SMALL = [
    "resnet18",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "googlenet",
    "densenet121",
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "squeezenet1_0",
    "mobilenet_v3_small",
    "swin_t",
]


def test_table_names_are_exactly_torchvisions() -> None:
    assert sorted(FAMILIES) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert len(FAMILIES) == 80


def _shapes(name: str, num_classes: int) -> dict[str, torch.Size]:
    """Shapes of all tensors; on the meta device where the network allows (regnet reads data while it is built)."""
    options: dict[str, Any] = {"aux_logits": True, "init_weights": False} if FAMILIES[name].aux else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"), restore._SkipInit():
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return {k: v.shape for k, v in network.state_dict().items()}


def _prove(name: str) -> None:
    three, five = _shapes(name, 3), _shapes(name, 5)
    changed = {k.rpartition(".")[0] for k in three if three[k] != five[k]}
    assert changed == {FAMILIES[name].head, *FAMILIES[name].aux}
    with torch.device("cpu" if name.startswith("regnet") else "meta"), restore._SkipInit():
        options: dict[str, Any] = {"aux_logits": True, "init_weights": False} if FAMILIES[name].aux else {}
        torchvision.models.get_model(name, weights=None, **options).get_submodule(FAMILIES[name].feature_boundary)


@pytest.mark.parametrize("name", SMALL)
def test_table_head_and_aux_are_all_that_depends_on_num_classes(name: str) -> None:
    _prove(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(SMALL)))
def test_table_head_and_aux_are_all_that_depends_on_num_classes_in_every_model(name: str) -> None:
    _prove(name)
