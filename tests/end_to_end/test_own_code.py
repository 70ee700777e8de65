"""Put parts of one's own into a training: hooks, callbacks, layers, schedulers, and what Lightning offers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from finetune import FineTuner, ImageDataModule
from finetune.data import trainer_state
from finetune.training.averaging import EpochAveraging
from finetune.training.callbacks import BestCheckpoint
from tests.helpers import CLASSES, Functional, SmallNetwork, make_batches, make_finetuner
from tests.training.helpers import changed_tensors, snapshot

Make = Callable[..., Trainer]


def data_of(photos: Path, **options: Any) -> ImageDataModule:
    return ImageDataModule(photos, **{"batch_size": 8, "num_workers": 0, "image_size": 32, **options})


def head_weights(module: FineTuner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.head.parameters()])


def plain_sgd(loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor], photos: Path, epochs: int, lr: float) -> Tensor:
    """The head after a training by hand: the same network and order of images, a loop over pixels."""
    torch.manual_seed(7)
    module = make_finetuner("resnet18", preprocess={"size": 32})
    data = data_of(photos, augment="none").prepare()
    order = data.train_dataloader()
    module.train()
    optimizer = torch.optim.SGD(module.head.parameters(), lr=lr)
    for epoch in range(epochs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer_state, "current_epoch", lambda trainer, epoch=epoch: epoch)
            for images, labels in order:
                optimizer.zero_grad()
                loss_of(module, images, labels).backward()
                optimizer.step()
    return head_weights(module)


# --- features stand in for images ----------------------------------------------------------------------------------


class TemperedLoss(FineTuner):
    """Has a loss of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images) / 2, labels)


def test_a_step_of_ones_own_that_calls_the_module_keeps_the_features_and_is_right(
    photos: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    module = TemperedLoss("resnet18", CLASSES, weights="none", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.1))
    trainer(3).fit(module, datamodule=data_of(photos))
    assert "Features  of 24" in capsys.readouterr().out
    expected = plain_sgd(lambda m, x, y: nn.functional.cross_entropy(m(x) / 2, y), photos, 3, 0.1)
    torch.testing.assert_close(head_weights(module), expected, atol=1e-4, rtol=0)


class StepOnPixels(FineTuner):
    """Takes the batch for images."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0].flip(-1), batch[1]), batch_idx)


def test_a_step_of_ones_own_that_looks_into_the_images_is_refused_and_told_what_to_do(
    photos: Path, trainer: Make
) -> None:
    module = StepOnPixels("resnet18", CLASSES, weights="none", preprocess={"size": 32})
    with pytest.raises(
        ValueError, match=r"flip was called on the images of a batch.*module\.strategy\.cache = .never."
    ):
        trainer(1).fit(module, datamodule=data_of(photos))
    module.strategy.cache = "never"
    trainer(1).fit(module, datamodule=data_of(photos))


class Flipping(FineTuner):
    """Augments batches on the device, as Lightning recommends."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return (images.flip(-1) if self.trainer.training else images), labels


class Looking(Callback):
    """Reads the images of batches."""

    seen: tuple[int, ...] = ()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen = tuple(batch[0].shape)


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_a_batch_hook_of_ones_own_gets_images_and_a_line_says_why_features_are_off(
    photos: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    module = Flipping("resnet18", CLASSES, weights="none", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.1))
    trainer(2).fit(module, datamodule=data_of(photos))
    assert "on_after_batch_transfer of Flipping may read the images" in " ".join(capsys.readouterr().out.split())
    expected = plain_sgd(lambda m, x, y: nn.functional.cross_entropy(m(x.flip(-1)), y), photos, 2, 0.1)
    torch.testing.assert_close(head_weights(module), expected, atol=1e-4, rtol=0)


def test_a_callback_of_ones_own_gets_images(photos: Path, trainer: Make) -> None:
    watch = Looking()
    trainer(1, callbacks=[watch]).fit(make_finetuner(preprocess={"size": 32}), datamodule=data_of(photos))
    assert watch.seen == (8, 3, 32, 32)


