"""Test `finetune.training.solved_head`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner, ImageDataModule
from finetune.training import solved_head
from finetune.training.callbacks import BestCheckpoint
from finetune.training.history import History
from finetune.training.losses import FocalLoss
from tests.helpers import COLOURS, SMALLEST_OF_FAMILY, write_images

Fit = Callable[..., tuple[FineTuner, ImageDataModule]]


@pytest.fixture
def fit(photos: Path, trainer: Callable[..., Trainer], tmp_path: Path) -> Fit:
    def run(model: str = "squeezenet1_1", root: Path = photos, epochs: int = 2, **options: Any) -> Any:
        size = SMALLEST_OF_FAMILY.get(model, 32)
        given = {key: options.pop(key) for key in ("augment", "sampler") if key in options}
        callbacks = options.pop("callbacks", [])
        data = ImageDataModule(root, num_workers=0, image_size=size, cache_dir=tmp_path / "cache", **given)
        strategy = options.pop("strategy", "linear_probe")
        torch.manual_seed(0)
        module = FineTuner(
            model, data.prepare().classes, strategy, weights="none", preprocess={"size": size}, **options
        )
        trainer(epochs, callbacks=callbacks, enable_checkpointing=bool(callbacks)).fit(module, datamodule=data)
        return module.eval(), data

    return run


def entered(module: FineTuner, data: ImageDataModule, split: str) -> Tensor:
    """What enters the head, by a hook; of a map its average."""
    found: list[Tensor] = []
    handle = module.head.register_forward_hook(lambda layer, inputs, output: found.append(inputs[0]))
    with torch.no_grad():
        for images in data.iterate_split(split):
            module(images)
    handle.remove()
    return torch.cat([x.mean(dim=(2, 3)) if x.ndim == 4 else x for x in found])


def answers(module: FineTuner, data: ImageDataModule, split: str) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(images).double().softmax(dim=1) for images in data.iterate_split(split)])


def test_the_head_is_solved_on_plain_images_whatever_augments_later(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, data = fit("resnet18", augment="none")
    assert "without augmentation" not in capsys.readouterr().out
    augmented, _ = fit("resnet18", augment="trivial")
    assert "the head is solved on the images without augmentation" in " ".join(capsys.readouterr().out.split())
    torch.testing.assert_close(answers(augmented, data, "val"), answers(plain, data, "val"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "vgg11"])
def test_the_network_answers_as_scikit_learns_logistic_regression(
    model: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of rows, of SqueezeNet's map behind which a rectifier stands, and of layers before the head that are pretrained."""
    module, data = fit(model)
    printed = " ".join(capsys.readouterr().out.split())
    l2 = float(printed.partition("L2 strength ")[2].split(",")[0])
    x = entered(module, data, "train").double().numpy()
    mean, scale = x.mean(axis=0), np.sqrt(((x - x.mean(axis=0)) ** 2).mean())
    labels = data.splits["train"].labels
    expected = LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=10_000).fit((x - mean) / scale, labels)
    for split in ("train", "val"):
        wanted = expected.predict_proba((entered(module, data, split).double().numpy() - mean) / scale)
        assert np.abs(answers(module, data, split).numpy() - wanted).max() < 5e-3


def test_a_run_of_linear_probe_has_one_epoch_in_which_nothing_moves(fit: Fit) -> None:
    module, data = fit(epochs=5)
    assert module.trainer.current_epoch == 1
    assert module.trainer.callback_metrics["train/loss"] == pytest.approx(
        float(-answers(module, data, "train").log()[range(24), data.splits["train"].labels].mean()), abs=1e-4
    )
    assert module.out_of_fold is not None
    logits, labels = module.out_of_fold
    assert logits.shape == (24, 3)
    assert labels.tolist() == data.splits["train"].labels
    # the answers of those folds are worse than those for images that were fitted
    assert torch.nn.functional.cross_entropy(logits, labels) > module.trainer.callback_metrics["train/loss"]


def test_the_same_run_has_the_same_head(fit: Fit) -> None:
    first, second = (fit()[0].head.get_parameter("weight") for _ in range(2))
    assert torch.equal(first, second)


