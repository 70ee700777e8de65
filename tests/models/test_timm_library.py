"""Test `finetune.models.timm_library`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.optim import SGD

from finetune import FineTuner, ImageDataModule
from finetune.models.libraries import default_preprocess, find_library
from tests.helpers import write_images
from tests.models.helpers import TIMM_FAMILIES, TimmFamily
from tests.training.helpers import changed_tensors, snapshot

timm = pytest.importorskip("timm")

every_family = pytest.mark.parametrize("family", TIMM_FAMILIES)


def images_of(family: TimmFamily, n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, family.size, family.size), dtype=torch.uint8)


def randomize_heads(module: FineTuner) -> None:
    """New heads of some networks are zeros, which hide what enters them."""
    with torch.no_grad():
        for name in module._backbone.head_names:
            parameter = module.backbone.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape) * 0.1)


# --- every family ------------------------------------------------------------------------------------------------


@every_family
def test_the_new_parameters_are_those_whose_shapes_the_number_of_classes_changes(family: TimmFamily) -> None:
    three, seven = (dict(family.plain(num_classes=n).named_parameters()) for n in (3, 7))
    changed = {name for name in three if three[name].shape != seven[name].shape}
    module = family.finetuner()
    assert set(module._backbone.head_names) == changed
    assert {n for n, p in module.backbone.named_parameters() if p.requires_grad} == changed


@every_family
def test_logits_are_those_of_timms_own_network_with_the_exported_weights(family: TimmFamily) -> None:
    module, plain = family.finetuner().eval(), family.plain()
    randomize_heads(module)
    plain.load_state_dict(module.backbone.state_dict(), strict=True)
    images = images_of(family)
    with torch.no_grad():
        expected = plain.eval()(family.normalize(images))
        assert torch.allclose(module(images), expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


@every_family
@pytest.mark.parametrize("strategy", ["finetune", "feature_extract"])
def test_a_step_changes_what_the_strategy_trains(family: TimmFamily, strategy: str) -> None:
    module = family.finetuner(strategy)
    randomize_heads(module)
    before = snapshot(module)
    optimizer = SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.train().training_step((images_of(family), torch.tensor([0, 1])), 0).backward()
    optimizer.step()
    changed, new = changed_tensors(before, module), set(module._backbone.head_names)
    assert new <= changed
    assert (changed == new) == (strategy == "feature_extract")
    if strategy == "finetune":  # gradients reach the trunk's first layer with weights
        first = next(n for n, p in module.backbone.named_parameters() if n.endswith("weight") and p.ndim == 4)
        assert first in changed


@every_family
def test_a_checkpoint_gives_the_network_back(family: TimmFamily, tmp_path: Path) -> None:
    module = family.finetuner().eval()
    randomize_heads(module)
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    images = images_of(family)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module(images))
    assert loaded.preprocess == module.preprocess


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few") / "photos"
    classes = ("cat", "dog", "emu")
    return write_images(root, {"train": dict.fromkeys(classes, 2), "val": dict.fromkeys(classes, 1)}, 64)


@every_family
def test_training_on_kept_features_is_training_on_pixels(
    family: TimmFamily, few: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, heads = [], []
    for cache in ("auto", "never"):
        torch.manual_seed(0)
        module = family.finetuner(optimizer=partial(SGD, lr=0.01))
        module.strategy.cache = cache
        data = ImageDataModule(few, batch_size=3, num_workers=0, augment="none", cache_dir=tmp_path)
        runner = trainer(2)
        runner.fit(module, datamodule=data)
        told = " ".join(capsys.readouterr().out.split())
        if cache == "auto":
            boundary = module.family.feature_boundary
            assert (f"before {boundary}, computed in" in told) == family.is_cached
            assert ("computed again in every step" in told) != family.is_cached
        metrics = runner.callback_metrics
        values.append([float(metrics[name]) for name in ("train/loss", "val/loss", "val/acc")])
        heads.append(torch.cat([snapshot(module)[name].flatten() for name in module._backbone.head_names]))
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert torch.allclose(heads[0], heads[1], atol=1e-5 * max(1.0, float(heads[1].abs().max())))


# --- preprocessing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t.c3_in1k",  # 176 pixels, crop share 0.95
        "tf_efficientnet_lite0.in1k",  # 0.5 as mean and deviation
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "regnetx_002.pycls_in1k",
        "inception_v3.tf_adv_in1k",  # 299 pixels
        "vit_base_patch32_clip_224.laion2b_ft_in1k",  # CLIP's mean, crop share 0.9
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",  # crop share 1
    ],
)
def test_preprocessing_is_timms_own(name: str) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    preprocess = default_preprocess(f"timm:{name}")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    picture = small.resize((500, 400), Image.Resampling.BICUBIC)
    expected = timm.data.create_transform(**config)(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    found = preprocess.normalize(preprocess.eval_transform()(pixels).unsqueeze(0))[0]
    assert found.shape == expected.shape == config["input_size"]
    steps = (found - expected).abs() * 255 * torch.tensor(config["std"]).view(3, 1, 1)
    assert float(steps.mean()) < 0.5
    assert float(steps.max()) < 2.5  # two roundings to whole pixel values


def test_every_architecture_of_timm_has_a_preprocessing() -> None:
    names = timm.list_models()
    assert len(names) > 1000
    library = find_library("timm:resnet10t")
    for name in names:
        config: Any = timm.get_pretrained_cfg(name)
        found = library.preprocess(f"timm:{name}", "default")
        expected = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
        assert (found.size, found.mean, found.std) == (expected["input_size"][-1], expected["mean"], expected["std"])
        assert found.interpolation == expected["interpolation"]