class Halving(FineTuner):
    """Changes what enters the network."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images // 2)


def test_a_function_in_lightnings_lambda_callback_gets_images(photos: Path, trainer: Make) -> None:
    seen = []
    watch = LambdaCallback(
        on_train_batch_start=lambda trainer, module, batch, batch_idx: seen.append(tuple(batch[0].shape))
    )
    trainer(1, callbacks=[watch]).fit(make_finetuner(preprocess={"size": 32}), datamodule=data_of(photos))
    assert seen == [(8, 3, 32, 32)] * 3


def test_a_forward_of_ones_own_gets_images(photos: Path, trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    module = Halving("resnet18", CLASSES, weights="none", preprocess={"size": 32})
    trainer(1).fit(module, datamodule=data_of(photos))
    assert "forward of Halving may read the images" in " ".join(capsys.readouterr().out.split())


class Taught(FineTuner):
    """Learns from a teacher that is called with what stands in the batch."""

    teacher: FineTuner

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) - self.teacher(batch[0]).detach()).square().mean()


@pytest.mark.parametrize("teacher", ["resnet18", "squeezenet1_1"])
def test_another_module_does_not_take_the_features_of_this_ones_trunk(
    teacher: str, photos: Path, trainer: Make
) -> None:
    module = Taught("resnet18", CLASSES, weights="none", preprocess={"size": 32})
    module.teacher = FineTuner(teacher, CLASSES, weights="none", preprocess={"size": 32})
    with pytest.raises(ValueError, match=r"Another module was called with the images of a batch.*strategy\.cache"):
        trainer(1).fit(module, datamodule=data_of(photos))
    module.strategy.cache = "never"
    trainer(1).fit(module, datamodule=data_of(photos))


class OwnLoader(ImageDataModule):
    """Has training batches of its own."""

    def train_dataloader(self) -> Any:
        return make_batches(32)


def test_a_loader_of_ones_own_in_a_data_module_keeps_no_features(
    photos: Path, trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    data = OwnLoader(photos, num_workers=0, image_size=32)
    trainer(1).fit(make_finetuner(preprocess={"size": 32}), datamodule=data)
    assert "train_dataloader of OwnLoader may read the images" in " ".join(capsys.readouterr().out.split())


# --- the weights that are saved are those that were validated ----------------------------------------------------------


def correct_by_hand(path: Path, data: ImageDataModule) -> float:
    """The accuracy of a saved module on the validation images, by a plain loop."""
    module = FineTuner.load_from_checkpoint(path)
    with torch.no_grad():
        hits = [(module(x).argmax(dim=1) == y).float() for x, y in data.val_dataloader()]
    return float(torch.cat(hits).mean())


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 0.34},
        {"val_check_interval": 1},
        {"val_check_interval": 2, "check_val_every_n_epoch": None},
    ],
)
def test_best_checkpoint_has_the_weights_of_a_validation_within_an_epoch(
    options: dict[str, Any], photos: Path, trainer: Make, tmp_path: Path
) -> None:
    data = data_of(photos, augment="none", batch_size=6)
    module = make_finetuner(
        "resnet18", "finetune", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.02, momentum=0.9)
    )
    best = BestCheckpoint(tmp_path, "val/acc")
    trainer(3, callbacks=[best], enable_checkpointing=True, **options).fit(module, datamodule=data)
    assert best.best_model_score is not None
    assert correct_by_hand(tmp_path / "best.ckpt", data) == pytest.approx(float(best.best_model_score))
    entries = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert entries["global_step"] == entries["finetune"]["validation"]["step"]


class Batches(Callback):
    """What each training batch holds."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch_idx, float(batch[0].float().mean())))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_resumed_from_a_validation_within_an_epoch_sees_the_batches_that_are_left(
    photos: Path, trainer: Make, tmp_path: Path
) -> None:
    def module() -> FineTuner:
        torch.manual_seed(1)
        return make_finetuner("resnet18", "finetune", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.01))

    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
    whole, rest, options = Batches(), Batches(), {"val_check_interval": 0.5}
    full = module()
    trainer(1, callbacks=[whole, keep], enable_checkpointing=True, **options).fit(
        full, datamodule=data_of(photos, batch_size=6)
    )
    again = module()
    trainer(1, callbacks=[rest], **options).fit(
        again, datamodule=data_of(photos, batch_size=6), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True
    )
    assert (len(whole.seen), rest.seen) == (4, whole.seen[2:])
    for name, value in full.backbone.state_dict().items():
        torch.testing.assert_close(again.backbone.state_dict()[name], value, msg=name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_between_the_last_batch_and_the_epochs_end_counts_no_epoch_twice(
    photos: Path, trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def module() -> FineTuner:
        torch.manual_seed(1)
        return make_finetuner("resnet18", "finetune", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.01))

    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    run = trainer(2, callbacks=[keep], enable_checkpointing=True)
    run.fit(module(), datamodule=data_of(photos, batch_size=6))
    again = trainer(2)
    again.fit(module(), datamodule=data_of(photos, batch_size=6), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    torch.testing.assert_close(again.callback_metrics["train/loss"], run.callback_metrics["train/loss"])
    assert "of the last batch of epoch 1, whose validation and row are left out" in " ".join(
        capsys.readouterr().out.split()
    )


def test_weights_that_were_never_validated_are_not_saved_as_the_best(
    photos: Path, trainer: Make, tmp_path: Path
) -> None:
    best = BestCheckpoint(tmp_path, "val/acc")
    module = make_finetuner(preprocess={"size": 32})
    trainer(2, callbacks=[best], enable_checkpointing=True, max_steps=4).fit(module, datamodule=data_of(photos))
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3  # 3 batches an epoch


def test_epoch_averaging_saves_the_better_of_the_weights_and_the_mean_of_the_last_epochs(
    photos: Path, trainer: Make, tmp_path: Path
) -> None:
    ends: list[Tensor] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            if trainer.is_last_batch:
                ends.append(module.backbone.fc.weight.detach().clone())

    data = data_of(photos, augment="none")
    last = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    module = make_finetuner("resnet18", "finetune", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.1))
    make = trainer(4, callbacks=[Recorder(), EpochAveraging(start=2), last], enable_checkpointing=True)
    make.fit(module, datamodule=data)
    mean = (ends[2] + ends[3]) / 2
    for epoch, choices in ((1, [ends[1]]), (2, [ends[2]]), (3, [mean, ends[3]])):
        path = tmp_path / f"epoch={epoch}.ckpt"
        saved = torch.load(path, weights_only=True)
        weight = saved["state_dict"]["backbone.fc.weight"]
        assert any(torch.allclose(weight, choice) for choice in choices)
        assert correct_by_hand(path, data) == pytest.approx(saved["finetune"]["validation"]["results"]["acc"])
        if epoch == 3:  # the other of both is no better
            other = tmp_path / "other.ckpt"
            swapped = {"state_dict": saved["current_model_state"], "current_model_state": saved["state_dict"]}
            torch.save({**saved, **swapped}, other)
            assert correct_by_hand(other, data) <= correct_by_hand(path, data)
            torch.testing.assert_close(module.backbone.get_parameter("fc.weight"), weight)  # and it ends so


def test_averaging_begins_anew_in_a_second_fit(photos: Path, trainer: Make) -> None:
    averaging = EpochAveraging(start=1)
    for _ in range(2):
        module = make_finetuner("resnet18", "finetune", preprocess={"size": 32}, optimizer=partial(SGD, lr=0.1))
        trainer(3, callbacks=[averaging]).fit(module, datamodule=data_of(photos))
        assert averaging._average_model is not None
        assert int(averaging._average_model.n_averaged) == 2


def test_averaging_that_would_never_begin_is_refused(trainer: Make) -> None:
    with pytest.raises(ValueError, match="EpochAveraging: start=5 lies beyond the 2 epochs of the run"):
        trainer(2, callbacks=[EpochAveraging(start=5)]).fit(make_finetuner(), make_batches())


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: StochasticWeightAveraging(swa_lrs=0.1), r"EpochAveraging \(\+callbacks=swa\) instead"),
        (lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1), "strategy=gradual"),
    ],
)
def test_callbacks_that_would_make_a_number_wrong_are_refused(
    callback: Callable[[], Callback], message: str, trainer: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(2, callbacks=[callback()]).fit(make_finetuner(), make_batches())


# --- schedulers ----------------------------------------------------------------------------------------------------


class Rates(Callback):
    """The rates that each optimizer step really used."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self._step = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step > self._step:
            self.steps.append(list(module.rates.values()))
            self._step = trainer.global_step


def rates_of(trainer: Make, epochs: int = 3, callbacks: tuple[Callback, ...] = (), **options: Any) -> list[list[float]]:
    watch = Rates()
    options = {"optimizer": partial(SGD, lr=0.1), **options}
    module = FineTuner(SmallNetwork(), CLASSES, "differential", head="fc", **options)
    trainer(epochs, callbacks=[watch, *callbacks]).fit(module, make_batches(16, count=4), make_batches(16))
    return watch.steps


def rates_by_hand(make: Callable[[Any], Any], lr: list[float], steps: int) -> list[list[float]]:
    """The rates of plain torch, stepped after every optimizer step."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in lr], lr=lr[0])
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    "given", [{"epochs": 3, "steps_per_epoch": 4}, {"total_steps": 12}, {}], ids=["epochs", "total_steps", "filled in"]
)
def test_one_cycle_given_its_length_is_stepped_every_batch(given: dict[str, Any], trainer: Make) -> None:
    found = rates_of(trainer, scheduler=partial(OneCycleLR, max_lr=0.5, **given))
    expected = rates_by_hand(lambda o: OneCycleLR(o, max_lr=[0.5, 0.05], total_steps=12), [0.1, 0.01], 12)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_a_function_of_steps_is_stepped_every_batch_where_that_is_said_and_refused_where_not(trainer: Make) -> None:
    def falls(step: int) -> float:
        return 0.9**step

    found = rates_of(trainer, scheduler=lambda o: LambdaLR(o, falls), scheduler_interval="step")
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[0.1 * 0.9**k, 0.01 * 0.9**k] for k in range(12)]))
    epochs = rates_of(trainer, scheduler=lambda o: LambdaLR(o, falls), scheduler_interval="epoch")
    assert [rates[0] for rates in epochs] == pytest.approx([0.1] * 4 + [0.09] * 4 + [0.081] * 4)
    with pytest.raises(ValueError, match="LambdaLR may count steps or epochs"):
        rates_of(trainer, scheduler=lambda o: LambdaLR(o, falls))