def test_a_head_without_kept_features_is_the_same(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    kept, data = fit("resnet18")
    strategy = {"groups": [{"match": "@head", "lr": 0.0}, {"match": ".*", "start": None}], "solve_head": True}
    anew, _ = fit("resnet18", strategy={**strategy, "cache": "never"})
    assert "computed again in every step" in " ".join(capsys.readouterr().out.split())
    assert torch.allclose(answers(kept, data, "val"), answers(anew, data, "val"), atol=1e-3)


def test_views_are_all_solved_for(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = {"groups": [{"match": "@head", "lr": 0.0}, {"match": ".*", "start": None}], "solve_head": True}
    module, _ = fit(strategy={**strategy, "views": 3}, augment="basic")
    said = " ".join(capsys.readouterr().out.split())
    assert "solved on 72 x 512 features" in said
    assert "(3 augmented views of each image)" in said
    assert module.out_of_fold is None  # 72 answers of 24 images that nobody asks for are no measure of certainty
    fit(augment="basic")
    assert "the head is solved on the images without augmentation" in " ".join(capsys.readouterr().out.split())


def test_a_part_of_the_batches_is_no_part_of_the_solved_head_and_it_says_so(
    photos: Path, trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageDataModule(photos, num_workers=0, image_size=32, batch_size=4)
    module = FineTuner("resnet18", data.prepare().classes, "linear_probe", weights="none", preprocess={"size": 32})
    trainer(1, limit_train_batches=2).fit(module, datamodule=data)
    said = " ".join(capsys.readouterr().out.split())
    assert "solved on 24 x 512 features" in said
    assert "the head is solved on all training images: trainer.limit_train_batches" in said


def test_class_weights_move_the_head(fit: Fit) -> None:
    module, data = fit("resnet18")
    heavy, _ = fit("resnet18", class_weights=[20.0, 1.0, 1.0])
    assert answers(heavy, data, "val")[:, 0].mean() > answers(module, data, "val")[:, 0].mean()


def test_fine_tuning_begins_from_the_solved_head(fit: Fit) -> None:
    """The first epoch validates it, and the second trains the trunk."""
    probe, data = fit("resnet18")
    start, _ = fit("resnet18", epochs=1, strategy="lp_ft")
    tuned, _ = fit("resnet18", epochs=2, strategy="lp_ft")
    assert torch.equal(start.head.get_parameter("weight"), probe.head.get_parameter("weight"))
    assert torch.equal(answers(start, data, "val"), answers(probe, data, "val"))
    assert not torch.equal(tuned.backbone.get_parameter("conv1.weight"), start.backbone.get_parameter("conv1.weight"))
    assert start.out_of_fold is None
    assert start.strategy_table()[0][-1] == "epoch 2"


def test_a_solved_head_of_the_whole_network_waits_an_epoch_too(fit: Fit) -> None:
    strategy = {"groups": [{"match": "@head"}, {"match": ".*"}], "solve_head": True}
    first, _ = fit("resnet18", epochs=1, strategy=strategy)
    fresh = FineTuner("resnet18", 3, weights="none")
    assert not first.schedule.trunk_is_trainable(0)
    assert first.schedule.trunk_is_trainable(1)
    assert len(first.schedule.trainable_names(1)) == len(dict(fresh.backbone.named_parameters()))


def test_batches_of_a_loader_of_ones_own_are_taken(trainer: Callable[..., Trainer]) -> None:
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(24) % 2
    images[labels == 1] //= 4
    module = FineTuner("resnet18", 2, "linear_probe", weights="none", preprocess={"size": 32})
    trainer().fit(module, DataLoader(TensorDataset(images, labels), batch_size=5, shuffle=True))
    assert (module.eval()(images).argmax(dim=1) == labels).all()


def test_few_images_take_the_default_strength_and_say_so(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "few", {"train": {"cat": 1, "dog": 4}, "val": dict.fromkeys(["cat", "dog"], 1)})
    module, _ = fit(root=root)
    printed = " ".join(capsys.readouterr().out.split())
    assert "a class has 1 training image, too few to choose the L2 strength by cross-validation; it is 0.01." in printed
    assert module.out_of_fold is None


def test_images_that_are_all_alike_are_refused(fit: Fit, tmp_path: Path) -> None:
    root = write_images(tmp_path / "alike", {"train": dict.fromkeys(COLOURS, 1), "val": dict.fromkeys(COLOURS, 1)})
    content = next((root / "train").rglob("*.png")).read_bytes()
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(content)
    with pytest.raises(ValueError, match="All 3 training images have the same features"):
        fit(root=root)


def test_what_is_no_linear_head_or_another_loss_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match="solves a head for cross entropy, and the loss is FocalLoss"):
        fit(loss=FocalLoss)
    layers = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="one linear layer; here it is a Sequential"):
        fit("resnet18", head=layers)


def test_many_rows_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.arange(6.0).view(2, 3), torch.arange(6.0, 15).view(3, 3)]
    in_memory = solved_head._gather(iter(parts), 5, tmp_path)
    monkeypatch.setattr(solved_head, "RESIDENT_BYTES", 0)
    in_file = solved_head._gather(iter(parts), 5, tmp_path / "cache")
    assert torch.equal(in_memory, torch.cat(parts))
    assert torch.equal(in_file, torch.cat(parts))
    assert not list((tmp_path / "cache").iterdir())


