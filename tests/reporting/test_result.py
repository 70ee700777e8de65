"""Test `finetune.reporting.result`; what training leaves in it is tested in `tests/end_to_end/test_api.py`."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune import ImageDataModule, TrainingRun
from finetune.training.history import History
from tests.helpers import make_finetuner


def test_without_a_checkpoint_the_module_is_the_one_that_was_trained(tmp_path: Path) -> None:
    module = make_finetuner("squeezenet1_1").train()
    history = History(tmp_path / "metrics.csv", "val/acc")
    run = TrainingRun(tmp_path, "val/acc", None, {}, {}, module, ImageDataModule(tmp_path), history)
    assert run.with_best_weights().module is module
    assert not module.training
    (tmp_path / "checkpoints").mkdir()
    other = make_finetuner("squeezenet1_1")
    other.save(tmp_path / "checkpoints" / "best.ckpt")
    best = run.with_best_weights().module
    weight = "backbone.classifier.1.weight"
    assert torch.equal(best.state_dict()[weight], other.state_dict()[weight])
    assert not torch.equal(best.state_dict()[weight], module.state_dict()[weight])
    assert run.module is module
