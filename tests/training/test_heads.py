"""Test `finetune.training.heads`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from finetune import FineTuner
from tests.helpers import CLASSES, make_batches, make_finetuner
from tests.training.helpers import changed_tensors, snapshot


def test_a_head_that_is_set_is_in_the_network_the_groups_and_the_record() -> None:
    module = make_finetuner("resnet18", "differential")
    new = nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 3))
    module.head = new
    assert module.backbone.get_submodule("fc") is new
    claimed = {group.name: names for group, names in module.schedule.groups}
    assert claimed["head"] == ["fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"]
    assert module.hparams["head"]["path"] == "fc"
    module.head = nn.Linear(512, 3, bias=False)
    assert module.hparams["head"]["layers"]["arguments"] == {"in_features": 512, "out_features": 3, "bias": False}


class Scaled(nn.Linear):
    """Its code says more than its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "head"),
    [("squeezenet1_1", nn.Conv2d(512, 3, 1, stride=2)), ("resnet18", nn.Linear(512, 3, bias=False)), ("resnet18", Scaled(512, 3))],
)  # fmt: skip
def test_a_head_of_one_layer_loads_with_the_arguments_and_the_code_that_it_had(
    model: str, head: nn.Module, tmp_path: Path
) -> None:
    module = make_finetuner(model).eval()
    module.head = head
    module.save(tmp_path / "own.ckpt")
    given: Any = {"head": Scaled(512, 3)} if isinstance(head, Scaled) else {}
    if given:
        with pytest.raises(ValueError, match="layers that a checkpoint cannot describe"):
            FineTuner.load_from_checkpoint(tmp_path / "own.ckpt")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(FineTuner.load_from_checkpoint(tmp_path / "own.ckpt", **given)(images), module(images))


@pytest.mark.parametrize(
    ("head", "message"),
    [(nn.Identity(), "an Identity|a Identity, has no parameters"), (nn.Conv2d(512, 3, 1), "begins with a Conv2d, and the network's own is a Linear")],
)  # fmt: skip
def test_a_head_of_another_kind_is_refused(head: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_finetuner().head = head


def test_a_strategy_that_is_set_is_the_one_that_trains(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner()
    strategy: Any = "finetune"
    module.strategy = strategy
    before = snapshot(module)
    trainer(1).fit(module, make_batches(64), make_batches(64))
    assert {"conv1.weight", "fc.weight"} <= changed_tensors(before, module)
    assert module.hparams["strategy"]["name"] == "finetune"


@pytest.mark.parametrize("head", [3, "fc", None])
def test_a_head_that_is_no_module_is_refused(head: object) -> None:
    with pytest.raises(ValueError, match="The head must be a module, got"):
        make_finetuner().head = head  # type: ignore[assignment]


def test_a_network_that_is_put_in_its_place_is_the_one_that_trains(trainer: Callable[..., Trainer]) -> None:
    module, other = make_finetuner("resnet18", "differential"), make_finetuner("resnet18").backbone
    module.backbone = other
    before = snapshot(module)
    trainer(1).fit(module, make_batches(64), make_batches(64))
    assert {"conv1.weight", "fc.weight"} <= changed_tensors(before, module)
    with pytest.raises(ValueError, match=r"The new backbone has no head 'fc': make a FineTuner of it"):
        module.backbone = nn.Sequential(nn.Conv2d(3, 3, 3))


def test_a_copy_of_a_module_trains_by_itself(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18", "differential")
    copied, before = copy.deepcopy(module), snapshot(module)
    trainer(1).fit(copied, make_batches(64), make_batches(64))
    assert {"conv1.weight", "fc.weight"} <= changed_tensors(before, copied)
    assert changed_tensors(before, module) == set()


def test_a_copy_knows_what_its_strategy_froze() -> None:
    copied = copy.deepcopy(make_finetuner("resnet18", "feature_extract"))
    copied.head = nn.Linear(512, 3)
    assert copied.schedule.frozen_by_hand == set()
    assert FineTuner(copied.backbone, CLASSES, "finetune", head="fc").schedule.frozen_by_hand == set()


def test_a_module_in_evaluation_stays_so_with_another_head() -> None:
    module = make_finetuner().eval()
    module.head = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))
    assert not any(part.training for part in module.modules())


def test_a_head_goes_where_the_network_is() -> None:
    module = make_finetuner().double()
    module.head = nn.Linear(512, 3)
    assert module.head.get_parameter("weight").dtype == torch.float64
