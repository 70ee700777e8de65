"""Test `finetune.exporting.formats`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune import FineTuner
from finetune.checkpoints.metadata import CalibrationRecord, DataRecord
from finetune.exporting import formats
from finetune.exporting.formats import EXPORTERS
from finetune.models.specs import FAMILIES

SMALL = {family.names[0] for family in FAMILIES.values()}
"""A model of every family."""


@pytest.mark.parametrize(
    "model",
    sorted(SMALL),
)
@pytest.mark.slow
def test_onnx_of_every_family_at_every_batch(model: str, tmp_path: Path) -> None:
    module = FineTuner(model, classes=3, weights="none").eval()
    size = module.preprocess.size
    exported = formats.export_onnx(module, tmp_path)
    graph = formats.Graph(module).eval()
    for n in (1, 2, 5):
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.allclose(exported.run(images), graph(images), atol=1e-4)


@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
@pytest.mark.parametrize("model", ["mnasnet0_5", "squeezenet1_1"])
def test_weights_are_loaded_by_the_recipe_and_as_weights_of_a_run(model: str, kind: str, tmp_path: Path) -> None:
    module = FineTuner(model, classes=3, weights="none").eval()
    path = EXPORTERS[kind](module, tmp_path).path
    names: dict[str, Any] = {}
    recipe = json.loads((tmp_path / "model.json").read_text())["load"].replace(f"'{path.name}'", repr(str(path)))
    exec(f"import torch, torchvision, safetensors.torch\n{recipe}", names)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(names["network"](module.preprocess.normalize(images)), module(images), atol=1e-5)
    again = FineTuner(model, classes=2, weights=str(path))
    first = next(iter(module.backbone.state_dict()))
    assert torch.equal(again.backbone.state_dict()[first], module.backbone.state_dict()[first])


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=[pytest.mark.slow] if m != "googlenet" else []) for m in sorted(SMALL)],
)
def test_state_dict_loads_into_torchvisions_network_as_its_recipe_says(model: str, tmp_path: Path) -> None:
    module = FineTuner(model, classes=3, weights="none", transform_input=True).eval()
    exported = formats.export_state_dict(module, tmp_path)
    tensors = torch.load(tmp_path / "model.pth", weights_only=True)
    metadata = json.loads((tmp_path / "model.json").read_text())
    assert f"get_model('{model}', num_classes=3" in metadata["load"]
    assert ("transform_input=True" in metadata["load"]) == (model in ("googlenet", "inception_v3"))
    options = {"init_weights": False, "transform_input": True} if "transform_input" in metadata["load"] else {}
    network = torchvision.models.get_model(model, num_classes=3, **options)
    network.load_state_dict(tensors, strict=True)
    size = module.preprocess.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(network.eval()(module.preprocess.normalize(images)), expected, atol=1e-5)
        assert torch.allclose(exported.run(images), expected.softmax(dim=1), atol=1e-5)


@pytest.mark.slow
def test_state_dict_of_a_transformer_of_another_size_says_so(tmp_path: Path) -> None:
    module = FineTuner("vit_b_32", classes=2, weights="none", preprocess={"size": 64}).eval()
    formats.export_state_dict(module, tmp_path)
    assert "image_size=64" in json.loads((tmp_path / "model.json").read_text())["load"]


def test_network_of_ones_own_is_exported(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9))
    module = FineTuner(network, classes=2, head="3").eval()
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    for name in ("state_dict", "torch_export"):
        exported = EXPORTERS[name](module, tmp_path)
        with torch.no_grad():
            assert torch.allclose(exported.run(images), module(images).softmax(dim=1), atol=1e-6)
    inside = {"metadata.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=inside)
    assert json.loads(inside["metadata.json"])["classes"] == ["0", "1"]


@pytest.mark.parametrize("channels", [1, 4])
def test_recipe_of_other_channels_builds_the_network(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = FineTuner("resnet18", classes=3, weights="none", in_channels=channels).eval()
    module.metadata = replace(module.metadata, data=DataRecord(loader="read_tiff"))
    exported = formats.export_state_dict(module, tmp_path)
    assert "as the loader read_tiff of the training" in json.loads((tmp_path / "model.json").read_text())["input"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"torch": torch, "torchvision": torchvision}
    exec(json.loads((tmp_path / "model.json").read_text())["load"], names)
    images = torch.randint(0, 256, (2, channels, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(names["network"](module.preprocess.normalize(images)), expected, atol=1e-5)
        assert torch.allclose(exported.run(images), expected.softmax(dim=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
def test_weights_with_a_head_of_several_layers_are_exported_and_compared(kind: str, tmp_path: Path) -> None:
    head = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 3))
    module = FineTuner("resnet18", classes=3, weights="none", head=head).eval()
    exported = EXPORTERS[kind](module, tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(exported.run(images), module(images).softmax(dim=1))
    assert "the head of your own: Sequential" in (tmp_path / "model.json").read_text()


# --- timm --------------------------------------------------------------------------------------------------------

TIMM = [
    ("test_resnet", 64, {}), ("test_convnext2", 64, {}), ("test_efficientnet", 64, {"in_chans": 1}),
    ("test_vit", 64, {"global_pool": "avg"}), ("deit_tiny_distilled_patch16_224", 64, {}),
    ("mobilenetv4_conv_small_035", 64, {"drop_path_rate": 0.1}),
]  # fmt: skip


def timm_module(name: str, size: int, options: dict[str, Any]) -> FineTuner:
    pytest.importorskip("timm")
    module = FineTuner(f"timm:{name}", 3, weights="none", preprocess={"size": size}, model_options=options)
    with torch.no_grad():  # heads of zeros hide what enters them
        for head in (n for n, p in module.backbone.named_parameters() if p.shape[:1] == (3,)):
            module.backbone.get_parameter(head).normal_(std=0.1)
    return module.eval()


@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
@pytest.mark.parametrize(("name", "size", "options"), TIMM, ids=[name for name, _, _ in TIMM])
def test_weights_of_timms_networks_are_loaded_by_the_recipe(
    name: str, size: int, options: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = timm_module(name, size, options)
    exported = EXPORTERS[kind](module, tmp_path)
    recipe = json.loads((tmp_path / "model.json").read_text())["load"]
    assert recipe.startswith(f"network = timm.create_model('{name}', num_classes=3")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(f"import torch, timm, safetensors.torch\n{recipe}", names)
    images = torch.randint(0, 256, (2, module.preprocess.channels, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(images)
        assert torch.allclose(names["network"](module.preprocess.normalize(images)), expected, atol=1e-5)
        assert torch.allclose(exported.run(images), expected.softmax(dim=1), atol=1e-5)
    again = FineTuner(
        module.model_name, 2, weights=str(exported.path), preprocess={"size": size}, model_options=options
    )
    first = next(iter(module.backbone.state_dict()))
    assert torch.equal(again.backbone.state_dict()[first], module.backbone.state_dict()[first])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "options"), TIMM, ids=[name for name, _, _ in TIMM])
def test_graphs_of_timms_networks_predict_the_same_at_every_batch(
    name: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    module = timm_module(name, size, options)
    graphs = [formats.export_onnx(module, tmp_path), formats.export_torch(module, tmp_path)]
    for n in (1, 2, 5):
        images = torch.randint(0, 256, (n, module.preprocess.channels, size, size), dtype=torch.uint8)
        with torch.no_grad():
            expected = module(images).softmax(dim=1)
            for exported in graphs:
                assert torch.allclose(exported.run(images), expected, atol=1e-4), exported.path


def _calibrated() -> FineTuner:
    """A small network with a temperature of 2.5."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    module = FineTuner(network, classes=3, head="3", preprocess={"size": 32}).eval()
    module.metadata = replace(module.metadata, calibration=CalibrationRecord(2.5, 153))
    return module


@pytest.mark.parametrize("kind", EXPORTERS)
def test_exports_are_at_the_temperature_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    module = _calibrated()
    exported = EXPORTERS[kind](module, tmp_path)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        logits = module(images)
        torch.testing.assert_close(exported.run(images), (logits / 2.5).softmax(dim=1), atol=1e-5, rtol=0)
    metadata = json.loads((tmp_path / "model.json").read_text())
    if kind in ("onnx", "torch_export"):  # inside, so that a program need not know
        assert metadata["output"] == "probabilities (N, 3): softmax(logits / 2.5)"
        assert "temperature" not in metadata
    else:
        assert metadata["output"] == "logits (N, 3); probabilities are softmax(logits / 2.5)"
        assert metadata["temperature"] == 2.5


def test_8_bits_keep_the_temperature(tmp_path: Path) -> None:
    module = _calibrated()
    exported = formats.export_onnx(module, tmp_path)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    found = formats.quantize_int8(exported, images).run(images)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, exported.run(images), atol=0.05, rtol=0)
