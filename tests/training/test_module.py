"""Test `finetune.training.module`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner, ImageDataModule
from finetune.cli.groups import group_options
from finetune.models.specs import FAMILIES
from tests.helpers import CLASSES, SMALLEST_SIZE, SmallNetwork, make_batches, make_finetuner
from tests.training.helpers import changed_tensors, snapshot

TUTORIAL = ["resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3"]


OTHERS = ["googlenet", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16"]


BIG = {"inception_v3", "vit_b_16", "vgg11_bn", "alexnet", "densenet121", "googlenet", "convnext_tiny", "swin_t"}


# --- one step of every family ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["feature_extract", "finetune", "differential"])
@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[pytest.mark.slow] if m in BIG else []) for m in (*TUTORIAL, *OTHERS)]
)
def test_step_trains_what_the_strategy_says(model: str, strategy: str, trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner(model, strategy)
    before = snapshot(module)
    trainer(1).fit(module, make_batches(SMALLEST_SIZE.get(model, 64), count=1, n=2))
    moved = changed_tensors(before, module)
    parameters = {n for n, _ in module.backbone.named_parameters()}
    head = {n for n in parameters if n.startswith(f"{FAMILIES[model].head}.")}
    if strategy == "feature_extract":
        assert moved <= head  # buffers and auxiliary heads included: all else is as it was
        assert moved
    else:
        assert head <= moved
        still = parameters - moved
        assert len(still) <= 0.2 * len(parameters), still  # a dead ReLU may leave a bias without gradient


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "weight", "heads"), [("inception_v3", 299, 0.4, 1), ("googlenet", 64, 0.3, 2)]
)
def test_training_loss_adds_the_auxiliary_losses_and_evaluation_does_not(
    model: str, size: int, weight: float, heads: int
) -> None:
    module = make_finetuner(model, "finetune")
    images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.manual_seed(3)
    loss = module.training_step((images, labels), 0)
    torch.manual_seed(3)
    logits, aux = module.network.logits_and_aux(images)
    assert len(aux) == heads
    expected = module.criterion(logits, labels) + weight * sum(module.criterion(a, labels) for a in aux)
    torch.testing.assert_close(loss, expected)
    module.eval()
    out = module.backbone(images)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(module(images), out)


@pytest.mark.parametrize("strategy", ["feature_extract", "frozen_lr0"])
def test_auxiliary_heads_are_off_while_the_trunk_is_frozen(strategy: str) -> None:
    module = make_finetuner("googlenet", strategy)
    module.train()
    assert isinstance(module.backbone(torch.randn(1, 3, 32, 32)), Tensor)  # a batch of one works too
    assert not any(p.requires_grad for n, p in module.backbone.named_parameters() if n.startswith("aux"))
    row = module.strategy_table()[-1]
    assert row[0] == "auxiliary heads"
    assert "nothing before them is trainable" in row[-1]


# --- frozen means frozen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["resnet18", "efficientnet_b0", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"]
)
@pytest.mark.parametrize("strategy", ["feature_extract", "frozen_lr0"])
@pytest.mark.parametrize(
    "optimizer", [partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1), partial(AdamW, lr=0.1, weight_decay=0.1)]
)
def test_frozen_parameters_and_buffers_are_identical_after_two_epochs(
    model: str, strategy: str, optimizer: Any, trainer: Callable[..., Trainer]
) -> None:
    module = make_finetuner(model, strategy, optimizer=optimizer)
    before = snapshot(module)
    trainer(2).fit(module, make_batches(), make_batches())
    assert changed_tensors(before, module) == {f"{module.family.head}.weight", f"{module.family.head}.bias"}


@pytest.mark.parametrize("model", ["efficientnet_b0", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny"])
def test_frozen_trunk_gives_the_same_features_twice_in_training_mode(model: str) -> None:
    module = make_finetuner(model)
    module.train()
    seen: list[Tensor] = []
    tail = module.backbone.get_submodule(module.family.feature_boundary)
    tail.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    images = torch.randn(2, 3, 64, 64)
    module(images)
    module(images)
    assert torch.equal(seen[0], seen[1])
    assert not seen[0].requires_grad


def test_rate_zero_lets_gradients_flow_and_changes_nothing(trainer: Callable[..., Trainer]) -> None:
    class Gradients(Callback):
        norms: ClassVar[list[float]] = []

        def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            gradient = module.backbone.conv1.weight.grad
            self.norms.append(float(gradient.norm()))

    module = make_finetuner("resnet18", "frozen_lr0")
    before = snapshot(module)
    trainer(1, callbacks=[Gradients()]).fit(module, make_batches())
    assert min(Gradients.norms) > 0
    assert changed_tensors(before, module) == {"fc.weight", "fc.bias"}


def test_train_mode_called_by_a_user_does_not_thaw(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18")
    module.eval()
    module.train()
    assert not module.backbone.get_submodule("layer4.1.bn2").training
    assert module.head.training


# --- losses and metrics ------------------------------------------------------------------------------------------


def test_training_loss_has_smoothing_and_weights_and_validation_has_not(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18", label_smoothing=0.2, class_weights=[1.0, 2.0, 3.0])
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
    loss = module.training_step((images, labels), 0)
    expected = nn.functional.cross_entropy(module(images), labels, torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    assert not any("criterion" in k for k in module.state_dict())


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixing_trains_on_soft_labels(mix: dict[str, float], trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18", **mix)
    trainer(1).fit(module, make_batches(), make_batches())
    assert module.results["val"]["loss"] > 0
    assert math.isfinite(float(module.trainer.callback_metrics["train/loss"]))


def test_loss_that_is_not_finite_stops_and_says_what_to_do(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18")
    images = torch.full((4, 3, 32, 32), float("nan"))
    with pytest.raises(ValueError, match=r"loss is nan in epoch 1, batch 1.*optimizer\.lr"):
        trainer(1).fit(module, DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 0])), batch_size=4))


# --- construction and loading ------------------------------------------------------------------------------------


def test_finetuner_has_backbone_and_head_and_clean_keys() -> None:
    module = make_finetuner("squeezenet1_1")
    assert module.head is module.backbone.get_submodule("classifier.1")
    assert all(k.startswith("backbone.") for k in module.state_dict())
    assert len(module.state_dict()) == len(module.backbone.state_dict())
    assert module.classes == CLASSES


def test_finetuner_takes_a_network_of_ones_own(trainer: Callable[..., Trainer]) -> None:
    module = FineTuner(SmallNetwork(), ["a", "b", "c"], "differential", head="fc")
    trainer(1).fit(module, make_batches(), make_batches())
    assert module.head is module.backbone.fc
    with pytest.raises(ValueError, match=r"Say which layer of SmallNetwork is its head.*fc"):
        FineTuner(SmallNetwork(), ["a", "b"])
    with pytest.raises(ValueError, match="'classifier' does not exist"):
        FineTuner(SmallNetwork(), ["a", "b"], head="classifier")


def test_scratch_ignores_weights_without_looking_for_them() -> None:
    module = FineTuner("resnet18", CLASSES, "scratch", weights="default")
    assert module.weights_source == "random weights"


@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_every_strategy_trains_in_a_strangers_trainer(
    strategy: str, trainer: Callable[..., Trainer], photos: Path
) -> None:
    data = ImageDataModule(photos, batch_size=8, image_size=32, num_workers=0).prepare()
    module = FineTuner("squeezenet1_1", data.classes, strategy, weights="none", preprocess={"size": 32})
    trainer(3).fit(module, datamodule=data)
    assert 0 <= module.results["val"]["acc"] <= 1


def test_a_plain_trainer_with_its_sanity_check_works(photos: Path, tmp_path: Path) -> None:
    data = ImageDataModule(photos, batch_size=8, num_workers=0).prepare()
    module = FineTuner("squeezenet1_1", data.classes, "differential", weights="none", preprocess={"size": 32})
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    assert sum(map(sum, module.results["val"]["confusion_matrix"])) == 12


def test_a_network_or_a_normalisation_that_is_put_in_its_place_is_used() -> None:
    module = FineTuner("squeezenet1_1", 2, weights="none").eval()
    other = FineTuner("squeezenet1_1", 2, weights="none", preprocess={"mean": 0.5, "std": 0.5}).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = other(images)
        assert not torch.equal(module(images), expected)
        module.backbone, module.preprocess = other.backbone, other.preprocess
        assert torch.equal(module(images), expected)


def test_a_subclass_with_a_setup_of_its_own_knows_the_length_of_its_run(
    photos: Path, trainer: Callable[..., Trainer]
) -> None:
    class Mine(FineTuner):
        def setup(self, stage: str) -> None:
            self.ready = True

    data = ImageDataModule(photos, batch_size=8, num_workers=0).prepare()
    module = Mine("squeezenet1_1", data.classes, "lp_ft", weights="none", preprocess={"size": 32})
    trainer(3).fit(module, datamodule=data)
    assert module.ready
    assert module.schedule.start_epochs() == [0, 1]
    assert data.final_preprocess.size == 32
    assert data.unaugmented_epochs == 1