def test_a_sampler_is_said_not_to_count(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(sampler="balanced")
    assert "data.sampler=balanced does not count in the solved head" in " ".join(capsys.readouterr().out.split())


def test_a_class_of_one_group_is_not_predicted_by_heads_that_have_never_seen_it() -> None:
    """Its logits would be minus infinity, and the loss of the folds infinite."""
    notes: list[str] = []
    data: Any = SimpleNamespace(seed=0)
    labels = [0, 1] * 6 + [2] * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "finetune.training.solved_head.grouping.assign_folds", lambda *args: [i % 4 for i in range(12)] + [1] * 4
        )
        assert solved_head._folds(labels, data, notes) is None
        assert "all of them in one group, too few to choose" in notes[0]
        patch.setattr("finetune.training.solved_head.grouping.assign_folds", lambda *args: [i % 4 for i in range(16)])
        assert solved_head._folds(labels, data, notes) == [i % 4 for i in range(16)]


def test_statistics_of_a_frozen_trunk_stay_while_the_head_is_solved(fit: Fit) -> None:
    groups = [{"match": "@head", "lr": 0.0}, {"match": ".*", "start": None}]
    module, _ = fit("resnet18", strategy={"groups": groups, "solve_head": True, "frozen_norm": "train"})
    assert int(module.backbone.get_buffer("bn1.num_batches_tracked")) == 0


def test_training_metrics_do_not_make_the_solved_head_the_best(fit: Fit, tmp_path: Path) -> None:
    """They are of its optimum, without dropout and augmentation, and no later epoch could reach them."""
    history = History(tmp_path / "metrics.csv", "train/loss")
    best = BestCheckpoint(tmp_path / "checkpoints", "train/loss")
    fit("resnet18", epochs=3, strategy="lp_ft", callbacks=[history, best])
    losses = [row["train/loss"] for row in history.rows]
    assert min(losses) == losses[0]
    chosen = history.best()
    assert chosen is not None
    assert chosen["epoch"] > 1
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == chosen["epoch"] - 1


def test_a_run_of_one_epoch_keeps_its_solved_head_whatever_is_monitored(fit: Fit, tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", "train/loss")
    best = BestCheckpoint(tmp_path / "checkpoints", "train/loss")
    fit("resnet18", epochs=1, strategy="lp_ft", callbacks=[history, best])
    chosen = history.best()
    assert chosen is not None
    assert chosen["epoch"] == 1
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_a_plateau_is_not_measured_against_the_solved_head(fit: Fit) -> None:
    """Its training loss is the optimum: with no patience at all, the rate would fall after every later epoch."""
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1)
    optimizer = partial(torch.optim.SGD, lr=1e-6)
    module, _ = fit(
        "resnet18", epochs=2, strategy="lp_ft", optimizer=optimizer, scheduler=plateau, monitor="train/loss"
    )
    scheduler: Any = module.trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.num_bad_epochs, scheduler.last_epoch) == (0, 1)


def test_an_average_that_begins_late_is_refused(fit: Fit) -> None:
    """Until then, it would be of the weights from before the head was solved."""
    with pytest.raises(
        ValueError, match=r"update_starting_at_step=5 would validate and save, until then, weights from before"
    ):
        fit("resnet18", strategy="lp_ft", callbacks=[EMAWeightAveraging(update_starting_at_step=5)])
