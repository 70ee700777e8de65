"""Test `finetune.checkpoints.heads`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.checkpoints.heads import StoredHead
from finetune.checkpoints.metadata import DataRecord, SplitRecord, ValidationRecord

HEADS = {"resnet18": ["fc"], "squeezenet1_1": ["classifier.1"], "googlenet": ["fc", "aux1.fc2", "aux2.fc2"]}


def _rows(module: FineTuner, layer: str) -> tuple[Tensor, Tensor]:
    return module.backbone.get_parameter(f"{layer}.weight"), module.backbone.get_parameter(f"{layer}.bias")


def _old(path: Path, model: str = "squeezenet1_1", **options: Any) -> FineTuner:
    """A checkpoint for ants, bees and cats."""
    module = FineTuner(model, ["ants", "bees", "cats"], weights="none", head_init="xavier_normal", **options)
    for name, parameter in module.backbone.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    module.save(path)
    return module


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("way", ["weights", "load"])
def test_classes_that_stay_keep_their_rows_by_name(
    model: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, classes = tmp_path / "old.ckpt", ["dogs", "cats", "ants"]  # rows: new, the third and the first
    old = _old(path, model)
    if way == "weights":
        new = FineTuner(model, classes, weights=str(path), head_init="zero")
        assert new.weights_source.endswith(f"trunk tensors from {path} and 2 classes of its head")
    else:
        new = FineTuner.load_from_checkpoint(path, classes=classes, strict=False, head_init="zero")
    assert new.classes == classes
    for layer in HEADS[model]:
        for found, stored in zip(_rows(new, layer), _rows(old, layer), strict=True):
            assert len(found) == 3
            assert torch.equal(found[1], stored[2])
            assert torch.equal(found[2], stored[0])
            assert found[0].abs().max() == 0
    assert f"Head 2 of 3 classes taken over from {path} by name, new: dogs" in _said(capsys)
    for name, tensor in old.backbone.state_dict().items():  # googlenet's auxiliary branches too, which the rows need
        if not name.startswith(tuple(f"{layer}." for layer in HEADS[model])):
            assert torch.equal(new.backbone.state_dict()[name], tensor), name


def test_logits_of_classes_that_stay_are_the_same(tmp_path: Path) -> None:
    old = _old(tmp_path / "old.ckpt").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    new = FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", classes=["cats", "bees"], strict=False)
    with torch.no_grad():
        expected, found = old(images), new(images)
    assert torch.allclose(found[:, 0], expected[:, 2], atol=1e-6)
    assert torch.allclose(found[:, 1], expected[:, 1], atol=1e-6)


def test_all_classes_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = _old(tmp_path / "old.ckpt")
    new = FineTuner("squeezenet1_1", ["cats", "ants", "bees"], weights=str(tmp_path / "old.ckpt"))
    for found, stored in zip(_rows(new, "classifier.1"), _rows(old, "classifier.1"), strict=True):
        assert torch.equal(found, torch.stack([stored[2], stored[0], stored[1]]))
    assert _said(capsys).endswith("by name")


@pytest.mark.parametrize("way", ["weights", "load"])
def test_the_head_is_new_without_a_word_where_no_class_stays(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.ckpt"
    _old(path)
    if way == "weights":
        new = FineTuner("squeezenet1_1", ["x", "y", "z"], weights=str(path), head_init="zero")
        assert new.weights_source.endswith("(2 of its heads ignored)")
    else:  # as many classes: shapes fit, and rows would be those of others
        new = FineTuner.load_from_checkpoint(path, classes=["x", "y", "z"], strict=False, head_init="zero")
    assert all(values.abs().max() == 0 for values in _rows(new, "classifier.1"))
    assert capsys.readouterr().out == ""


def test_a_head_of_another_shape_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    stored = StoredHead(["a", "b"], {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)}, Path("old.ckpt"))
    for layer in (nn.Linear(5, 2), nn.Linear(4, 2, bias=False), nn.Conv2d(4, 2, 1)):
        before = layer.weight.detach().clone()
        assert stored.take_over(nn.Sequential(layer), ["0"], ["a", "b"]) == 0
        assert torch.equal(layer.weight, before)
    assert capsys.readouterr().out == ""
    assert stored.take_over(nn.Sequential(nn.Linear(4, 2)), ["0"], ["b", "c"]) == 1


def test_many_new_classes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stored = StoredHead(["a", "b"], {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)}, Path("old.ckpt"))
    classes = ["a", *(str(i) for i in range(30))]
    stored.take_over(nn.Sequential(nn.Linear(4, 31)), ["0"], classes)
    assert _said(capsys).endswith(
        "1 of 31 classes taken over from old.ckpt by name, new: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more"
    )


def test_rows_that_would_be_those_of_others_are_refused(tmp_path: Path) -> None:
    _old(tmp_path / "old.ckpt")
    for classes in (["bees", "ants", "cats"], ["ants", "bees"]):
        with pytest.raises(
            ValueError, match=r"it is for the classes .*'ants', 'bees', 'cats'.: with others, strict=False"
        ):
            FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", classes=classes)
    renamed = FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", classes=["Ameisen", "bees", "cats"])
    assert renamed.classes == ["Ameisen", "bees", "cats"]


def test_class_weights_of_other_classes_are_refused(tmp_path: Path) -> None:
    _old(tmp_path / "old.ckpt", class_weights=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="class weights for its own classes: give class_weights="):
        FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", classes=["cats", "dogs", "ants"], strict=False)
    new = FineTuner.load_from_checkpoint(
        tmp_path / "old.ckpt", classes=["cats", "dogs"], strict=False, class_weights=[1.0, 4.0]
    )
    assert new.hparams["class_weights"] == [1.0, 4.0]


def test_what_a_checkpoint_says_of_its_own_classes_is_dropped_with_them(tmp_path: Path) -> None:
    """Held-out labels are positions among the classes: of others, `evaluate` would count wrong images as correct."""
    old = _old(tmp_path / "old.ckpt")
    data = DataRecord("photos", splits={"val": SplitRecord(["a.png"], [2], [9])}, loader="read")
    old.metadata = replace(old.metadata, data=data, validation=ValidationRecord(epoch=3, results={"acc": 0.9}))
    old.save(tmp_path / "old.ckpt")
    same = FineTuner.load_from_checkpoint(tmp_path / "old.ckpt")
    assert same.metadata.data == data
    new = FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", classes=["cats", "dogs", "ants"], strict=False)
    assert new.metadata.data == DataRecord(loader="read")
    assert new.metadata.validation == ValidationRecord()


def test_trunk_tensors_that_stay_new_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = _old(tmp_path / "old.ckpt")
    new = FineTuner.load_from_checkpoint(tmp_path / "old.ckpt", in_channels=1, preprocess=None, strict=False)
    assert torch.equal(_rows(new, "features.3.squeeze")[0], _rows(old, "features.3.squeeze")[0])
    assert torch.equal(_rows(new, "classifier.1")[0], _rows(old, "classifier.1")[0])
    assert "Note 1 trunk tensors have another shape in" in (said := _said(capsys))
    assert said.endswith("stay new: backbone.features.0.weight.")
