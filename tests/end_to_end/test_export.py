"""Run `finetune.export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from finetune import FineTuner, export, load
from finetune.exporting import formats
from finetune.exporting.formats import EXPORTERS
from tests.end_to_end.helpers import Command
from tests.helpers import REAL_TRUNKS


def report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return values


@pytest.fixture(scope="module")
def exports(best_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of an export in each format; read only."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in EXPORTERS:
        export.main([best_checkpoint, f"format={kind}", f"hydra.run.dir={folder}/{kind}"])
    return {kind: folder / kind for kind in EXPORTERS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTERS)
def test_export_is_loaded_back_and_compared_on_the_runs_images(kind: str, exports: dict[str, Path]) -> None:
    folder = exports[kind]
    values = report(folder)
    assert values["passed"] is True
    assert values["max_abs_diff"] < 1e-5
    assert values["agreement"] == 1
    assert values["acc"] == values["model_acc"]
    assert values["compared_on"] == "12 of the run's val images"
    assert (folder / values["file"]).stat().st_size == values["bytes"]
    metadata = json.loads((folder / "model.json").read_text())
    assert metadata["classes"] == ["cat", "dog", "emu"]
    assert metadata["preprocess"]["size"] == 32
    assert metadata["load"]


@pytest.mark.slow
def test_onnx_has_its_classes_and_preprocessing_inside(exports: dict[str, Path], trained: Path, photos: Path) -> None:
    """They are enough for a program that resizes itself; to the last digit it is done in `docs/exports.md`."""
    folder = exports["onnx"]
    assert sorted(p.name for p in folder.glob("model*")) == ["model.json", "model.onnx"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    path, p = photos / "val" / "dog" / "00.png", metadata["preprocess"]
    image = Image.open(path).convert("RGB")
    scale = p["resize"] / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - p["size"]) // 2 for side in image.size)
    image = image.crop((left, top, left + p["size"], top + p["size"]))
    pixels = np.asarray(image).transpose(2, 0, 1)[None]
    found = session.run(None, {"images": pixels})[0][0]
    expected = load(trained / "checkpoints" / "best.ckpt", device="cpu", precision="32-true").predict(path)
    assert metadata["classes"][int(found.argmax())] == expected.label
    assert float(found.max()) == pytest.approx(expected.confidence, abs=1e-3)


@pytest.mark.slow
def test_safetensors_carry_the_metadata_and_load_as_weights(exports: dict[str, Path]) -> None:
    from safetensors import safe_open

    folder = exports["safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["cat", "dog", "emu"]
    again = FineTuner("resnet18", classes=2, weights=str(folder / "model.safetensors"))
    assert again.weights_source.startswith("120 trunk tensors")


def test_export_that_differs_is_refused(
    best_checkpoint: str, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(module: FineTuner, folder: Path) -> formats.Exported:
        exported = formats.export_state_dict(module, folder)
        return exported._replace(run=lambda images: exported.run(images).flip(1))

    monkeypatch.setitem(EXPORTERS, "state_dict", wrong)
    folder, code = command("export", best_checkpoint, "format=state_dict")
    assert code == 2
    assert "The export differs by" in capsys.readouterr().err
    assert not (folder / "model.pth").exists()
    assert (folder / "model.pth.rejected").exists()
    assert report(folder)["passed"] is False


def test_export_compares_on_a_source_or_says_that_it_had_none(
    best_checkpoint: str, command: Command, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = command("export", best_checkpoint, "format=state_dict", f"source={photos}/train", "images=5")
    assert report(folder)["compared_on"] == f"5 images of {photos}/train"
    FineTuner("squeezenet1_1", classes=2, weights="none", preprocess={"size": 32}).save(tmp_path / "bare.ckpt")
    folder, code = command("export", f"ckpt={tmp_path}/bare.ckpt", "format=state_dict")
    assert code == 0
    assert "images of noise" in report(folder)["compared_on"]
    _, code = command("export", best_checkpoint, "format=state_dict", "source=none")
    assert code == 2
    assert "source=none: there is no such file" in capsys.readouterr().err


def test_export_without_its_packages_names_the_extra(
    best_checkpoint: str, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    _, code = command("export", best_checkpoint)
    assert code == 2
    assert "needs onnxscript: pip install 'finetune-lightning[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["format=onx"], "no format 'onx'. The nearest is onnx"),
        (["format=state_dict", "quantize=int8"], "quantize=int8 is for format=onnx"),
        (["quantize=int4"], "no quantize 'int4'"),
        (["tolerance=-1"], "tolerance must be a number from 0 on"),
        (["resize=sharp"], "no resize 'sharp'. The nearest is shared"),
        (["resize=shared", "format=state_dict"], "resize=shared is for format=onnx and torch_export"),
        (["resize=shared", "quantize=int8"], "leave resize=shared out, or quantize"),
    ],
)
def test_export_checks_its_choices(
    argv: list[str], message: str, best_checkpoint: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", best_checkpoint, *argv)[1] == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_graph_that_resizes_is_compared_with_the_model_on_decoded_images(
    best_checkpoint: str, command: Command, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i, size in enumerate([(50, 40), (31, 90)]):
        with Image.open(photos / "val" / "cat" / f"0{i}.png") as image:
            image.resize(size).save(mixed / f"{i}.png")
    (mixed / "2.jpg").write_bytes(b"no image")
    for source, compared_on in (
        ([], "12 of the run's val images"),
        ([f"source={mixed}"], f"2 images of {mixed} (1 cannot be read)"),
    ):
        folder, code = command("export", best_checkpoint, "format=torch_export", "resize=shared", *source)
        assert code == 0
        values = report(folder)
        assert (values["resize"], values["compared_on"]) == ("shared", compared_on)
        assert values["max_abs_diff"] < 1e-5
    assert "Resize    in the graph" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_graph_that_resizes_is_compared_on_noise_where_there_are_no_images(
    channels: int, command: Command, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"in_channels": channels, "preprocess": {"size": 32, "resize": 40}}
    FineTuner("squeezenet1_1", classes=2, weights="none", **options).save(tmp_path / "bare.ckpt")
    folder, code = command("export", f"ckpt={tmp_path}/bare.ckpt", "format=torch_export", "resize=shared")
    assert code == 0
    assert "images of noise" in report(folder)["compared_on"]
    assert report(folder)["max_abs_diff"] < 1e-5


@pytest.mark.slow
def test_int8_is_smaller_and_measured(best_checkpoint: str, command: Command, photos: Path) -> None:
    folder, code = command("export", best_checkpoint, "quantize=int8", f"source={photos}")
    assert code == 0
    found = report(folder)["int8"]
    assert found["images"] == 18
    assert found["bytes"] < 0.5 * report(folder)["bytes"]
    assert found["agreement"] > 0.8
    session = onnxruntime.InferenceSession(folder / "model.int8.onnx", providers=["CPUExecutionProvider"])
    assert "model.int8.onnx" in session.get_modelmeta().custom_metadata_map["load"]
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    assert session.run(None, {"images": images})[0].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_int8_says_how_many_images_it_takes_and_why_there_are_fewer(
    best_checkpoint: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, reason in (
        (
            [],
            "takes 16 images or more, half of them to compare on, and there are 12 of the run's val images: source=FOLDER",
        ),
        (["images=9"], "there are 9 of the run's val images: images=9 allows no more"),
        (["data_is_elsewhere"], "there are 8 images of noise, for the run's own are not at hand: give source=FOLDER."),
    ):
        ckpt = best_checkpoint
        if argv == ["data_is_elsewhere"]:
            FineTuner("squeezenet1_1", classes=2, weights="none", preprocess={"size": 32}).save(tmp_path / "bare.ckpt")
            ckpt, argv = f"ckpt={tmp_path}/bare.ckpt", []
        _, code = command("export", ckpt, "quantize=int8", *argv)
        assert code == 2
        assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("model", REAL_TRUNKS)
def test_int8_holds_up_on_real_images(model: str, shared: Path, command: Command) -> None:
    weights, root = shared / REAL_TRUNKS[model], shared / "data/hymenoptera_data"
    argv = [f"model={model}", f"model.weights={weights}", "trainer.max_epochs=2", "data.batch_size=8"]
    run, _ = command("train", "data=imagefolder", f"data.root={root}", *argv)
    folder, code = command("export", f"ckpt={run}/checkpoints/best.ckpt", "quantize=int8", "images=153")
    assert code == 0
    found = report(folder)["int8"]
    assert found["acc"] >= found["model_acc"] - 0.04
    assert found["agreement"] >= 0.95
