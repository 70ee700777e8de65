from __future__ import annotations

import math
from collections import OrderedDict
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
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner, ImageDataModule, load
from finetune.checkpoints import format
from finetune.cli.groups import group_options
from finetune.models.specs import FAMILIES
from finetune.training.strategy import Strategy

CLASSES = ["cat", "dog", "emu"]
SMALLEST = {"inception_v3": 299, "vit_b_16": 224, "alexnet": 63}
TUTORIAL = ["resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3"]
OTHERS = ["googlenet", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16"]
BIG = {"inception_v3", "vit_b_16", "vgg11_bn", "alexnet", "densenet121", "googlenet", "convnext_tiny", "swin_t"}


def make(model: Any = "resnet18", strategy: Any = "feature_extract", **kwargs: Any) -> FineTuner:
    return FineTuner(model, CLASSES, strategy, weights="none", **kwargs)


def batches(size: int = 32, count: int = 2, n: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count * n, 3, size, size, generator=generator)
    labels = torch.arange(count * n) % 3
    return DataLoader(TensorDataset(images, labels), batch_size=n)


def snapshot(module: FineTuner) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.backbone.state_dict().items()}


def changed(before: dict[str, Tensor], module: FineTuner) -> set[str]:
    return {k for k, v in module.backbone.state_dict().items() if not torch.equal(before[k], v)}


class Small(nn.Module):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


# --- one step of every family ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["feature_extract", "finetune", "differential"])
@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[pytest.mark.slow] if m in BIG else []) for m in (*TUTORIAL, *OTHERS)]
)
def test_step_trains_what_the_strategy_says(model: str, strategy: str, trainer: Callable[..., Trainer]) -> None:
    module = make(model, strategy)
    before = snapshot(module)
    trainer(1).fit(module, batches(SMALLEST.get(model, 64), count=1, n=2))
    moved = changed(before, module)
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
    module = make(model, "finetune")
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
    module = make("googlenet", strategy)
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
    module = make(model, strategy, optimizer=optimizer)
    before = snapshot(module)
    trainer(2).fit(module, batches(), batches())
    assert changed(before, module) == {f"{module.family.head}.weight", f"{module.family.head}.bias"}


@pytest.mark.parametrize("model", ["efficientnet_b0", "squeezenet1_1", "mobilenet_v3_small", "convnext_tiny"])
def test_frozen_trunk_gives_the_same_features_twice_in_training_mode(model: str) -> None:
    module = make(model)
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

    module = make("resnet18", "frozen_lr0")
    before = snapshot(module)
    trainer(1, callbacks=[Gradients()]).fit(module, batches())
    assert min(Gradients.norms) > 0
    assert changed(before, module) == {"fc.weight", "fc.bias"}


