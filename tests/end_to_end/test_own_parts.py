"""Train with a loss, metrics, optimizers, schedulers and batches of one's own."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
import torchmetrics
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, CyclicLR, LinearLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.ops import sigmoid_focal_loss

from finetune import FineTuner, ImageDataModule
from finetune.training.callbacks import BestCheckpoint
from finetune.training.losses import BCELoss, FocalLoss
from tests.end_to_end.test_own_code import Rates, data_of, rates_by_hand
from tests.helpers import CLASSES, TINY, SmallNetwork, make_batches, make_finetuner
from tests.training.helpers import changed_tensors, snapshot

Make = Callable[..., Trainer]


def small(**options: Any) -> FineTuner:
    torch.manual_seed(3)
    return FineTuner(SmallNetwork(), CLASSES, **{"strategy": "finetune", "head": "fc", **options})


def trained_by_hand(loss_of: Callable[[Tensor, Tensor], Tensor], lr: float = 0.1, epochs: int = 2) -> nn.Module:
    module = small()
    module.train()
    optimizer = SGD(module.backbone.parameters(), lr=lr)
    for _ in range(epochs):
        for images, labels in make_batches(16):
            optimizer.zero_grad()
            loss_of(module.backbone(images), labels).backward()
            optimizer.step()
    return module.backbone


def assert_equal_networks(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, atol=1e-5, rtol=1e-5, msg=name)


# --- losses ------------------------------------------------------------------------------------------------------------


def focal_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    probabilities = logits.softmax(dim=1)[range(len(labels)), labels]
    return (-((1 - probabilities) ** 2) * probabilities.log()).mean()


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (FocalLoss(gamma=2.0), focal_by_hand),
        (FocalLoss, focal_by_hand),
        (
            lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
            nn.functional.cross_entropy,
        ),
        (partial(nn.CrossEntropyLoss, reduction="sum"), partial(nn.functional.cross_entropy, reduction="sum")),
        (nn.MultiMarginLoss(), nn.functional.multi_margin_loss),
    ],
    ids=["module", "class", "per image", "sum", "torch"],
)
def test_a_loss_of_ones_own_trains_as_a_loop_by_hand(loss: Any, by_hand: Any, trainer: Make) -> None:
    module = small(loss=loss, optimizer=partial(SGD, lr=0.1))
    trainer(2).fit(module, make_batches(16), make_batches(16))
    assert_equal_networks(trained_by_hand(by_hand), module.backbone)


def test_a_criterion_that_is_set_is_the_one_that_trains(trainer: Make) -> None:
    module = small(optimizer=partial(SGD, lr=0.1))
    module.criterion = FocalLoss()
    trainer(2).fit(module, make_batches(16), make_batches(16))
    assert_equal_networks(trained_by_hand(focal_by_hand), module.backbone)


def test_the_losses_that_are_shipped_are_those_of_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = torch.tensor([1.0, 2.0, 0.5])
    shares = nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(FocalLoss(0.0)(logits, labels).mean(), nn.functional.cross_entropy(logits, labels))
    expected = weight[labels] * nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(FocalLoss(0.0, weight)(logits, labels), expected)
    smoothed = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(FocalLoss(0.0, label_smoothing=0.2)(logits, labels).mean(), smoothed)
    binary = sigmoid_focal_loss(logits, shares, alpha=-1, gamma=0).sum(dim=1)  # gamma 0 is binary cross entropy
    torch.testing.assert_close(BCELoss()(logits, labels), binary)
    mixed = 0.3 * shares + 0.7 * shares.roll(1, 0)
    torch.testing.assert_close(BCELoss()(logits, mixed), 0.3 * binary + 0.7 * BCELoss()(logits, shares.roll(1, 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "focal"}, "loss= takes callable or None, got 'focal'"),
        (
            {"loss": nn.MultiMarginLoss, "label_smoothing": 0.1},
            "MultiMarginLoss takes no label_smoothing; it takes p, margin",
        ),
        ({"loss": FocalLoss(), "label_smoothing": 0.1}, "is made already: give it its label_smoothing itself"),
        ({"optimiser": SGD}, "no argument 'optimiser'.*optimizer"),
        ({"mixup": "yes"}, "mixup= takes a number, got 'yes'"),
        ({"mixup": -1}, "mixup must be 0 or more, got -1"),
        ({"warmup": -1}, "warmup must be 0 or more, got -1"),
        ({"class_weights": ["a", "b", "c"]}, "class_weights= takes numbers, got"),
        ({"monitor": 3}, "monitor= takes text, got 3"),
        ({"metrics": {"acc": torchmetrics.CohenKappa("multiclass", num_classes=3)}}, "metrics: 'acc' is taken"),
        (
            {"metrics": {"kappa": torchmetrics.CohenKappa("multiclass", num_classes=2)}},
            r"kappa does not take probabilities \(N, 3\)",
        ),
        ({"metrics": {"kappa": 3}}, "metrics: kappa must be a torchmetrics Metric, got a int"),
        ({"scheduler": StepLR, "scheduler_interval": "weekly"}, "no scheduler interval 'weekly'"),
    ],
)
def test_arguments_that_make_no_sense_are_told_what_does(options: dict[str, Any], message: str, trainer: Make) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(1).fit(small(**options), make_batches(16))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.BCEWithLogitsLoss(), r"The loss BCEWithLogitsLoss does not take logits \(3, 3\) and targets torch\.int64 \(3,\)"),
        (lambda logits: logits.mean(), "does not take logits .* positional argument"),
        (lambda logits, labels: nn.functional.cross_entropy(logits, labels + 5), "does not take logits .*out of bounds"),
    ],
)  # fmt: skip
def test_a_loss_that_fails_says_what_it_was_given(loss: Any, message: str, trainer: Make) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(1).fit(small(loss=loss), make_batches(16))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(3, 16, 16, 3), r"torch\.float32 \(3, 16, 16, 3\)"),
        (torch.zeros(3, 3, 16, 16, dtype=torch.int64), r"torch\.int64 \(3, 3, 16, 16\)"),
        (torch.zeros(3, 1, 16, 16), r"torch\.float32 \(3, 1, 16, 16\)"),
    ],
)
def test_batches_that_are_no_images_are_refused(images: Tensor, got: str, trainer: Make) -> None:
    loader = DataLoader(TensorDataset(images, torch.tensor([0, 1, 2])), batch_size=3)
    with pytest.raises(ValueError, match=rf"Images are \(N, 3, H, W\), uint8 or normalised floats, got {got}"):
        trainer(1).fit(small(), loader)


def test_a_loss_that_returns_a_table_is_refused(trainer: Make) -> None:
    module = small(loss=lambda logits, labels: logits)
    with pytest.raises(ValueError, match=r"The loss returned a tensor of shape \(3, 3\); it must return one number"):
        trainer(1).fit(module, make_batches(16))


class Centred(nn.Module):
    """A loss with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits * self.scale, labels)


