"""Test `finetune.inference.evaluation`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import Classifier, FineTuner
from finetune.checkpoints.metadata import CalibrationRecord, ValidationRecord
from finetune.data.readers import FileReader
from finetune.data.splits import Split
from finetune.inference.eval_data import EvalDataset
from finetune.inference.evaluation import evaluate


class Redness(nn.Module):
    """Has one feature: how red an image is, in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 1, 1, bias=False), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def model() -> Classifier:
    """Logits (0.5, redness) of the classes dark and red."""
    preprocess = {"size": 8, "resize": 8, "mean": 0.0, "std": 1.0}
    module = FineTuner(Redness(), ["dark", "red"], head="fc", preprocess=preprocess)
    backbone: Any = module.backbone
    with torch.no_grad():
        backbone.conv.weight.copy_(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        backbone.fc.weight.copy_(torch.tensor([[0.0], [1.0]]))
        backbone.fc.bias.copy_(torch.tensor([0.5, 0.0]))
    return Classifier(module, device="cpu", precision="32-true")


@pytest.fixture
def images(tmp_path: Path) -> EvalDataset:
    """Of redness 0, 0.8, 1 and 0.6; the first two are labelled dark."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, red in zip(paths, (0, 204, 255, 153), strict=True):
        Image.new("RGB", (8, 8), (red, 0, 0)).save(path)
    split = Split("val", [path.name for path in paths], [0, 0, 1, 1], FileReader([str(path) for path in paths]))
    return EvalDataset(split, "four images", is_holdout=False)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_numbers_are_those_counted_by_hand(batch_size: int, model: Classifier, images: EvalDataset) -> None:
    values, logits = evaluate(model, images, batch_size=batch_size, num_workers=0)
    torch.testing.assert_close(logits, torch.tensor([[0.5, 0.0], [0.5, 0.8], [0.5, 1.0], [0.5, 0.6]]))
    assert values["confusion_matrix"] == [[1, 1], [0, 2]]
    assert (values["images"], values["correct"], values["acc"]) == (4, 3, 0.75)
    assert values["acc_interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    assert values["top_2"] == 1  # there are no five classes
    assert values["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert values["auroc"] == pytest.approx(3 / 4)  # of the four pairs, 0.8 and 0.6 are not in order
    margins = (0.5, 0.5 - 0.8, 1.0 - 0.5, 0.6 - 0.5)  # of the label over the other class
    assert values["loss"] == pytest.approx(sum(math.log(1 + math.exp(-margin)) for margin in margins) / 4)
    assert values["per_class"]["dark"] == {"precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3), "images": 2}
    assert (values["description"], values["as_in_the_run"]) == ("four images", None)


def test_held_out_images_are_compared_with_the_epoch_of_the_run(model: Classifier, images: EvalDataset) -> None:
    def compare(data: EvalDataset, **results: float) -> Any:
        record = ValidationRecord(epoch=3, device="cpu", precision="32-true", processes=2, results=results)
        model.module.metadata = replace(model.module.metadata, validation=record)
        return evaluate(model, data, num_workers=0).values["as_in_the_run"]

    loss = evaluate(model, images, num_workers=0).values["loss"]
    held_out = replace(images, is_holdout=True)
    assert compare(held_out, acc=0.75, loss=loss) == {
        "same": True, "acc": 0.75, "loss": loss, "epoch": 3, "device": "cpu, 32-true, 2 processes",
    }  # fmt: skip
    assert compare(held_out, acc=0.5, loss=loss)["same"] is False
    assert compare(held_out, acc=0.75, loss=loss + 1e-7)["same"] is False  # to the last digit
    assert compare(held_out) is None  # the weights have changed since
    assert compare(images, acc=0.75, loss=loss) is None  # other images
    test_split = replace(held_out, split=replace(images.split, name="test"))
    assert compare(test_split, acc=0.75, loss=loss) is None


def _calibrated(model: Classifier, temperature: float, out_of_fold: bool = False, tta: str = "none") -> Classifier:
    record = CalibrationRecord(temperature, 153, out_of_fold)
    model.module.metadata = replace(model.module.metadata, calibration=record)
    return Classifier(model.module, device="cpu", precision="32-true", tta=tta)


def test_a_temperature_changes_probabilities_and_neither_accuracy_nor_the_loss_of_the_run(
    model: Classifier, images: EvalDataset
) -> None:
    plain, plain_logits = evaluate(model, images, num_workers=0)
    assert plain["calibrated"] == {
        "temperature": 1.0, "fitted_on": None, "in_sample": False,
        "loss": pytest.approx(plain["loss"]), "ece": pytest.approx(plain["ece"]),
    }  # fmt: skip
    values, logits = evaluate(_calibrated(model, 4.0), images, num_workers=0)
    torch.testing.assert_close(logits, plain_logits / 4)
    calibrated = values.pop("calibrated")
    assert values == {name: value for name, value in plain.items() if name != "calibrated"}
    margins = (0.5, 0.5 - 0.8, 1.0 - 0.5, 0.6 - 0.5)
    assert calibrated["loss"] == pytest.approx(sum(math.log(1 + math.exp(-margin / 4)) for margin in margins) / 4)
    assert (calibrated["temperature"], calibrated["fitted_on"]) == (4.0, "153 validation images")


@pytest.mark.parametrize(
    ("held_out", "out_of_fold", "in_sample"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_an_evaluation_on_what_the_temperature_was_fitted_on_says_so(
    held_out: bool, out_of_fold: bool, in_sample: bool, model: Classifier, images: EvalDataset
) -> None:
    data = replace(images, is_holdout=held_out)
    values = evaluate(_calibrated(model, 4.0, out_of_fold), data, num_workers=0).values
    assert values["calibrated"]["in_sample"] is in_sample
    given = Classifier(model.module, device="cpu", precision="32-true", temperature=2)
    found = evaluate(given, data, num_workers=0).values["calibrated"]
    assert (found["temperature"], found["fitted_on"], found["in_sample"]) == (2.0, None, False)


def test_views_are_divided_by_the_temperature_before_they_are_averaged(model: Classifier, images: EvalDataset) -> None:
    """Each image is all of one colour, so that its views are the same, but for one whose halves are of two."""
    halves = Image.new("RGB", (8, 8), (255, 0, 0))
    halves.paste((0, 0, 0), (0, 0, 8, 4))
    halves.save(str(images.split.load.paths[2]))  # type: ignore[index]
    one_view = _calibrated(model, 4.0)
    preprocess = replace(model.module.preprocess, size=4)
    model.module.preprocess = preprocess
    values, logits = evaluate(_calibrated(model, 4.0, tta="five_crop"), images, num_workers=0)
    reds = (0.0, 0.0, 1.0, 1.0, 0.5)  # the corners and the middle of an image that is red below
    of_red = [1 / (1 + math.exp((0.5 - red) / 4)) for red in reds]
    assert logits.softmax(dim=1)[2, 1].item() == pytest.approx(sum(of_red) / 5, abs=1e-6)
    plain = [1 / (1 + math.exp(0.5 - red)) for red in reds]
    others = (0.5, 0.5 - 0.8, 0.6 - 0.5)
    losses = [math.log(1 + math.exp(-margin)) for margin in others] + [-math.log(sum(plain) / 5)]
    assert values["loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)  # without the temperature
    predicted = logits.argmax(dim=1)
    assert values["correct"] == int((predicted == torch.tensor(images.split.labels)).sum())
    assert one_view.most_views == 1