@pytest.mark.filterwarnings("ignore:When using `Trainer.accumulate_grad_batches")
def test_cosine_ends_at_zero_though_the_accumulation_changes(trainer: Make) -> None:
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    found = rates_of(trainer, callbacks=(accumulation,), scheduler=CosineAnnealingLR)
    steps = 4 + 2 + 1
    expected = [0.1 * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    assert [rates[0] for rates in found] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_cosine_with_other_batches_and_more_epochs_falls_and_never_climbs(
    trainer: Make, tmp_path: Path
) -> None:
    def module() -> FineTuner:
        return FineTuner(
            SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SGD, lr=0.1), scheduler=CosineAnnealingLR
        )

    first = trainer(
        2, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, "two", save_on_train_epoch_end=True)]
    )
    first.fit(module(), make_batches(16, count=8), make_batches(16))  # 16 steps, all of its cosine
    watch = Rates()
    trainer(6, callbacks=[watch]).fit(
        module(), make_batches(16, count=2, n=12), make_batches(16), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )  # 4 epochs of 2 steps are left
    expected = [0.1 * (1 + math.cos(math.pi * (16 + k) / (16 + 8))) / 2 for k in range(8)]
    assert [rates[0] for rates in watch.steps] == pytest.approx(expected)


def test_groups_with_rate_zero_stay_whatever_a_scheduler_does(trainer: Make) -> None:
    module = FineTuner(
        SmallNetwork(), CLASSES, "frozen_lr0", head="fc", scheduler=partial(CosineAnnealingLR, eta_min=0.05)
    )
    before = snapshot(module)
    trainer(2).fit(module, make_batches(16), make_batches(16))
    assert changed_tensors(before, module) == {"fc.weight", "fc.bias"}