def test_a_module_that_goes_on_with_another_loss_than_its_file_says_so(
    trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_finetuner(loss=FocalLoss).save(tmp_path / "focal.ckpt")
    noted = []
    choices: list[dict[str, Any]] = [{}, {"loss": FocalLoss}]
    for loss in choices:
        module = FineTuner.load_from_checkpoint(tmp_path / "focal.ckpt", optimizer=partial(SGD, lr=0.1), **loss)
        trainer(1).fit(module, make_batches(64), make_batches(64))
        text = "the file was trained with the loss FocalLoss, and this run trains with CrossEntropyLoss"
        noted.append(text in " ".join(capsys.readouterr().out.split()))
    assert noted == [True, False]


def test_a_loss_with_weights_that_nothing_would_train_is_refused(trainer: Make) -> None:
    with pytest.raises(
        ValueError, match=r"The loss Centred has parameters of its own \(scale\), which no group trains"
    ):
        trainer(1).fit(small(loss=Centred()), make_batches(16))


def test_a_criterion_may_be_a_function_or_a_class(trainer: Make) -> None:
    for criterion in (lambda logits, labels: FocalLoss()(logits, labels), FocalLoss):
        module = small(optimizer=partial(SGD, lr=0.1))
        module.criterion = criterion
        trainer(2).fit(module, make_batches(16), make_batches(16))
        assert_equal_networks(trained_by_hand(focal_by_hand), module.backbone)
    with pytest.raises(ValueError, match="loss= takes a function or module"):
        module.criterion = 3


def test_a_file_with_a_loss_that_has_weights_loads_without_it(tmp_path: Path) -> None:
    module = make_finetuner(loss=Centred())
    module.save(tmp_path / "own.ckpt")
    again = FineTuner.load_from_checkpoint(tmp_path / "own.ckpt")
    torch.testing.assert_close(again.head.get_parameter("weight"), module.head.get_parameter("weight"))
    FineTuner.load_from_checkpoint(tmp_path / "own.ckpt", loss=Centred())


# --- metrics -----------------------------------------------------------------------------------------------------------


def test_a_metric_of_ones_own_is_logged_and_chooses_the_best_epoch(photos: Path, trainer: Make, tmp_path: Path) -> None:
    metrics = {
        "kappa": torchmetrics.CohenKappa("multiclass", num_classes=3),
        "hinge": torchmetrics.HingeLoss("multiclass", num_classes=3),
    }
    module = make_finetuner(
        "resnet18", "finetune", metrics=metrics, preprocess={"size": 32}, optimizer=partial(SGD, lr=0.02)
    )
    assert [module.metrics.monitor_mode(f"val/{name}") for name in ("kappa", "hinge", "loss")] == ["max", "min", "min"]
    data = data_of(photos, augment="none")
    best = BestCheckpoint(tmp_path, "val/kappa", mode="max")
    trainer(3, callbacks=[best], enable_checkpointing=True).fit(module, datamodule=data)
    again = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt")
    with torch.no_grad():
        predicted = torch.cat([again(x).argmax(dim=1) for x, _ in data.val_dataloader()])
    expected = cohen_kappa_score(data.splits["val"].labels, predicted.numpy())
    assert best.best_model_score is not None
    assert float(best.best_model_score) == pytest.approx(expected, abs=1e-6)


def test_metrics_and_a_loss_of_the_configuration_are_in_every_file(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["loss=focal", "loss.gamma=1", "loss.label_smoothing=0.1", "+metrics=[kappa,mcc]", "monitor=val/kappa"]
    folder, code = command("train", *TINY, "data.augment=none", *words, f"data.root={photos}", "report=true")
    assert code == 0
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((folder / "metrics.json").read_text())
    assert {"val/kappa", "val/mcc"} <= rows[0].keys()
    best = max(rows, key=lambda row: float(row["val/kappa"]))
    assert summary["best"]["val/kappa"] == float(best["val/kappa"])
    assert "further metrics" in (folder / "report.html").read_text()
    capsys.readouterr()
    where, code = command("evaluate", f"ckpt={folder}", "+metrics=kappa")
    assert code == 0
    values = json.loads((where / "evaluation.json").read_text())
    with (where / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    expected = cohen_kappa_score([p["true"] for p in predictions], [p["label"] for p in predictions])
    assert values["metrics"]["kappa"] == pytest.approx(expected, abs=1e-6)
    text = capsys.readouterr().out
    assert f"Further   kappa {expected:.4f}" in text
    assert "its run measured mcc too: +metrics=[mcc]" in text


class Cost(torchmetrics.Metric):
    """Has a table that torch counts as its state."""

    higher_is_better = False
    costs: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("costs", torch.eye(3))
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.total += self.costs[target, preds.argmax(dim=1)].sum()

    def compute(self) -> Tensor:
        return self.total


def test_a_metric_with_a_table_of_its_own_leaves_files_that_load(tmp_path: Path) -> None:
    module = make_finetuner(metrics={"cost": Cost()})
    module.save(tmp_path / "own.ckpt")
    again = FineTuner.load_from_checkpoint(tmp_path / "own.ckpt")
    torch.testing.assert_close(again.head.get_parameter("weight"), module.head.get_parameter("weight"))
    FineTuner.load_from_checkpoint(tmp_path / "own.ckpt", metrics={"cost": Cost()})


class Curious(FineTuner):
    """Keeps all of its arguments as hyper-parameters."""

    def __init__(self, optimizer: Any, **options: Any) -> None:
        super().__init__(optimizer=optimizer, **options)
        self.save_hyperparameters("optimizer")


def test_a_hyper_parameter_that_no_file_can_hold_is_refused_when_it_is_written(tmp_path: Path) -> None:
    module = Curious(partial(SGD, lr=0.1), model="squeezenet1_1", classes=CLASSES, weights="none")
    with pytest.raises(ValueError, match=r"hyper-parameter optimizer is a partial, which a checkpoint cannot hold"):
        module.save(tmp_path / "own.ckpt")


def test_arguments_may_be_paths_arrays_and_numbers_of_numpy(tmp_path: Path) -> None:
    module = make_finetuner()
    module.save(tmp_path / "old.ckpt")
    options: dict[str, Any] = {
        "classes": np.array(CLASSES), "weights": tmp_path / "old.ckpt", "mixup": np.float32(0.5), "in_channels": np.int64(3),
        "class_weights": np.array([1.0, 2.0, 3.0]),
    }  # fmt: skip
    again = FineTuner("resnet18", **options)
    assert again.criterion.weight.tolist() == [1.0, 2.0, 3.0]
    torch.testing.assert_close(
        again.backbone.get_parameter("conv1.weight"), module.backbone.get_parameter("conv1.weight")
    )


# --- optimizers --------------------------------------------------------------------------------------------------------


class OwnPlateau(FineTuner):
    """Lets Lightning step its scheduler."""

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        self.plateau = Counted(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.plateau, "monitor": "val/loss"}}


class Counted(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """Remembers what it was stepped with."""

    seen: list[float]

    def step(self, metrics: Any, epoch: Any = None) -> None:  # type: ignore[override]
        self.seen = [*getattr(self, "seen", []), float(metrics)]
        super().step(metrics)


def test_a_plateau_of_ones_own_is_stepped_once_an_epoch_with_its_own_metric(trainer: Make) -> None:
    module, run, losses = OwnPlateau(SmallNetwork(), CLASSES, "finetune", head="fc"), trainer(3), []

    class Reads(Callback):
        def on_validation_end(self, trainer: Trainer, module: Any) -> None:
            losses.append(float(trainer.callback_metrics["val/loss"]))

    run = trainer(3, callbacks=[Reads()])
    run.fit(module, make_batches(16), make_batches(16))
    assert module.plateau.seen == pytest.approx(losses)


class OwnOptimizer(FineTuner):
    """Has groups without our names."""

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = [
            {"params": self.head.parameters(), "lr": 0.2},
            {"params": self.backbone.get_submodule("conv").parameters()},
        ]
        return SGD(groups, lr=0.05)


def test_an_overridden_configure_optimizers_trains_its_own_groups(trainer: Make, tmp_path: Path) -> None:
    watch = Rates()
    module = OwnOptimizer(SmallNetwork(), CLASSES, "finetune", head="fc", warmup=1)
    before = snapshot(module)
    trainer(2, callbacks=[watch]).fit(module, make_batches(16), make_batches(16))
    moved = {name for name in changed_tensors(before, module) if not name.startswith("norm.")}
    assert moved == {"fc.weight", "fc.bias", "conv.weight", "conv.bias"}
    assert watch.steps == [[0.2, 0.05]] * 4  # ramps are the user's


class NoOptimizer(FineTuner):
    """Trains nothing."""

    def configure_optimizers(self) -> Any:
        return None


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_module_without_an_optimizer_runs_and_changes_nothing(trainer: Make) -> None:
    module = NoOptimizer(SmallNetwork(), CLASSES, "finetune", head="fc")
    before = snapshot(module)
    trainer(1).fit(module, make_batches(16), make_batches(16))
    assert changed_tensors(before, module) <= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_sanity_check_is_no_validation_of_the_first_epoch(trainer: Make) -> None:
    plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)
    module = small(scheduler=plateau, optimizer=partial(SGD, lr=0.1))
    trainer(2, num_sanity_val_steps=2, check_val_every_n_epoch=2).fit(module, make_batches(16), make_batches(16))
    assert module.metadata.validation.epoch == 2


def test_biases_and_norms_are_spared_by_weight_decay_where_that_is_asked_for(trainer: Make) -> None:
    groups = [{"match": "@head"}, {"match": "@norm", "weight_decay": 0.3}, {"match": ".*"}]
    for strategy, expected in (
        ({"groups": [{"match": ".*", "name": "all"}], "decay": "weights"},
         {"conv.weight": 0.1, "conv.bias": 0, "norm.weight": 0, "norm.bias": 0, "fc.weight": 0.1, "fc.bias": 0}),
        ({"groups": groups},
         {"conv.weight": 0.1, "conv.bias": 0.1, "norm.weight": 0.3, "norm.bias": 0.3, "fc.weight": 0.1, "fc.bias": 0.1}),
    ):  # fmt: skip
        module = small(strategy=strategy, optimizer=partial(AdamW, lr=0.01, weight_decay=0.1))
        run = trainer(1)
        run.fit(module, make_batches(16), make_batches(16))
        names = {parameter: name for name, parameter in module.backbone.named_parameters()}
        found = {names[p]: group["weight_decay"] for group in run.optimizers[0].param_groups for p in group["params"]}
        assert found == expected


def test_schedulefree_is_validated_and_saved_with_the_weights_that_count(trainer: Make, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    module = small(optimizer=partial(schedulefree.SGDScheduleFree, lr=0.5))
    trainer(2, callbacks=[keep], enable_checkpointing=True).fit(module, make_batches(16), make_batches(16))
    by_hand = small()
    by_hand.train()
    optimizer = schedulefree.SGDScheduleFree(by_hand.backbone.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.train()
        for images, labels in make_batches(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand.backbone(images), labels).backward()
            optimizer.step()
    optimizer.eval()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved["backbone.conv.weight"], by_hand.backbone.get_parameter("conv.weight"))


# --- schedulers --------------------------------------------------------------------------------------------------------


SCHEDULERS: dict[str, tuple[Any, Any, str]] = {
    "cyclic": (
        partial(CyclicLR, base_lr=0.01, max_lr=0.2, step_size_up=3),
        lambda o: CyclicLR(o, base_lr=[0.01, 0.001], max_lr=[0.2, 0.02], step_size_up=3), "auto",
    ),
    "warm restarts": (partial(CosineAnnealingWarmRestarts, T_0=5), lambda o: CosineAnnealingWarmRestarts(o, T_0=5), "step"),
    "sequential": (
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=4), StepLR(o, 3)], milestones=[4]),
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=4), StepLR(o, 3)], milestones=[4]), "step",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_keep_the_rates_of_the_groups(name: str, trainer: Make) -> None:
    given, plain, interval = SCHEDULERS[name]
    watch = Rates()
    module = small(
        strategy="differential",
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
        scheduler=given,
        scheduler_interval=interval,
    )
    trainer(3, callbacks=[watch]).fit(module, make_batches(16, count=4), make_batches(16))
    torch.testing.assert_close(torch.tensor(watch.steps), torch.tensor(rates_by_hand(plain, [0.1, 0.01], 12)))


