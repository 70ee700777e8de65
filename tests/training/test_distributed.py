"""Test `finetune.training.distributed`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import ImageDataModule
from finetune.training.distributed import leave_group, rescale_loss
from finetune.training.losses import FocalLoss


def trainer_of(average: Tensor, world: int = 2, last: bool = True) -> Any:
    """A trainer of several processes, whose counts have that mean."""
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: average.to(value.dtype))
    data = ImageDataModule("photos", num_workers=0)
    return SimpleNamespace(world_size=world, is_last_batch=last, strategy=strategy, datamodule=data)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 4.0, 0.5])])
def test_the_mean_over_processes_is_the_mean_over_all_their_images(weights: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 1])
    parts = [slice(0, 3), slice(3, 5)]  # the last batch of one process has an image more
    weight = None if weights is None else weights.double()
    per_image = torch.ones(5, dtype=torch.float64) if weight is None else weight[labels]
    counts = [
        torch.stack([per_image[part].sum(), torch.tensor(len(labels[part]), dtype=torch.float64)]) for part in parts
    ]
    trainer = trainer_of(torch.stack(counts).mean(dim=0))
    scaled = []
    for part in parts:
        loss = nn.functional.cross_entropy(logits[part], labels[part], weight)
        scaled.append(rescale_loss(loss, labels[part], nn.CrossEntropyLoss(weight), trainer)[0])
    torch.testing.assert_close(torch.stack(scaled).mean(), nn.functional.cross_entropy(logits, labels, weight))


def test_a_process_alone_and_batches_of_equal_size_are_left_as_they_are() -> None:
    loss, labels = torch.tensor(0.7), torch.tensor([0, 1, 1])
    nothing = torch.full((2,), float("nan"))
    for trainer in (None, trainer_of(nothing, world=1), trainer_of(nothing, last=False)):
        assert rescale_loss(loss, labels, nn.CrossEntropyLoss(), trainer) == (loss, 3)


def test_a_sum_over_images_is_the_sum_over_all_processes() -> None:
    losses, labels = torch.tensor([0.5, 0.25, 2.0, 1.0, 4.0]), torch.tensor([0, 1, 2, 1, 1])
    criterion = nn.CrossEntropyLoss(reduction="sum")
    trainer = trainer_of(torch.tensor([2.5, 2.5]))
    scaled = [
        rescale_loss(losses[part].sum(), labels[part], criterion, trainer)[0] for part in (slice(0, 3), slice(3, 5))
    ]
    torch.testing.assert_close(torch.stack(scaled).mean(), losses.sum())  # DDP takes the mean of gradients


def test_a_loss_of_ones_own_is_the_mean_over_the_images_of_all_processes() -> None:
    losses, labels = torch.tensor([0.5, 0.25, 2.0, 1.0, 4.0]), torch.tensor([0, 1, 2, 1, 1])
    trainer = trainer_of(torch.tensor([2.5, 2.5]))
    scaled = [
        rescale_loss(losses[part].mean(), labels[part], FocalLoss(), trainer)[0] for part in (slice(0, 3), slice(3, 5))
    ]
    torch.testing.assert_close(torch.stack(scaled).mean(), losses.mean())


def test_the_group_of_processes_on_cpus_is_left_where_there_is_one(tmp_path: Path) -> None:
    leave_group()  # there is none
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.distributed.all_reduce(torch.ones(3))
        leave_group()
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
