"""Test `finetune.inference.classifier`."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import Classifier, FineTuner, Prediction, load
from finetune.checkpoints.metadata import CalibrationRecord, DataRecord
from finetune.data.readers import FileReader, decoded_with
from finetune.data.splits import Split
from finetune.images.decode import BadImageError, Decoding
from finetune.inference.classifier import TTA


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    module = FineTuner("squeezenet1_1", classes=["ants", "bees", "cats"], weights="none", preprocess={"size": 64})
    return Classifier(module, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)


def test_predict_is_the_same_however_a_picture_is_given(model: Classifier, pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    ways: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, tensor]
    expected = model.predict(tmp_path / "a.png")
    assert isinstance(expected, Prediction)
    assert [model.predict(way) for way in ways] == [expected] * len(ways)
    for prediction in model.predict(ways):
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    for batch in (np.stack([pixels, pixels]), tensor.expand(2, -1, -1, -1)):
        both: Any = model.predict(batch)
        assert [p.label for p in both] == [expected.label] * 2


def test_prediction_is_sorted_and_sums_to_one(model: Classifier, pixels: np.ndarray) -> None:
    prediction = model.predict(pixels)
    values = list(prediction.probabilities.values())
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    assert (prediction.label, prediction.confidence) == next(iter(prediction.probabilities.items()))
    assert set(prediction.probabilities) == set(model.classes)
    assert pickle.loads(pickle.dumps(prediction)) == prediction  # noqa: S301


def test_predict_of_many_goes_in_batches_and_in_order(model: Classifier) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (70, 64, 64, 3)).astype(np.uint8)
    together = model.probabilities(pictures)
    one_by_one = torch.cat([model.probabilities(p) for p in pictures[::23]])
    assert together.shape == (70, 3)
    assert torch.allclose(together[::23], one_by_one, atol=1e-6)
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
    ],
)
def test_pixels_of_another_kind_are_refused(model: Classifier, picture: Any) -> None:
    with pytest.raises(ValueError, match=r"Pixels are uint8 .*got (torch\.)?(uint8|float)"):
        model.predict(picture)


def test_picture_of_another_type_or_damaged_is_refused(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"An image is a file, .* got a int"):
        model.predict([3])  # type: ignore[list-item]
    (tmp_path / "bad.jpg").write_bytes(b"no")
    with pytest.raises(BadImageError, match=r"bad\.jpg: is not an image"):
        model.predict(tmp_path / "bad.jpg")
    with pytest.raises(BadImageError, match=r"none\.jpg: there is no such file"):
        model.predict([tmp_path / "none.jpg"])


def test_grey_and_transparent_arrays_are_pictures(model: Classifier, pixels: np.ndarray) -> None:
    assert model.predict(pixels[..., 0]) == model.predict(np.repeat(pixels[..., :1], 3, axis=2))
    opaque = np.concatenate([pixels, np.full((90, 70, 1), 255, np.uint8)], axis=2)
    assert model.predict(opaque) == model.predict(pixels)


def test_features_are_what_enters_the_head(model: Classifier, pixels: np.ndarray) -> None:
    found = model.features([pixels, pixels])
    assert found.shape == (2, 512)
    batch = torch.stack([model.transform(torch.from_numpy(pixels).permute(2, 0, 1))])
    with torch.no_grad():
        assert torch.allclose(found[:1], model.module.features(batch), atol=1e-5)


def test_features_of_a_linear_head_give_the_logits() -> None:
    module = FineTuner("resnet18", classes=2, weights="none").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features = module.features(images)
        assert features.shape == (2, 512)
        assert torch.allclose(module.head(features), module(images), atol=1e-5)


@pytest.mark.parametrize("tta", TTA)
def test_tta_is_the_mean_of_the_views_probabilities(tta: str, model: Classifier, pixels: np.ndarray) -> None:
    averaged = Classifier(model.module, device="cpu", tta=tta)
    views = averaged.transform(torch.from_numpy(pixels).permute(2, 0, 1))
    views = views[None] if views.ndim == 3 else views
    assert len(views) == {"none": 1, "flip": 2, "five_crop": 5}[tta]
    expected = model.logits(views).softmax(dim=1).mean(dim=0)
    assert torch.allclose(averaged.probabilities(pixels)[0], expected, atol=1e-6)
    assert averaged.features(pixels).shape == (1, 512)


def test_classifier_names_what_it_does_not_know(model: Classifier) -> None:
    with pytest.raises(ValueError, match=r"no tta 'flap'.*flip"):
        Classifier(model.module, device="cpu", tta="flap")
    with pytest.raises(ValueError, match="no precision '16'"):
        Classifier(model.module, device="cpu", precision="16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_classifier_says_that_a_device_is_not_there(model: Classifier) -> None:
    with pytest.raises(ValueError, match="device=cuda cannot be used here"):
        Classifier(model.module, device="cuda")


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_precisions_agree(precision: str, model: Classifier, pixels: np.ndarray, tmp_path: Path) -> None:
    model.module.save(tmp_path / "model.ckpt")
    other = load(tmp_path / "model.ckpt", device="cpu", precision=precision)
    assert other.precision == precision
    assert torch.allclose(other.probabilities(pixels), model.probabilities(pixels), atol=0.02)


def test_evaluation_mode_from_the_start(model: Classifier, pixels: np.ndarray) -> None:
    assert not any(m.training for m in model.module.modules())
    assert model.predict(pixels) == model.predict(pixels)  # no dropout


def test_pil_pictures_are_turned_upright_as_files_are(model: Classifier, pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert model.predict(Image.open(tmp_path / "turned.png")) == model.predict(tmp_path / "turned.png")
    assert model.predict(tmp_path / "turned.png") == model.predict(np.rot90(pixels, 3).copy())


@pytest.mark.slow
def test_evaluate_with_views_in_worker_processes_that_are_spawned(trained: Path) -> None:
    model = load(trained / "checkpoints" / "best.ckpt", device="cpu", tta="five_crop")
    assert pickle.loads(pickle.dumps(model.transform)) == model.transform  # noqa: S301


# --- channels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", TTA)
def test_a_grey_network_sees_luminance_however_a_picture_is_given(tta: str, pixels: np.ndarray, tmp_path: Path) -> None:
    module = FineTuner("squeezenet1_1", classes=2, weights="none", preprocess={"size": 64}, in_channels=1)
    model = Classifier(module, device="cpu", tta=tta)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = np.array(Image.fromarray(pixels).convert("L"))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    ways: list[Any] = [
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        tensor,
        grey,
        torch.from_numpy(grey).unsqueeze(0),
    ]
    assert len({model.predict(way).confidence for way in ways}) == 1
    assert model.predict(255 - pixels).confidence != model.predict(pixels).confidence


@pytest.mark.parametrize("tta", TTA)
def test_floats_are_normalised_once_with_every_tta(tta: str) -> None:
    module = FineTuner("squeezenet1_1", classes=2, weights="none", preprocess={"size": 64}, in_channels=2)
    model = Classifier(module, device="cpu", tta=tta)
    pixels = torch.randint(0, 256, (2, 80, 90), dtype=torch.uint8)
    assert torch.allclose(model.probabilities(pixels), model.probabilities(pixels / 255), atol=1e-3)


def test_a_model_trained_on_what_a_loader_read_asks_for_it(pixels: np.ndarray, tmp_path: Path) -> None:
    module = FineTuner("squeezenet1_1", classes=2, weights="none", preprocess={"size": 64})
    module.metadata = replace(module.metadata, data=DataRecord(loader="read_tiff"))
    module.save(tmp_path / "model.ckpt")
    model = load(tmp_path / "model.ckpt", device="cpu")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"images that the loader read_tiff read \(3 channels\).*Got a PosixPath"):
        model.predict(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"Pixels are .*in 0..1; it is uint16 \(3, 8, 8\)"):
        model.predict(torch.zeros(3, 8, 8, dtype=torch.uint16))
    with pytest.raises(ValueError, match="images that the loader read_tiff read"):
        model.batches(Split("val", ["a.png"], [0], FileReader([str(tmp_path / "a.png")])))
    assert model.predict(torch.rand(3, 80, 80)).label in ("0", "1")


def test_images_as_large_as_the_run_took_are_read_without_asking(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels).save(tmp_path / "large.png")
    split = Split("val", ["large.png"], [0], FileReader([str(tmp_path / "large.png")], Decoding(max_pixels=10)))
    monkeypatch.setattr("finetune.inference.classifier.MAX_PIXELS", 90 * 70 - 1)
    module = FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none", preprocess={"size": 32})
    with pytest.raises(BadImageError, match=r"give data\.max_pixels=6300"):
        list(Classifier(module, device="cpu").batches(split, num_workers=0))
    scanned = replace(split, load=decoded_with(split.load, Decoding(max_pixels=6300)))  # with a limit of its own
    assert len(list(Classifier(module, device="cpu").batches(scanned, num_workers=0))) == 1
    module.metadata = replace(module.metadata, data=DataRecord(max_pixels=6300))
    module.save(tmp_path / "model.ckpt")
    for limit in (None, 10):
        (images, _), *_ = load(tmp_path / "model.ckpt", device="cpu", max_pixels=limit).batches(split, num_workers=0)
        assert images.shape == (1, 3, 32, 32)


@pytest.fixture
def calibrated(model: Classifier, tmp_path: Path) -> Path:
    """A file of the model, with a temperature of 3."""
    record = CalibrationRecord(3.0, 153)
    before = model.module.metadata
    model.module.metadata = replace(before, calibration=record)
    model.module.save(tmp_path / "calibrated.ckpt")
    model.module.metadata = before
    return tmp_path / "calibrated.ckpt"


def test_probabilities_are_at_the_temperature_of_the_checkpoint(
    model: Classifier, pixels: np.ndarray, calibrated: Path
) -> None:
    found = load(calibrated, device="cpu")
    batch = torch.stack([found.transform(torch.from_numpy(pixels).permute(2, 0, 1))])
    logits = model.logits(batch)[0].double()
    powers = [math.exp(value / 3) for value in logits.tolist()]
    assert found.probabilities(pixels)[0].tolist() == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)
    one, other = found.predict(pixels), model.predict(pixels)
    assert list(one.probabilities) == list(other.probabilities)  # in the same order
    assert one.confidence < other.confidence
    assert load(calibrated, device="cpu", temperature=1).predict(pixels) == other
    half = load(calibrated, device="cpu", temperature=0.5).probabilities(pixels)[0]
    powers = [math.exp(value * 2) for value in logits.tolist()]
    assert half.tolist() == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)


def test_the_probabilities_of_views_are_each_at_the_temperature(pixels: np.ndarray, calibrated: Path) -> None:
    found = load(calibrated, device="cpu", tta="flip")
    batch = torch.stack([found.transform(torch.from_numpy(pixels).permute(2, 0, 1))])
    both = found.view_logits(batch)
    assert both.shape == (1, 2, 3)
    expected = [(both[0, view].double() / 3).softmax(dim=0) for view in range(2)]
    torch.testing.assert_close(found.probabilities(pixels)[0].double(), sum(expected) / 2, atol=1e-6, rtol=0)
    assert "3, fitted on 153 validation images, of each view before they are averaged" in found.describe_temperature()


def test_a_model_without_a_temperature_says_nothing_of_it(model: Classifier, calibrated: Path) -> None:
    assert (model.temperature, model.describe_temperature()) == (1.0, "")
    assert load(calibrated, device="cpu", temperature=2).describe_temperature() == ""


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "auto", True, None])
def test_a_temperature_that_is_none_is_refused(model: Classifier, temperature: Any) -> None:
    with pytest.raises(
        ValueError, match="temperature is a number above 0, or checkpoint: what the checkpoint says; got"
    ):
        Classifier(model.module, device="cpu", temperature=temperature)


def test_other_classes_have_no_temperature(calibrated: Path) -> None:
    assert load(calibrated, device="cpu", classes=["a", "b", "c"]).temperature == 3  # other names for the same
    found = load(calibrated, device="cpu", classes=["ants", "dogs"], strict=False)
    assert found.temperature == 1


def test_mirrored_views_of_a_model_whose_mirror_images_are_of_other_classes_are_warned_of() -> None:
    module = FineTuner("squeezenet1_1", classes=["left", "right"], weights="none")
    for flip, says in ((None, False), (True, False), (False, True)):
        module.metadata = replace(module.metadata, data=replace(module.metadata.data, flip=flip))
        assert ("data.flip" in Classifier(module, "cpu", tta="flip").describe_flip()) is says
        assert Classifier(module, "cpu").describe_flip() == ""