def test_a_length_in_epochs_beyond_the_run_is_said(trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(2).fit(small(scheduler=partial(StepLR, step_size=30)), make_batches(16), make_batches(16))
    text = " ".join(capsys.readouterr().out.split())
    assert "StepLR counts epochs: its step_size=30 lies beyond the 2 of this run" in text


def test_a_scheduler_that_gives_all_groups_one_rate_is_noted(trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    module = small(
        strategy="differential", scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=2)
    )
    trainer(1).fit(module, make_batches(16), make_batches(16))
    assert "OneCycleLR gives all groups the same rate" in " ".join(capsys.readouterr().out.split())


def test_a_rate_that_a_scheduler_overrules_is_noted(trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    module = small(scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1))
    module.lr = 0.02
    trainer(1).fit(module, make_batches(16), make_batches(16))
    assert "module.lr=0.02 changes nothing: the scheduler has its own max_lr=0.1" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_one_cycle_that_ends_before_the_run_is_refused_before_its_first_step(trainer: Make) -> None:
    module = small(scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=3))
    with pytest.raises(ValueError, match="OneCycleLR was given 3 steps, and the run takes 4"):
        trainer(2).fit(module, make_batches(16), make_batches(16))


class Manual(FineTuner):
    """Steps its optimizer itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(SmallNetwork(), CLASSES, "finetune", head="fc", **options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


def test_manual_steps_are_those_of_a_loop_by_hand_and_refuse_a_warm_up(trainer: Make) -> None:
    torch.manual_seed(3)
    module = Manual(optimizer=partial(SGD, lr=0.1))
    trainer(2).fit(module, make_batches(16), make_batches(16))
    assert_equal_networks(trained_by_hand(nn.functional.cross_entropy), module.backbone)
    with pytest.raises(ValueError, match="With automatic_optimization=False the steps are yours"):
        trainer(1).fit(Manual(warmup=1), make_batches(16))


# --- batches and loaders ---------------------------------------------------------------------------------------------


class Rows(TensorDataset):
    """Gives mappings, as Hugging Face's data sets do."""

    keys = ("pixel_values", "labels")

    def __getitem__(self, index: int) -> Any:
        return dict(zip(self.keys, super().__getitem__(index), strict=True))