def test_train_mode_called_by_a_user_does_not_thaw(trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18")
    module.eval()
    module.train()
    assert not module.backbone.get_submodule("layer4.1.bn2").training
    assert module.head.training


def test_gradual_moves_each_quarter_from_its_epoch_on(trainer: Callable[..., Trainer]) -> None:
    class Watch(Callback):
        moved: ClassVar[list[set[str]]] = []

        def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
            self.before = snapshot(module)

        def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
            names = {n for n, _ in module.backbone.named_parameters()}
            self.moved.append(changed(self.before, module) & names)

    module = make("resnet18", "gradual", optimizer=partial(SGD, lr=0.05))
    trainer(6, callbacks=[Watch()]).fit(module, batches())
    names = [set(names) for _, names in module.schedule.groups]
    for epoch, moved in enumerate(Watch.moved):
        assert moved == set().union(*names[: min(epoch, 4) + 1])


def test_resume_past_an_unfreeze_is_in_the_right_state_and_frozen_parts_identical(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    strategy = {"groups": [{"match": "@head"}, {"match": "layer4", "start": 1}, {"match": ".*", "start": None}]}
    module = make("resnet18", strategy)
    start = snapshot(module)
    first = trainer(2)
    first.fit(module, batches(), batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = make("resnet18", strategy)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trainer(3).fit(resumed, batches(), batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    moved = {k.removeprefix("backbone.") for k, v in resumed.state_dict().items() if not torch.equal(before[k], v)}
    assert any(n.startswith("layer4") and n.endswith("weight") for n in moved)
    assert all(n.startswith(("layer4", "fc")) for n in moved)
    assert all(n.startswith(("layer4", "fc")) for n in changed(start, resumed) & set(start))


# --- rates -------------------------------------------------------------------------------------------------------


class Rates(Callback):
    """The rate of each group that each step really used."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        self.steps.append(dict(module.rates))


def rates_of(
    trainer: Callable[..., Trainer], epochs: int = 4, strategy: Any = "differential", **kwargs: Any
) -> list[dict[str, float]]:
    watch = Rates()
    own = {k: kwargs.pop(k) for k in ("accumulate_grad_batches",) if k in kwargs}
    module = FineTuner(Small(), CLASSES, strategy, head="fc", **kwargs)
    trainer(epochs, callbacks=[watch], **own).fit(module, batches(16, count=5), batches(16))
    return watch.steps


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_rates_are_the_base_times_the_groups_multiplier(optimizer: Any, trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 1, optimizer=partial(optimizer, lr=0.02))
    assert steps == [{"lr/head": 0.02, "lr/trunk": pytest.approx(0.002)}] * 5


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_rates_under_cosine(optimizer: Any, trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(optimizer, lr=0.02), scheduler=partial(CosineAnnealingLR, eta_min=0))
    expected = [0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert [s["lr/head"] for s in steps] == pytest.approx([0.02 * e for e in expected])
    assert [s["lr/trunk"] for s in steps] == pytest.approx([0.002 * e for e in expected])


def test_rates_under_onecycle_keep_the_ratio_of_the_groups(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02, momentum=0.9), scheduler=OneCycleLR)
    assert max(s["lr/head"] for s in steps) == pytest.approx(0.02, rel=0.05)
    assert [s["lr/trunk"] * 10 for s in steps] == pytest.approx([s["lr/head"] for s in steps])
    assert steps[-1]["lr/head"] < 1e-6


def test_rates_under_onecycle_with_accumulation_end_where_the_run_ends(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(
        trainer, 3, optimizer=partial(SGD, lr=0.02, momentum=0.9), scheduler=OneCycleLR, accumulate_grad_batches=2
    )
    assert steps[-1]["lr/head"] < 1e-6


def test_rates_under_step(trainer: Callable[..., Trainer]) -> None:
    steps = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=partial(StepLR, step_size=2))
    assert [s["lr/head"] for s in steps] == pytest.approx([0.02] * 10 + [0.002] * 10)


def test_rates_under_plateau_fall_when_nothing_improves(trainer: Callable[..., Trainer]) -> None:
    scheduler = partial(ReduceLROnPlateau, patience=0, threshold=2.0)  # no accuracy improves by 200 %
    steps = rates_of(trainer, 3, optimizer=partial(SGD, lr=0.02), scheduler=scheduler)
    assert [s["lr/head"] for s in steps[::5]] == pytest.approx([0.02, 0.02, 0.002])


@pytest.mark.parametrize("scheduler", [None, partial(CosineAnnealingLR), partial(StepLR, step_size=100)])
def test_rates_warm_up_linearly_and_then_follow_the_scheduler(scheduler: Any, trainer: Callable[..., Trainer]) -> None:
    plain = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=scheduler)
    warm = rates_of(trainer, 4, optimizer=partial(SGD, lr=0.02), scheduler=scheduler, warmup=2)
    factors = [min(1.0, (i + 1) / 10) for i in range(20)]
    assert [s["lr/head"] for s in warm] == pytest.approx(
        [f * s["lr/head"] for f, s in zip(factors, plain, strict=True)]
    )


def test_rates_of_a_late_group_are_zero_then_warm_up(trainer: Callable[..., Trainer]) -> None:
    strategy = {
        "groups": [
            {"match": "@head", "name": "head"},
            {"match": ".*", "lr": 0.5, "start": 1, "warmup": 1, "name": "trunk"},
        ]
    }
    steps = rates_of(trainer, 3, strategy, optimizer=partial(SGD, lr=0.1))
    assert [s["lr/trunk"] for s in steps] == pytest.approx([0] * 5 + [0.01, 0.02, 0.03, 0.04, 0.05] + [0.05] * 5)


def test_scheduler_that_needs_an_end_refuses_an_endless_run(trainer: Callable[..., Trainer]) -> None:
    module = FineTuner(Small(), CLASSES, "finetune", head="fc", scheduler=CosineAnnealingLR)
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        trainer(-1).fit(module, batches(16))


# --- losses and metrics ------------------------------------------------------------------------------------------


def _evaluate(
    module: FineTuner, trainer: Callable[..., Trainer], images: Tensor, labels: Tensor, batch: int
) -> dict[str, Any]:
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch)
    logged = trainer(1).validate(module, loader, verbose=False)[0]
    return {**module.results["val"], "logged": logged}


@pytest.mark.parametrize("batch", [7, 3, 2, 1])
def test_metrics_are_of_all_images_whatever_the_batches(batch: int, trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18").eval()
    images, labels = torch.randn(7, 3, 32, 32), torch.tensor([0, 0, 0, 1, 1, 2, 0])
    found = _evaluate(module, trainer, images, labels, batch)
    with torch.no_grad():
        logits = module(images)
    predicted = logits.argmax(1)
    matrix = torch.zeros(3, 3, dtype=torch.long)
    for truth, guess in zip(labels, predicted, strict=True):
        matrix[truth, guess] += 1
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["acc"] == pytest.approx((predicted == labels).float().mean().item())
    assert found["per_class_recall"] == pytest.approx([(matrix[i, i] / matrix[i].sum()).item() for i in range(3)])
    f1 = [2 * matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum()) for i in range(3)]
    assert found["f1"] == pytest.approx(sum(f1).item() / 3)  # type: ignore[union-attr]
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    aucs = []
    for i in range(3):
        p, own = logits.softmax(1)[:, i], labels == i
        aucs.append((p[own][:, None] > p[~own][None]).float().mean().item())
    assert found["auroc"] == pytest.approx(sum(aucs) / 3)
    assert {"val/acc", "val/loss", "val/f1", "val/auroc"} == set(found["logged"])


def test_auroc_is_left_out_where_it_is_not_defined(trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18")
    found = _evaluate(module, trainer, torch.randn(3, 3, 32, 32), torch.tensor([1, 1, 1]), 2)
    assert "auroc" not in found
    found = _evaluate(module, trainer, torch.randn(3, 3, 32, 32), torch.tensor([1, 1, 2]), 2)
    assert 0 <= found["auroc"] <= 1


def test_training_loss_has_smoothing_and_weights_and_validation_has_not(trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18", label_smoothing=0.2, class_weights=[1.0, 2.0, 3.0])
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
    loss = module.training_step((images, labels), 0)
    expected = nn.functional.cross_entropy(module(images), labels, torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    assert not any("criterion" in k for k in module.state_dict())


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixing_trains_on_soft_labels(mix: dict[str, float], trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18", **mix)
    trainer(1).fit(module, batches(), batches())
    assert module.results["val"]["loss"] > 0
    assert math.isfinite(float(module.trainer.callback_metrics["train/loss"]))


def test_loss_that_is_not_finite_stops_and_says_what_to_do(trainer: Callable[..., Trainer]) -> None:
    module = make("resnet18")
    images = torch.full((4, 3, 32, 32), float("nan"))
    with pytest.raises(ValueError, match=r"loss is nan in epoch 1, batch 1.*optimizer\.lr"):
        trainer(1).fit(module, DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 0])), batch_size=4))


# --- construction and loading ------------------------------------------------------------------------------------


def test_finetuner_has_backbone_and_head_and_clean_keys() -> None:
    module = make("squeezenet1_1")
    assert module.head is module.backbone.get_submodule("classifier.1")
    assert all(k.startswith("backbone.") for k in module.state_dict())
    assert len(module.state_dict()) == len(module.backbone.state_dict())
    assert module.classes == CLASSES


def test_finetuner_takes_a_network_of_ones_own(trainer: Callable[..., Trainer]) -> None:
    module = FineTuner(Small(), ["a", "b", "c"], "differential", head="fc")
    trainer(1).fit(module, batches(), batches())
    assert module.head is module.backbone.fc
    with pytest.raises(ValueError, match=r"Say which layer of Small is its head.*fc"):
        FineTuner(Small(), ["a", "b"])
    with pytest.raises(ValueError, match="'classifier' does not exist"):
        FineTuner(Small(), ["a", "b"], head="classifier")


@pytest.mark.parametrize(
    ("classes", "message"), [([], "at least two classes"), (["a"], "at least two"), (["a", "a"], "must differ")]
)
def test_finetuner_bad_classes(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner("resnet18", classes, weights="none")


def test_finetuner_number_of_classes_names_them() -> None:
    assert FineTuner("squeezenet1_1", 3, weights="none").classes == ["0", "1", "2"]


def test_scratch_ignores_weights_without_looking_for_them() -> None:
    module = FineTuner("resnet18", CLASSES, "scratch", weights="default")
    assert module.weights_source == "random weights"


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        pytest.param("googlenet", marks=pytest.mark.slow),
        pytest.param("inception_v3", marks=pytest.mark.slow),
    ],
)
def test_checkpoint_loads_with_nothing_else(
    model: str, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SMALLEST.get(model, 64)
    module = make(
        model, "finetune", transform_input=True if FAMILIES[model].aux else None, optimizer=partial(SGD, lr=1e-4)
    )
    first = trainer(1)
    first.fit(module, batches(size, 1, 2), batches(size, 1, 2))
    first.save_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *a, **k: pytest.fail("asked the network"))
    monkeypatch.chdir(tmp_path)
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt", map_location="cpu")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert loaded.classes == CLASSES
    assert loaded.preprocess == module.preprocess
    with pytest.raises(ValueError, match="has no optimizer"):
        trainer(1).fit(loaded, batches(size))


def test_checkpoint_of_ones_own_network_asks_for_it(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    first = trainer(1)
    module = FineTuner(Small(), CLASSES, "finetune", head="fc")
    first.fit(module, batches())
    first.save_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, model=network\)"):
        FineTuner.load_from_checkpoint(tmp_path / "best.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt", model=Small())
    assert torch.equal(loaded.head.weight, module.head.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", group_options("strategy"))
def test_every_strategy_trains_in_a_strangers_trainer(
    strategy: str, trainer: Callable[..., Trainer], photos: Path
) -> None:
    data = ImageDataModule(photos, batch_size=8, image_size=32, num_workers=0).prepare()
    module = FineTuner("squeezenet1_1", data.classes, strategy, weights="none", preprocess={"size": 32})
    trainer(3).fit(module, datamodule=data)
    assert 0 <= module.results["val"]["acc"] <= 1


def test_strategy_table_is_printed_at_the_start(
    trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(1).fit(make("resnet18", "lp_ft"), batches())
    printed = capsys.readouterr().out
    assert "Strategy lp_ft" in printed
    assert "11,176,512" in printed
    assert "epoch 2, warm-up 1" in printed


def test_custom_tail_keeps_dropout_before_it_off() -> None:
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            drop=nn.Dropout(),
            fc=nn.Linear(4, 9),
        )
    )
    assert not FineTuner(network, 3, head="fc").train().backbone.get_submodule("drop").training
    assert FineTuner(network, 3, head="fc", feature_boundary="drop").train().backbone.get_submodule("drop").training


def test_strategy_object_is_taken_as_it_is() -> None:
    strategy = Strategy.load("differential")
    assert make("resnet18", strategy).strategy is strategy


@pytest.mark.slow
def test_vision_transformer_of_another_size_comes_back_from_its_checkpoint(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    module = make("vit_b_32", preprocess={"size": 64, "resize": 64})
    first = trainer(1)
    first.fit(module, batches(64, 1), batches(64, 1))
    first.save_checkpoint(tmp_path / "best.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module.eval()(images))
    with pytest.raises(ValueError, match="vit_b_32 cannot be built for images of 100 pixels"):
        make("vit_b_32", preprocess={"size": 100, "resize": 100})


def test_learning_names_know_how_long_the_run_is(trainer: Callable[..., Trainer]) -> None:
    module = make("squeezenet1_1", "gradual")
    trainer(1).fit(module, batches(), batches())
    assert module.schedule.ever_trainable_names() == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ValueError, match="which has no end"):
        trainer(-1, max_steps=2).fit(make("squeezenet1_1", "lp_ft"), batches(), batches())


def test_a_plain_trainer_with_its_sanity_check_works(photos: Path, tmp_path: Path) -> None:
    data = ImageDataModule(photos, batch_size=8, num_workers=0).prepare()
    module = FineTuner("squeezenet1_1", data.classes, "differential", weights="none", preprocess={"size": 32})
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    assert sum(map(sum, module.results["val"]["confusion_matrix"])) == 12


def test_what_a_checkpoint_says_of_validation_is_of_its_last_epoch(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    module = FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer(max_epochs=2).fit(module, datamodule=data)
    module.save(tmp_path / "model.ckpt")
    validation = format.read_checkpoint(tmp_path / "model.ckpt").metadata.validation
    assert validation.epoch == 2
    assert validation.batch_size == 8
    assert validation.results["acc"] == module.results["val"]["acc"]


@pytest.mark.slow
def test_a_loaded_module_that_learns_is_validated_as_it_is(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    """Nothing of the model that was loaded may evaluate the one that it becomes."""
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    first = FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer().fit(first, datamodule=data)
    first.save(tmp_path / "model.ckpt")
    model = load(tmp_path / "model.ckpt", strategy="finetune", optimizer=partial(torch.optim.SGD, lr=0.1))
    images, _ = next(iter(data.val_dataloader()))
    model.logits(images)
    trainer().fit(model.module, datamodule=data)
    model.module.eval()
    with torch.no_grad():
        plain = model.module.backbone(model.module.preprocess.normalize(images))
        assert torch.allclose(model.module(images), plain, atol=1e-5)
