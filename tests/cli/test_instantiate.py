"""Test `finetune.cli.instantiate`."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Optimizer

from finetune.cli import instantiate


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "os.system is not allowed"),
        ("builtins.open", "is not allowed"),
        ("torch.load", "is not allowed"),
        ("torch.hub.load", "is not allowed"),
        ("pathlib.Path", "is not allowed"),
        ("torch.optim.Adma", r"no class in torch\.optim 'Adma'.*Adam"),
        ("torch.optim.nothing.SGD", "cannot be imported"),
        ("torch.optim.lr_scheduler.StepLR", "is not a Optimizer"),
        ("torchvision.datasets.CIFAR10", "is not a Optimizer"),
        ("finetune.io.download.fetch", "is not a Optimizer"),
        ("torch.optim.optimizer.warnings", "is not a Optimizer"),
        (None, "named by _target_"),
    ],
)
def test_factory_refuses_what_is_not_an_allowed_class(target: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instantiate.factory({"_target_": target, "command": "touch /tmp/x"}, Optimizer)


def test_factory_wrong_argument_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'learning_rate'.*It takes lr, momentum"):
        instantiate.factory({"_target_": "torch.optim.SGD", "learning_rate": 1}, Optimizer)


def test_factory_more_prefixes_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        instantiate.factory({"_target_": "torchvision.ops.Permute"}, torch.nn.Module)
    monkeypatch.setenv("FINETUNE_ALLOW", "torchvision.ops")
    make = instantiate.factory({"_target_": "torchvision.ops.Permute", "dims": [1, 0]}, torch.nn.Module)
    assert make().dims == [1, 0]