class Named(Rows):
    keys = ("foto", "art")


@pytest.mark.parametrize(("kind", "batch_keys"), [(Rows, None), (Named, ("foto", "art"))])
def test_batches_that_are_mappings_train_as_tuples_do(kind: Any, batch_keys: Any, trainer: Make) -> None:
    plain: Any = make_batches(16).dataset
    loader = DataLoader(kind(*plain.tensors), batch_size=3)
    module = small(batch_keys=batch_keys, optimizer=partial(SGD, lr=0.1))
    run = trainer(2)
    run.fit(module, loader, loader)
    assert_equal_networks(trained_by_hand(nn.functional.cross_entropy), module.backbone)
    probabilities = torch.cat(run.predict(module, loader))  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(probabilities, module.eval().backbone(plain.tensors[0]).softmax(dim=1))


def test_a_mapping_whose_keys_say_nothing_is_refused(trainer: Make) -> None:
    loader = DataLoader(Named(*make_batches(16).dataset.tensors), batch_size=3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"An item or batch has the keys foto, art: .* batch_keys="):
        trainer(1).fit(small(), loader)


@pytest.mark.parametrize(("scale", "noted"), [(1.0, True), (255.0, True), (-1.0, False)])
def test_floats_that_look_like_pixels_are_noted(
    scale: float, noted: bool, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.rand(3, 3, 16, 16) * scale
    loader = DataLoader(TensorDataset(images, torch.tensor([0, 1, 2])), batch_size=3)
    trainer(1).fit(small(), loader)
    assert ("as pixels do, and are taken as normalised" in " ".join(capsys.readouterr().out.split())) == noted


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Has no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        plain: Any = make_batches(16).dataset
        yield from zip(*plain.tensors, strict=True)


def test_a_loader_without_a_length_trains_as_one_with_it(trainer: Make) -> None:
    module = small(optimizer=partial(SGD, lr=0.1))
    trainer(2).fit(module, DataLoader(Stream(), batch_size=3), make_batches(16))
    assert_equal_networks(trained_by_hand(nn.functional.cross_entropy), module.backbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1}, r"A warm-up in epochs needs the length of an epoch: set trainer\.limit_train_batches"),
        (
            {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR},
            r"end of the run: set trainer\.max_steps, or limit_train",
        ),
    ],
)
def test_what_needs_a_length_says_how_to_give_it(options: dict[str, Any], message: str, trainer: Make) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(2).fit(small(**options), DataLoader(Stream(), batch_size=3))
    trainer(2, limit_train_batches=2).fit(small(**options), DataLoader(Stream(), batch_size=3))


