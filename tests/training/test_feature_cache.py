"""Test `finetune.training.feature_cache`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from finetune import FineTuner, ImageDataModule
from finetune.io.store import METADATA_FILE
from finetune.models.backbone import Backbone
from finetune.models.specs import FAMILIES, Family
from finetune.training import feature_store
from finetune.training.feature_store import VALUES
from finetune.training.history import History
from tests.helpers import ONE_OF_EACH_FAMILY, REAL_TRUNKS, SMALLEST_OF_FAMILY, Functional, write_images

LAYER4 = {"groups": [{"match": "@head"}, {"match": "layer4"}, {"match": ".*", "start": None}]}


Fit = Callable[..., tuple[FineTuner, ImageDataModule]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven training and three validation images of three classes, 40 pixels."""
    root = tmp_path_factory.mktemp("few") / "photos"
    return write_images(
        root, {"train": {"cat": 3, "dog": 2, "emu": 2}, "val": dict.fromkeys(("cat", "dog", "emu"), 1)}, 40
    )


@pytest.fixture
def fit(few: Path, trainer: Callable[..., Trainer], tmp_path: Path) -> Fit:
    """Three epochs of a FineTuner without dropout on few images."""

    def run(
        model: Any = "resnet18", strategy: Any = "feature_extract", cache: str = "auto", epochs: int = 3, **options: Any
    ) -> tuple[FineTuner, ImageDataModule]:
        torch.manual_seed(0)
        data_options = {
            k: options.pop(k)
            for k in ("augment", "seed", "cache_gib", "cache_dir", "sampler", "folds", "fold")
            if k in options
        }
        trainer_options = options.pop("trainer", {})
        if isinstance(strategy, str):
            from finetune.training.strategy import Strategy

            strategy = Strategy.load(strategy).to_dict()
        strategy = {**strategy, "cache": cache, **{k: options.pop(k) for k in ("views", "cache_dtype") if k in options}}
        size = SMALLEST_OF_FAMILY.get(model, 32) if isinstance(model, str) else 32
        module = FineTuner(
            model, ["cat", "dog", "emu"], strategy, weights="none", preprocess={"size": size},
            optimizer=partial(SGD, lr=0.01, momentum=0.9), **options,
        )  # fmt: skip
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        data_options = {"cache_dir": tmp_path / "cache", **data_options}
        data = ImageDataModule(few, batch_size=3, num_workers=0, **data_options)
        trainer(epochs, **trainer_options).fit(module, datamodule=data)
        return module, data

    return run


def heads(module: FineTuner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.head.parameters()])


def test_cached_training_draws_the_images_of_uncached_training(fit: Fit) -> None:
    cached, data = fit("resnet18", sampler="balanced")
    plain, _ = fit("resnet18", cache="never", sampler="balanced")
    every, _ = fit("resnet18")
    assert torch.allclose(heads(cached), heads(plain), atol=1e-5)
    assert not torch.allclose(heads(cached), heads(every), atol=1e-4)
    assert sorted(data.splits["train"].counts(data.classes).values()) == [2, 2, 3]


