"""Test `finetune.training.resume`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from finetune.training.resume import _fit_to_run
from tests.helpers import make_batches, make_finetuner
from tests.training.helpers import changed_tensors, snapshot


def test_resume_past_an_unfreeze_is_in_the_right_state_and_frozen_parts_identical(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    strategy = {"groups": [{"match": "@head"}, {"match": "layer4", "start": 1}, {"match": ".*", "start": None}]}
    module = make_finetuner("resnet18", strategy)
    start = snapshot(module)
    first = trainer(2)
    first.fit(module, make_batches(), make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = make_finetuner("resnet18", strategy)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trainer(3).fit(resumed, make_batches(), make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    moved = {k.removeprefix("backbone.") for k, v in resumed.state_dict().items() if not torch.equal(before[k], v)}
    assert any(n.startswith("layer4") and n.endswith("weight") for n in moved)
    assert all(n.startswith(("layer4", "fc")) for n in moved)
    assert all(n.startswith(("layer4", "fc")) for n in changed_tensors(start, resumed) & set(start))


@pytest.mark.parametrize("options", [{}, {"three_phase": True}, {"anneal_strategy": "linear", "pct_start": 0.5}])
@pytest.mark.parametrize("total", [12, 30])
def test_a_one_cycle_of_another_length_goes_on_as_if_it_had_been_made_with_it(
    total: int, options: dict[str, Any]
) -> None:
    def make(steps: int) -> tuple[SGD, OneCycleLR]:
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, **options)
        optimizer.step()
        return optimizer, scheduler

    (changed, scheduler), (expected, other) = make(20), make(total)
    for _ in range(5):
        scheduler.step()
        other.step()
    _fit_to_run(scheduler, changed, total - 5)
    for _ in range(total - 6):
        scheduler.step()
        other.step()
        for key in ("lr", "momentum"):
            assert changed.param_groups[0][key] == pytest.approx(expected.param_groups[0][key], rel=1e-9)