def test_several_validation_loaders_have_metrics_of_their_own(trainer: Make) -> None:
    plain: Any = make_batches(16).dataset
    images, labels = plain.tensors
    wrong = DataLoader(TensorDataset(images, (labels + 1) % 3), batch_size=2)
    for loaders, name in (([make_batches(16), wrong], "1"), ({"near": make_batches(16), "far": wrong}, "far")):
        module, run = small(), trainer(1)
        run.fit(module, make_batches(16), loaders)
        with torch.no_grad():
            predicted = module.eval().backbone(images).argmax(dim=1)
        assert float(run.callback_metrics["val/acc"]) == pytest.approx(float((predicted == labels).float().mean()))
        expected = float((predicted == (labels + 1) % 3).float().mean())
        assert float(run.callback_metrics[f"val/{name}/acc"]) == pytest.approx(expected)


# --- around the fit ----------------------------------------------------------------------------------------------------


def test_validating_before_a_fit_and_fitting_twice_changes_nothing(photos: Path, trainer: Make) -> None:
    def module() -> FineTuner:
        torch.manual_seed(5)
        return make_finetuner(preprocess={"size": 32}, optimizer=partial(SGD, lr=0.1))

    plain, other = module(), module()
    trainer(2).fit(plain, datamodule=data_of(photos))
    run, data = trainer(2), data_of(photos)
    run.validate(other, datamodule=data, verbose=False)
    run.fit(other, datamodule=data)
    assert_equal_networks(plain.backbone, other.backbone)
    trainer(2).fit(plain, datamodule=data_of(photos))
    trainer(2).fit(other, datamodule=data)
    assert_equal_networks(plain.backbone, other.backbone)


