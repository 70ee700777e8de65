"""Test `finetune.inference.soup`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune import evaluate, load, train
from finetune import soup as command
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.data.datamodule import ImageDataModule
from finetune.inference import soup
from finetune.inference.evaluation import EvaluationResult
from finetune.inference.soup import greedy_soup
from tests.helpers import TINY, save_small_checkpoint


def _state(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The best checkpoints of three seeds of the same head on the same images."""
    folder = tmp_path_factory.mktemp("soup")
    for seed in range(3):
        words = [
            "model=resnet18",
            "trainer.max_epochs=1",
            "trainer.precision=32-true",
            "optimizer.lr=0.1",
            f"seed={seed}",
        ]
        train.main([*TINY, *words, "data.split_seed=0", f"data.root={photos}", f"hydra.run.dir={folder / str(seed)}"])
    return [folder / str(seed) / "checkpoints" / "best.ckpt" for seed in range(3)]


def _scored(monkeypatch: pytest.MonkeyPatch, score: Callable[[Tensor], float]) -> list[Tensor]:
    """Let the accuracy be a function of the bias of the head; return the biases that were evaluated."""
    seen: list[Tensor] = []

    def evaluate(model: Any, images: Any) -> EvaluationResult:
        seen.append(model.module.head.bias.detach().cpu().clone())
        return EvaluationResult({"acc": score(seen[-1]), "loss": 0.0, "f1": 0.0}, torch.zeros(12, 3))

    monkeypatch.setattr(soup, "_evaluate", evaluate)
    return seen


def test_weights_are_the_mean_of_what_helps_from_the_best_on(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is the nearness to the mean of the first and the last; the second one, tried last, takes away from it."""
    biases = [_state(path)["backbone.fc.bias"] for path in runs]
    target = (biases[0] + biases[2]) / 2
    seen = _scored(monkeypatch, lambda bias: -float((bias - target).norm()))
    found = greedy_soup(runs, tmp_path / "soup.ckpt", device="cpu")
    assert {*found.ingredients} == {runs[0], runs[2]}
    assert found.single_acc == [pytest.approx(-float((bias - target).norm())) for bias in biases]
    written, a, b = _state(tmp_path / "soup.ckpt"), _state(runs[0]), _state(runs[2])
    for name, value in written.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, ((a[name].double() + b[name].double()) / 2).to(value.dtype))
        else:
            assert torch.equal(value, _state(found.ingredients[0])[name])
    assert len(seen) == 3 + 2 + 1  # each, two that are tried, and what is saved


def test_what_takes_away_is_left_out(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = _state(runs[1])["backbone.fc.bias"]
    _scored(monkeypatch, lambda bias: -float((bias - best).norm()))
    found = greedy_soup(runs, tmp_path / "soup.ckpt", device="cpu")
    assert found.ingredients == [runs[1]]
    assert all(torch.equal(value, _state(runs[1])[name]) for name, value in _state(tmp_path / "soup.ckpt").items())


def test_a_soup_loads_as_any_other_and_says_how_good_it_is(
    runs: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = greedy_soup(runs, tmp_path / "soup.ckpt", device="cpu")
    model = load(tmp_path / "soup.ckpt", device="cpu")
    images = sorted((photos / "val").rglob("*.png"))
    predicted = model.predict(images)
    correct = sum(p.label == image.parent.name for p, image in zip(predicted, images, strict=True))
    assert found.acc == pytest.approx(correct / 12)
    assert found.acc >= max(found.single_acc)
    evaluate.main([f"ckpt={tmp_path / 'soup.ckpt'}", "device=cpu", "report=false", f"hydra.run.dir={tmp_path / 'out'}"])
    assert "when the soup was made: the same" in capsys.readouterr().out
    validation = model.module.metadata.validation
    assert (validation.results["acc"], validation.epoch) == (found.acc, None)


def test_the_command_makes_a_soup_of_the_runs_below_a_folder(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main([str(runs[0].parents[2]), f"--out={tmp_path / 'soup.ckpt'}", "--device=cpu"])
    out = " ".join(capsys.readouterr().out.split())
    acc = load(tmp_path / "soup.ckpt", device="cpu").module.metadata.validation.results["acc"]
    assert " of 3 runs, the best first:" in out
    assert f"val/acc {acc:.4f}, of the best run alone" in out
    with pytest.raises(SystemExit) as stop:
        command.main([str(runs[0].parents[2]), f"--out={tmp_path / 'soup.ckpt'}"])
    assert stop.value.code == 2
    assert "is there already; give another --out" in capsys.readouterr().err


def test_runs_of_other_images_or_another_model_are_refused(runs: list[Path], tmp_path: Path) -> None:
    save_small_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"cannot be averaged: they differ in model, classes, .*images, tensors"):
        greedy_soup([runs[0], tmp_path / "other.ckpt"], tmp_path / "soup.ckpt")
    with pytest.raises(ValueError, match="two checkpoints or more, got 1"):
        greedy_soup(runs[:1], tmp_path / "soup.ckpt")


def test_images_that_were_not_held_out_do_not_choose(
    runs: list[Path], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    others = make_images({"": {"cat": 3, "dog": 3, "emu": 3}})
    with pytest.raises(ValueError, match=r"chosen on the images that its runs held out, and those are not found at "):
        greedy_soup(runs, tmp_path / "soup.ckpt", "cpu", ImageDataModule(others, num_workers=0))
    assert not (tmp_path / "soup.ckpt").exists()


def test_a_soup_has_a_temperature_of_its_own(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of its first ingredient, whose logits were others."""
    given: list[tuple[Tensor, Tensor]] = []

    def calibrate(logits: Tensor, labels: Tensor) -> CalibrationRecord:
        given.append((logits, labels))
        return CalibrationRecord(temperature=1.5, images=len(labels))

    monkeypatch.setattr(soup, "calibrate", calibrate)
    greedy_soup(runs, tmp_path / "soup.ckpt", device="cpu")
    ((logits, labels),) = given
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert load(tmp_path / "soup.ckpt").temperature == 1.5
    plain = load(tmp_path / "soup.ckpt", device="cpu", temperature=1)
    assert plain.module.metadata.calibration.images == 12
    assert logits.shape == (12, 3)