@pytest.mark.parametrize("model", ONE_OF_EACH_FAMILY)
def test_cached_training_gives_the_head_of_uncached_training(
    model: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    cached, _ = fit(model)
    assert f"before {FAMILIES[model].feature_boundary}, computed in" in " ".join(capsys.readouterr().out.split())
    plain, _ = fit(model, cache="never")
    scale = max(1.0, float(heads(plain).abs().max()))  # inception's features at random weights are huge
    assert torch.allclose(heads(cached) / scale, heads(plain) / scale, atol=1e-5)
    assert cached.results["val"]["loss"] == pytest.approx(plain.results["val"]["loss"], rel=1e-4)
    if model != "squeezenet1_1":  # at random weights and this size its logits end in a ReLU that lets nothing through
        start, _ = fit(model, cache="never", epochs=0)
        assert not torch.equal(heads(cached), heads(start))


def test_a_partly_frozen_trunk_is_cut_where_it_begins_to_learn(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    cached, _ = fit("resnet18", LAYER4, augment="none")
    assert "before layer4, computed" in capsys.readouterr().out
    plain, _ = fit("resnet18", LAYER4, cache="never", augment="none")
    # BatchNorm over three images of one pixel makes much of a rounding
    assert torch.allclose(heads(cached), heads(plain), atol=1e-2)
    trunk = [n for n in cached.backbone.state_dict() if not n.startswith(("fc", "layer4"))]
    moved = cached.backbone.state_dict()["layer4.1.conv2.weight"] - plain.backbone.state_dict()["layer4.1.conv2.weight"]
    assert float(moved.abs().max()) < 0.05
    assert all(torch.equal(cached.backbone.state_dict()[n], plain.backbone.state_dict()[n]) for n in trunk)


# of `gradual`, the BatchNorms of layer4 make much of a rounding: at 1e-6 on a weight, 0.02 on the head; the solved head has weights of 10
@pytest.mark.parametrize(("strategy", "tolerance"), [("lp_ft", 1e-2), ("gradual", 5e-2)])
def test_a_trunk_that_starts_late_trains_on_features_until_then(
    strategy: str, tolerance: float, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    cached, _ = fit("resnet18", strategy, epochs=2)
    assert "epochs 1 to 1 train on them" in " ".join(capsys.readouterr().out.split())
    plain, _ = fit("resnet18", strategy, cache="never", epochs=2)
    assert torch.allclose(heads(cached), heads(plain), atol=tolerance)
    first_conv = "layer4.0.conv1.weight"
    start, _ = fit("resnet18", strategy, cache="never", epochs=1)
    assert not torch.equal(cached.backbone.state_dict()[first_conv], start.backbone.state_dict()[first_conv])


def test_a_resumed_run_goes_on_with_features(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = fit("resnet18", epochs=3)
    module, data = fit("resnet18", epochs=2)
    path = tmp_path / "two.ckpt"
    module.trainer.save_checkpoint(path)
    again = FineTuner("resnet18", module.classes, module.strategy, weights="none", preprocess={"size": 32},
                      optimizer=partial(SGD, lr=0.01, momentum=0.9))  # fmt: skip
    runner = Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                     enable_checkpointing=False, num_sanity_val_steps=0)  # fmt: skip
    capsys.readouterr()
    runner.fit(again, datamodule=data, ckpt_path=path, weights_only=True)
    assert "all epochs train on them" in " ".join(capsys.readouterr().out.split())
    assert torch.allclose(heads(again), heads(whole), atol=1e-6)


@pytest.mark.slow
def test_a_run_resumed_after_the_trunk_started_computes_no_features(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: Callable[..., Trainer]
) -> None:
    module, data = fit("resnet18", "lp_ft", epochs=3)
    module.trainer.save_checkpoint(tmp_path / "three.ckpt")
    again = FineTuner("resnet18", module.classes, module.strategy, weights="none", preprocess={"size": 32},
                      optimizer=partial(SGD, lr=0.01, momentum=0.9))  # fmt: skip
    capsys.readouterr()
    trainer(4).fit(again, datamodule=data, ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    assert "Features" not in capsys.readouterr().out
    assert again.current_epoch == 4


@pytest.mark.parametrize("scheduler", [CosineAnnealingLR, partial(OneCycleLR, pct_start=0.5)])
def test_a_scheduler_that_asks_for_the_number_of_steps_leaves_the_features_in_use(
    scheduler: Any, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = FineTuner.training_step

    def training_step(self: FineTuner, batch: Any, batch_idx: int) -> Tensor:
        seen.append(type(batch[0]).__name__)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", training_step)
    cached, _ = fit("resnet18", scheduler=scheduler)
    assert set(seen) == {"Features"}
    plain, _ = fit("resnet18", scheduler=scheduler, cache="never")
    assert torch.allclose(heads(cached), heads(plain), atol=1e-5)


@pytest.mark.slow
def test_views_are_the_augmentations_of_the_first_epochs(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    cached, _ = fit("resnet18", views=3)
    assert "of 3 x 7 + 3 images" in capsys.readouterr().out
    plain, _ = fit("resnet18", views=3, cache="never")
    assert torch.allclose(heads(cached), heads(plain), atol=1e-5)
    again, _ = fit("resnet18", views=2)
    assert not torch.allclose(heads(cached), heads(again), atol=1e-5)


@pytest.mark.slow
def test_float16_takes_half_the_space_for_what_is_trained_on(fit: Fit, tmp_path: Path) -> None:
    full, _ = fit("resnet18", cache_dir=tmp_path / "32")
    half, _ = fit("resnet18", cache_dir=tmp_path / "16", cache_dtype="float16")
    sizes = {name: [p.stat().st_size - 128 for p in (tmp_path / name).rglob(VALUES)] for name in ("16", "32")}
    train, val = max(sizes["32"]), min(sizes["32"])
    assert sorted(sizes["16"]) == sorted([train / 2, val])  # evaluation stays exact
    assert torch.allclose(heads(full), heads(half), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cache": "never"}, "strategy.cache=never"),
        ({"augment": "basic"}, "data.augment=basic changes the pixels every epoch"),
        ({"augment": "none", "views": 2}, "strategy.views=2 needs an augmentation"),
        ({"mixup": 0.2}, "MixUp and CutMix mix pixels"),
        ({"cache_gib": 1e-6}, "0.0 MiB are more than paths.cache_gib=1e-06 allows"),
        ({"trainer": {"limit_train_batches": 1}}, "only some of the batches"),
        ({"strategy": {"groups": [{"match": "@head"}, {"match": ".*", "start": None}], "frozen_norm": "train"}},
         "bn1 is in training mode"),
        ({"strategy": {"groups": [{"match": "@head"}, {"match": ".*", "lr": 0.0}]}, "trainer": {"gradient_clip_val": 1.0}},
         "gradients of a group with rate 0 are clipped"),
    ],
)  # fmt: skip
def test_without_a_cache_one_line_says_why(
    options: dict[str, Any], reason: str, fit: Fit, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fit(**{"epochs": 1, **options})
    assert f"computed again in every step: {reason}" in " ".join(capsys.readouterr().out.split())
    assert not list((tmp_path / "cache").glob("features-*"))


@pytest.mark.parametrize("model", ["resnet18", "squeezenet1_1"])
def test_a_trunk_that_learns_gets_no_line(model: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(model, "finetune", epochs=1, augment="none")
    assert "Features" not in capsys.readouterr().out


def test_a_cache_folder_that_cannot_be_made_is_no_failure(
    fit: Fit, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    fit(cache_dir=tmp_path / "file" / "cache", epochs=1)
    assert "computed again in every step:" in capsys.readouterr().out


def test_a_disk_that_fills_up_is_no_failure(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "write_rows", full)
    fit(epochs=1)
    assert "No space left on device" in capsys.readouterr().out
    assert not list((tmp_path / "cache").glob("*features*/*"))


# --- what the key depends on -------------------------------------------------------------------------------------


def made(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("features-*")))


def test_a_second_run_takes_the_features_from_the_cache(
    fit: Fit, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [History(tmp_path / str(i) / "metrics.csv", "val/acc") for i in range(3)]
    fit(trainer={"callbacks": [runs[0]], "enable_checkpointing": True})
    capsys.readouterr()
    fit(seed=1, trainer={"callbacks": [runs[1]], "enable_checkpointing": True})
    assert "taken from the cache" in " ".join(capsys.readouterr().out.split())
    assert made(tmp_path) == 2
    assert runs[0].features == {"from_cache": False, "saved_seconds": 0.0}
    recorded = [
        json.loads(path.read_text())["seconds"] for path in (tmp_path / "cache").glob(f"features-*/{METADATA_FILE}")
    ]
    assert runs[1].features == {"from_cache": True, "saved_seconds": pytest.approx(sum(recorded), abs=2e-3)}
    fit(strategy="finetune", trainer={"callbacks": [runs[2]], "enable_checkpointing": True})
    assert runs[2].features is None


@pytest.mark.slow
def test_other_weights_views_and_files_are_other_features(fit: Fit, few: Path, tmp_path: Path) -> None:
    fit(epochs=1)
    assert made(tmp_path) == 2
    network = Backbone.create("resnet18", "none").network
    fit(
        Backbone("resnet18", network, FAMILIES["resnet18"], Backbone.create("resnet18", "none").preprocess, ""),
        epochs=1,
    )
    assert made(tmp_path) == 4
    fit(views=2, epochs=1)
    assert made(tmp_path) == 5
    fit(views=2, seed=1, epochs=1)
    assert made(tmp_path) == 6
    picture = next((few / "val").rglob("*.png"))
    stat = picture.stat()
    import os

    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    fit(epochs=1)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made(tmp_path) == 7


class Own(nn.Module):
    """A network of a user's own, whose code is no part of its weights."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign, self.conv, self.fc = sign, nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.sign * self.conv(x)).relu().mean((2, 3)))


def test_a_network_of_your_own_whose_code_changed_is_computed_anew(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    def own(sign: float) -> Own:
        torch.manual_seed(3)
        return Own(sign)

    fit(own(1.0), head="fc")
    assert "computed in" in capsys.readouterr().out
    fit(own(1.0), head="fc")
    assert "taken from the cache" in " ".join(capsys.readouterr().out.split())
    changed, _ = fit(own(-1.0), head="fc")
    assert "computed in" in capsys.readouterr().out
    plain, _ = fit(own(-1.0), head="fc", cache="never")
    assert torch.allclose(heads(changed), heads(plain), atol=1e-5)


class Crooked(nn.Module):
    """What follows the head is more than a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3))) * 3 + 1


class Weight(nn.Module):
    """Its head is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.conv(x).mean((2, 3)), self.fc.weight, self.fc.bias)


@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        (Functional, {"feature_boundary": "drop", "head_init": "zero"}, "what a network of your own does after drop"),
        (Weight, {}, "the network does not call fc as a module"),
    ],
)
def test_networks_of_your_own_that_cannot_be_cut_are_trained_whole(
    network: type[nn.Module], options: dict[str, Any], reason: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(network(), head="fc", epochs=1, **options)
    assert reason in " ".join(capsys.readouterr().out.split())


def test_a_network_that_cannot_be_run_from_the_cut_is_trained_whole(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Crooked(), head="fc")
    assert "what follows fc is more than its modules" in " ".join(capsys.readouterr().out.split())


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_files_are_made_anew(fit: Fit, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole, _ = fit()
    entries = sorted((tmp_path / "cache").glob("features-*"))

    def truncate(entry: Path) -> None:
        with (entry / VALUES).open("r+b") as file:
            file.truncate(300)

    def foreign(entry: Path) -> None:
        (entry / VALUES).write_bytes(b"<html>not found</html>" * 100)

    def other_shape(entry: Path) -> None:
        np.save(entry / VALUES, np.zeros((7, 3), np.float32))

    def no_metadata(entry: Path) -> None:
        (entry / METADATA_FILE).write_text("{")

    def zeros(entry: Path) -> None:
        size = (entry / VALUES).stat().st_size
        with (entry / VALUES).open("r+b") as file:
            file.seek(128)
            file.write(bytes(size - 128))

    for damage in (truncate, foreign, other_shape, no_metadata, zeros):
        for entry in entries:
            damage(entry)
        capsys.readouterr()
        again, _ = fit()
        assert "computed in" in capsys.readouterr().out, damage.__name__
        assert torch.equal(heads(again), heads(whole))


def test_a_family_of_your_own_is_cached_at_its_feature_boundary(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    own = Own()
    backbone = Backbone(
        "own",
        own,
        Family(names=(), head="fc", feature_boundary="fc"),
        Backbone.create("resnet18", "none").preprocess,
        "",
    )
    fit(backbone)
    assert "before fc, computed in" in " ".join(capsys.readouterr().out.split())


def test_metadata_say_what_is_kept(fit: Fit, tmp_path: Path) -> None:
    fit(epochs=1)
    metadata = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob(f"features-*/{METADATA_FILE}")]
    assert {m["description"] for m in metadata if not m["description"].startswith("image info")} == {
        "features of resnet18 before fc, 7 train images",
        "features of resnet18 before fc, 3 val images",
    }


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("model", REAL_TRUNKS)
def test_cached_training_gives_the_head_of_uncached_training_on_real_data(
    model: str, shared: Path, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def head(cache: str) -> Tensor:
        torch.manual_seed(0)
        from dataclasses import replace

        from finetune.training.strategy import Strategy

        module = FineTuner(
            model, ["ants", "bees"], replace(Strategy.load("feature_extract"), cache=cache),
            weights=str(shared / REAL_TRUNKS[model]),
        )  # fmt: skip
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        data = ImageDataModule(shared / "data" / "hymenoptera_data", per_class=20, batch_size=8, cache_dir=tmp_path)
        trainer(3).fit(module, datamodule=data)
        assert module.results["val"]["acc"] > 0.7
        return heads(module)

    cached, plain = head("auto"), head("never")
    assert torch.allclose(cached, plain, atol=1e-5)


class DropsByFunction(nn.Module):
    """A network whose dropout is no module, as timm's with `drop_rate`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images).relu().mean(dim=(2, 3))
        return self.fc(nn.functional.dropout(values, 0.5, self.training))


@pytest.mark.parametrize("model", ["own", "timm:test_resnet"])
def test_dropout_that_is_no_module_stays_random(model: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"model_options": {"drop_rate": 0.5}} if model != "own" else {"head": "fc"}
    network: Any = model
    if model == "own":
        torch.manual_seed(1)
        network = DropsByFunction()
    whole, _ = fit(network, **options)
    assert "fc varies from one pass to the next" in " ".join(capsys.readouterr().out.split())
    if model == "own":
        torch.manual_seed(1)
        network = DropsByFunction()
    never, _ = fit(network, cache="never", **options)
    assert torch.equal(heads(whole), heads(never))


def test_a_split_that_cannot_be_proved_leaves_the_one_that_holds_for_fewer_epochs(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """What follows a ViT's block is more than its modules: the class token is taken. What follows its trunk is not."""
    strategy = {
        "groups": [
            {"match": "@head"}, {"match": "blocks.5", "start": 1}, {"match": "norm", "start": 1},
            {"match": ".*", "start": None},
        ]
    }  # fmt: skip
    cached, _ = fit("timm:test_vit", strategy, augment="none")
    text = " ".join(capsys.readouterr().out.split())
    assert "before head_drop, computed in" in text
    assert "epochs 1 to 1 train on them" in text
    assert "computed again" not in text
    plain, _ = fit("timm:test_vit", strategy, cache="never", augment="none")
    assert torch.allclose(heads(cached), heads(plain), atol=1e-5)