def test_a_number_of_steps_ends_a_run_without_epochs_and_a_cosine_with_it(trainer: Make) -> None:
    watch = Rates()
    module = small(optimizer=partial(SGD, lr=0.1), scheduler=torch.optim.lr_scheduler.CosineAnnealingLR)
    trainer(-1, max_steps=7, callbacks=[watch]).fit(module, make_batches(16), make_batches(16))
    expected = [0.1 * (1 + math.cos(math.pi * k / 7)) / 2 for k in range(7)]
    assert [rates[0] for rates in watch.steps] == pytest.approx(expected)


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_compiled_backbone_keeps_its_names_and_is_used(how: str, trainer: Make) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    module = small(optimizer=partial(SGD, lr=0.1))
    names = set(module.state_dict())
    if how == "in place":
        module.backbone.compile(backend=backend)
    else:
        compiled: Any = torch.compile(module.backbone, backend=backend)
        module.backbone = compiled
    trainer(2).fit(module, make_batches(16), make_batches(16))
    assert calls
    assert set(module.state_dict()) == names
    assert_equal_networks(trained_by_hand(nn.functional.cross_entropy), module.backbone)


# --- subclasses that are documented --------------------------------------------------------------------------------------


class Distilled(FineTuner):
    """Learns from a teacher as well as from labels. Source: Hinton et al., 2015."""

    teacher: nn.Module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        with torch.no_grad():
            taught = self.teacher(self.network.normalize(images)).softmax(dim=1)
        loss = nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits, taught)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


