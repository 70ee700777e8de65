"""Test `finetune.training.resume`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import Trainer

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