# --- what is frozen by hand -------------------------------------------------------------------------------------------


def test_layers_frozen_by_hand_stay_frozen_and_the_table_says_so(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make_finetuner("resnet18", "finetune")
    module.backbone.layer1.requires_grad_(False)
    before = snapshot(module)
    trainer(2).fit(module, make_batches(64), make_batches(64))
    moved = changed_tensors(before, module)
    assert not [name for name in moved if name.startswith("layer1.")]  # running statistics included
    assert {"conv1.weight", "layer2.0.conv1.weight", "fc.weight"} <= moved
    parameters = sum(p.numel() for n, p in module.backbone.named_parameters() if n.startswith("layer1."))
    assert f"frozen by hand 12 {parameters:,}" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_network_that_comes_with_frozen_layers_keeps_them_and_resuming_does_too(
    trainer: Make, tmp_path: Path
) -> None:
    network = SmallNetwork()
    network.conv.requires_grad_(False)
    module = FineTuner(network, CLASSES, "finetune", head="fc")
    before = snapshot(module)
    keep = ModelCheckpoint(tmp_path, "one", save_on_train_epoch_end=True)
    trainer(1, callbacks=[keep], enable_checkpointing=True).fit(module, make_batches(16), make_batches(16))
    again = FineTuner(SmallNetwork(), CLASSES, "finetune", head="fc")
    trainer(2).fit(again, make_batches(16), make_batches(16), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    for trained in (module, again):
        assert changed_tensors(before, trained).isdisjoint({"conv.weight", "conv.bias"})
    refit = FineTuner(module.backbone, CLASSES, "finetune", head="fc")  # what a strategy froze is not frozen by hand
    assert refit.schedule.frozen_by_hand == {"conv.weight", "conv.bias"}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_another_strategy_is_not_resumed_from_python(trainer: Make, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "one", save_on_train_epoch_end=True)
    trainer(1, callbacks=[keep], enable_checkpointing=True).fit(make_finetuner(), make_batches(64), make_batches(64))
    with pytest.raises(
        ValueError, match=r"of another run: its strategy is feature_extract, this run's is differential"
    ):
        trainer(2).fit(
            make_finetuner("resnet18", "differential"), make_batches(64), make_batches(64),
            ckpt_path=tmp_path / "one.ckpt", weights_only=True,
        )  # fmt: skip


def test_layers_unfrozen_by_hand_against_the_strategy_are_refused(trainer: Make) -> None:
    module = make_finetuner()
    module.backbone.layer4.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"requires_grad of layer4\.0\.conv1\.weight was set by hand, but the strategy"
    ):
        trainer(1).fit(module, make_batches(64))


@pytest.mark.parametrize("strategy", ["lp_ft", "gradual"])
def test_layers_frozen_by_hand_stay_frozen_where_their_group_starts_later(strategy: str, trainer: Make) -> None:
    module = make_finetuner("resnet18", strategy, optimizer=partial(SGD, lr=0.1))
    module.backbone.layer1.requires_grad_(False)
    before = snapshot(module)
    trainer(6).fit(module, make_batches(64), make_batches(64))
    moved = changed_tensors(before, module)
    assert not [name for name in moved if name.startswith("layer1.")]
    assert "layer4.0.conv1.weight" in moved


def test_what_was_frozen_by_hand_is_not_thawed_in_the_course_of_a_run(trainer: Make) -> None:
    class Thaws(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            module.backbone.conv.requires_grad_(trainer.current_epoch > 0)

    network = SmallNetwork()
    network.conv.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"conv\.bias was switched on in the course of a run.*start=1 is the second epoch"
    ):
        trainer(2, callbacks=[Thaws()]).fit(FineTuner(network, CLASSES, "finetune", head="fc"), make_batches(16))


def test_layers_that_were_added_to_the_network_train_as_its_head(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make_finetuner("squeezenet1_1")
    features: Any = module.backbone.features
    features.append(nn.Conv2d(512, 512, 1))
    before = snapshot(module)
    trainer(1).fit(module, make_batches(64), make_batches(64))
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert changed_tensors(before, module) == {"features.13.weight", "features.13.bias"} | head
    assert "2 parameters were added to the network (features.13.bias" in " ".join(capsys.readouterr().out.split())


def test_a_head_is_not_replaced_while_it_is_trained(trainer: Make) -> None:
    class Replaces(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            module.head = nn.Linear(512, 3)

    with pytest.raises(ValueError, match="are set before a fit: its optimizer has the parameters of before"):
        trainer(1, callbacks=[Replaces()]).fit(make_finetuner(), make_batches(64))


def test_a_run_that_would_train_nothing_is_refused(trainer: Make) -> None:
    module = make_finetuner()
    module.freeze()
    with pytest.raises(
        ValueError, match="Nothing would be trained: all that the strategy 'feature_extract' trains was frozen"
    ):
        trainer(1).fit(module, make_batches(64))


def test_a_callback_that_freezes_in_the_course_of_a_run_is_heard(trainer: Make) -> None:
    after_first: dict[str, Tensor] = {}

    class Freezes(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            if trainer.current_epoch == 1:
                module.backbone.conv.requires_grad_(False)
                after_first.update(snapshot(module))

    module = FineTuner(SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SGD, lr=0.1, momentum=0.9))
    trainer(3, callbacks=[Freezes()]).fit(module, make_batches(16), make_batches(16))
    assert changed_tensors(after_first, module).isdisjoint({"conv.weight", "conv.bias"})


# --- heads -------------------------------------------------------------------------------------------------------------


def own_head(inputs: int = 512, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


@pytest.mark.parametrize("how", ["argument", "attribute"])
def test_a_head_of_several_layers_trains_saves_and_loads_from_the_file_alone(
    how: str, photos: Path, trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "argument":
        module = FineTuner("resnet18", CLASSES, weights="none", head=own_head(), preprocess={"size": 32})
    else:
        module = FineTuner("resnet18", CLASSES, weights="none", preprocess={"size": 32})
        module.head = own_head()
    assert "head" not in dict(module.named_children())  # one registration, under the backbone
    before = snapshot(module)
    trainer(1).fit(module, datamodule=data_of(photos))
    assert "Features  of 24" in capsys.readouterr().out
    assert changed_tensors(before, module) == {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    module.save(tmp_path / "own.ckpt")
    again = FineTuner.load_from_checkpoint(tmp_path / "own.ckpt")
    assert repr(again.head) == repr(module.head)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(images), module.eval()(images))


def test_a_convolution_in_place_of_squeezenets_head_is_the_one_that_trains(trainer: Make) -> None:
    module = make_finetuner("squeezenet1_1")
    module.head = nn.Conv2d(512, 3, kernel_size=1, bias=False)
    before = snapshot(module)
    trainer(1).fit(module, make_batches(64), make_batches(64))
    assert changed_tensors(before, module) == {"classifier.1.weight"}


class OwnLayer(nn.Module):
    """Cannot be described as plain data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(512, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 2


def test_a_head_with_code_of_ones_own_is_given_again_when_it_is_loaded(tmp_path: Path) -> None:
    module = FineTuner("resnet18", CLASSES, weights="none", head=OwnLayer())
    module.save(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"layers that a checkpoint cannot describe: give them as head="):
        FineTuner.load_from_checkpoint(tmp_path / "own.ckpt")
    again = FineTuner.load_from_checkpoint(tmp_path / "own.ckpt", head=OwnLayer())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(images), module.eval()(images))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (3, r"head= takes .*, got 3"),
        ("classifier", r"head='classifier': the head of resnet18 is fc"),
        (nn.Linear(512, 7), "The head has 7 outputs, and there are 3 classes"),
        (nn.Linear(100, 3), "The head takes 100 features, and the network gives 512"),
        ({"fc": 3}, "head= takes the path of a layer, a module"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(head: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner("resnet18", CLASSES, weights="none", head=head)


# --- networks of one's own --------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Has a trained part after its head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(3, 3)  # registered first
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.fc(self.conv(x).relu().mean((2, 3))))


def test_layers_after_the_head_are_new_too_and_a_random_trunk_is_noted(
    trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    module = FineTuner(Scaled(), CLASSES, head="fc")
    before = snapshot(module)
    trainer(1).fit(module, make_batches(16), make_batches(16))
    assert changed_tensors(before, module) == {"fc.weight", "fc.bias", "scale.weight", "scale.bias"}
    assert "frozen at random weights" in capsys.readouterr().out


def test_a_network_that_was_trained_is_not_called_random(trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    network = SmallNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    for images, labels in make_batches(16):
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    trainer(1).fit(FineTuner(network, CLASSES, head="fc"), make_batches(16), make_batches(16))
    assert "random weights" not in capsys.readouterr().out


def test_a_head_that_is_not_the_last_layer_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Functional cannot go on after the new head at .fc1. .*head= names its last layer"
    ):
        FineTuner(Functional(), ["a", "b"], head="fc1")


# --- Lightning's finder of rates --------------------------------------------------------------------------------------


def found_rate(trainer: Trainer, module: FineTuner) -> float:
    finder: Any = Tuner(trainer).lr_find(module, make_batches(16, count=30), make_batches(16), num_training=25)
    return float(finder.suggestion())


@pytest.mark.filterwarnings("ignore:.*")
def test_the_rate_that_lightnings_tuner_finds_is_the_one_that_trains(trainer: Make) -> None:
    watch = Rates()
    module = FineTuner(SmallNetwork(), CLASSES, "differential", head="fc")
    rate = found_rate(trainer(1), module)
    assert module.lr == rate != 0.001
    trainer(1, callbacks=[watch]).fit(module, make_batches(16, count=30), make_batches(16))
    assert watch.steps == [pytest.approx([rate, rate / 10])] * 30


@pytest.mark.filterwarnings("ignore:.*")
def test_the_finder_as_a_callback_keeps_the_ratio_of_the_groups_while_it_looks_and_after(trainer: Make) -> None:
    watch = Rates()
    module = FineTuner(SmallNetwork(), CLASSES, "differential", head="fc")
    trainer(1, callbacks=[LearningRateFinder(num_training_steps=20), watch]).fit(
        module, make_batches(16, count=30), make_batches(16)
    )
    assert module.lr != 0.001
    assert watch.steps == [pytest.approx([module.lr, module.lr / 10])] * 30  # type: ignore[operator]


# --- image sizes ------------------------------------------------------------------------------------------------------


def test_the_module_takes_the_image_size_of_the_data(photos: Path, trainer: Make, tmp_path: Path) -> None:
    module = make_finetuner()
    trainer(1).fit(module, datamodule=data_of(photos, image_size=48))
    assert module.preprocess.size == 48
    module.save(tmp_path / "small.ckpt")
    assert FineTuner.load_from_checkpoint(tmp_path / "small.ckpt").preprocess.size == 48


def test_evaluating_at_another_size_does_not_change_what_the_module_says(photos: Path, trainer: Make) -> None:
    module = make_finetuner()
    trainer(1).fit(module, datamodule=data_of(photos, image_size=48))
    trainer(1).validate(module, datamodule=data_of(photos, image_size=64), verbose=False)
    assert (module.preprocess.size, module.hparams["preprocess"]["size"]) == (48, 48)


def test_contradicting_image_sizes_are_refused(photos: Path, trainer: Make) -> None:
    module = make_finetuner(preprocess={"size": 64})
    with pytest.raises(ValueError, match=r"preprocess size=64, the data module size=48 .*say it in one place"):
        trainer(1).fit(module, datamodule=data_of(photos, image_size=48))


def test_a_network_of_fixed_size_refuses_other_images_before_it_trains(photos: Path, trainer: Make) -> None:
    module = make_finetuner("inception_v3")
    with pytest.raises(ValueError, match="inception_v3 needs images of at least 299 pixels"):
        trainer(1).fit(module, datamodule=data_of(photos, image_size=64))