def test_distillation_in_a_step_of_ones_own_is_a_loop_by_hand(trainer: Make) -> None:
    torch.manual_seed(9)
    teacher = SmallNetwork().eval()
    teacher.fc = nn.Linear(4, 3)
    torch.manual_seed(3)
    module = Distilled(SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SGD, lr=0.1))
    module.teacher = teacher
    run = trainer(2)
    run.fit(module, make_batches(16), make_batches(16))

    by_hand = small()
    by_hand.train()
    optimizer = SGD(by_hand.backbone.parameters(), lr=0.1)
    for _ in range(2):
        for images, labels in make_batches(16):
            optimizer.zero_grad()
            logits, taught = by_hand.backbone(images), teacher(images).softmax(dim=1).detach()
            (-logits.log_softmax(1) * (taught + nn.functional.one_hot(labels, 3))).sum(1).mean().backward()
            optimizer.step()
    assert_equal_networks(by_hand.backbone, module.backbone)
    assert "train/loss" in run.callback_metrics


class MultiLabel(FineTuner):
    """Predicts any number of classes for an image: targets are (N, classes) of 0 and 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.val_f1 = torchmetrics.classification.MultilabelF1Score(len(self.classes), average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.val_f1(self(batch[0]).sigmoid(), batch[1].int())
        self.log("val/f1", self.val_f1, on_epoch=True, batch_size=len(batch[0]))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0]).sigmoid()


def test_several_labels_an_image_by_overriding_the_steps(trainer: Make, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    images, targets = (
        torch.randn(6, 3, 16, 16, generator=generator),
        (torch.rand(6, 3, generator=generator) > 0.5).float(),
    )
    loader = DataLoader(TensorDataset(images, targets), batch_size=3)
    torch.manual_seed(3)
    module = MultiLabel(SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SGD, lr=0.1))
    keep = ModelCheckpoint(tmp_path, "best", monitor="val/f1", mode="max", save_on_train_epoch_end=True)
    run = trainer(2, callbacks=[keep], enable_checkpointing=True)
    run.fit(module, loader, loader)
    by_hand = small()
    by_hand.train()
    optimizer = SGD(by_hand.backbone.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            p = by_hand.backbone(x).sigmoid()
            (-(y * p.log() + (1 - y) * (1 - p).log())).mean().backward()
            optimizer.step()
    assert_equal_networks(by_hand.backbone, module.backbone)
    with torch.no_grad():
        predicted = module.eval().backbone(images).sigmoid() > 0.5
    hits = float((predicted & targets.bool()).sum())
    assert float(run.callback_metrics["val/f1"]) == pytest.approx(2 * hits / float(predicted.sum() + targets.sum()))
    assert torch.cat(run.predict(module, loader)).shape == (6, 3)  # type: ignore[arg-type]


# --- LightningCLI ------------------------------------------------------------------------------------------------------


def test_lightning_cli_fits_and_validates_a_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data", "model.classes", lambda data: data.prepare().classes, apply_on="instantiate")

    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    words = [
        f"--data.root={photos}", "--data.num_workers=0", "--data.image_size=32", "--model.model=squeezenet1_1",
        "--model.weights=none", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_progress_bar=false", "--seed_everything=0", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    fitted = Cli(
        FineTuner,
        ImageDataModule,
        save_config_callback=None,
        args=["fit", *words, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"],
    )
    path = Path(fitted.trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    validated = Cli(
        FineTuner, ImageDataModule, save_config_callback=None, args=["validate", *words, f"--ckpt_path={path}"]
    )
    for key in ("val/acc", "val/loss"):
        assert float(validated.trainer.callback_metrics[key]) == pytest.approx(
            float(fitted.trainer.callback_metrics[key])
        )


# --- the command, ended within an epoch ----------------------------------------------------------------------------------


def test_a_run_that_ends_within_its_first_epoch_says_what_was_trained_and_which_file_has_it(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = command("train", *TINY, f"data.root={photos}", "+trainer.max_steps=2", "report=true")
    text = " ".join(capsys.readouterr().out.split())
    assert (code, sorted(path.name for path in (folder / "checkpoints").iterdir())) == (0, ["last.ckpt"])
    assert "2 steps were trained and never validated" in text
    assert "could not be written" not in text
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    _, code = command("predict", f"ckpt={folder}/checkpoints/last.ckpt", f"source={photos / 'val'}")
    assert code == 0


def test_the_times_of_a_profiler_reach_the_terminal(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("train", *TINY, f"data.root={photos}", "+trainer.profiler=simple")
    assert "run_training_epoch" in capsys.readouterr().out
