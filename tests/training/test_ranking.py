"""Test `finetune.training.ranking`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from finetune import FineTuner, ImageDataModule
from finetune.data import grouping
from finetune.models.candidates import Candidate
from finetune.training import feature_store, ranking
from finetune.training.extraction import extraction_spec
from finetune.training.ranking import RankedBackbone
from tests.helpers import COLOURS, SMALLEST_OF_FAMILY, write_images


def place(model: str, root: Path, trainer: Trainer, size: int = 32) -> tuple[FineTuner, ImageDataModule]:
    data = ImageDataModule(root, num_workers=0, image_size=size, cache_dir=root.parent / "cache").prepare()
    module = FineTuner(model, data.classes, weights="none", preprocess={"size": size})
    return ranking.place(module, data, trainer), data


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_images(tmp_path / "few", {"train": dict.fromkeys(COLOURS, 3), "val": dict.fromkeys(COLOURS, 1)})


@pytest.mark.parametrize("model", ["squeezenet1_1", "mobilenet_v3_small", "vgg11", "resnet18"])
def test_head_inputs_from_kept_features_are_what_enters_the_head(
    model: str, few: Path, trainer: Callable[..., Trainer]
) -> None:
    """Of maps, of rows, and of VGG's boundary, after which a layer of 4,096 features comes before the head."""
    module, data = place(model, few, trainer(), SMALLEST_OF_FAMILY[model])
    boundary = module.family.feature_boundary
    extraction = feature_store.extract_features(extraction_spec(module, data, trainer(), boundary, "train"), data.cache)
    found = ranking.head_inputs(module, extraction.store, boundary)
    entered: list[torch.Tensor] = []
    module.head.register_forward_hook(lambda layer, inputs, output: entered.append(inputs[0]))
    module.eval()
    with torch.no_grad():
        for images in data.iterate_split("train"):
            module(images)
    expected = torch.cat([values.mean(dim=(2, 3)) if values.ndim == 4 else values for values in entered])
    assert found.shape == expected.shape
    assert len(found) == 9
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_fit_finds_the_features_of_the_ranking(
    few: Path, trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = place("squeezenet1_1", few, trainer())
    folds = grouping.assign_folds(data, 3, 0)
    result = ranking.rank_backbone(module, data, Candidate("squeezenet1_1", "none"), folds, time.perf_counter())
    assert not result.is_from_cache
    assert len(result.correct) == 9
    assert result.images_per_second > 0
    again = ranking.rank_backbone(module, data, Candidate("squeezenet1_1", "none"), folds, time.perf_counter())
    assert again.is_from_cache
    assert (again.correct == result.correct).all()
    capsys.readouterr()
    trainer(1).fit(module, datamodule=data)
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 9 + 3 images before classifier.0, the first taken from the cache, the others computed in" in printed


def test_ranking_places_a_module_as_a_fit_does(few: Path, trainer: Callable[..., Trainer]) -> None:
    """Every part of the key is that of a fit, also in a precision that converts the weights."""
    keys = []
    for precision in ("32-true", "bf16-true"):
        torch.manual_seed(0)
        module, data = place("squeezenet1_1", few, trainer(precision=precision))
        keys.append(dict(extraction_spec(module, data, data.trainer, "classifier.0", "train").key))  # type: ignore[arg-type]
        torch.manual_seed(0)
        fitted = FineTuner("squeezenet1_1", data.classes, weights="none", preprocess={"size": 32})
        fit_data = ImageDataModule(few, num_workers=0, image_size=32, cache_dir=few.parent / "other").prepare()
        fit = trainer(1, precision=precision)
        fit.fit(fitted, datamodule=fit_data)
        assert keys[-1] == extraction_spec(fitted, fit_data, fit, "classifier.0", "train").key
    assert keys[0] != keys[1]


def test_a_network_that_cannot_be_split_is_ranked_all_the_same(
    few: Path, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for message in ("", "what follows fc is more than its modules one after another"):
        torch.manual_seed(0)
        module, data = place("resnet18", few, trainer())
        if message:

            def refuse(*arguments: object, message: str = message) -> None:
                raise ValueError(message)

            monkeypatch.setattr(feature_store, "extract_features", refuse)
        folds = grouping.assign_folds(data, 3, 0)
        results.append(ranking.rank_backbone(module, data, Candidate("resnet18", "none"), folds, 0.0))
    assert [bool(result.obstacle) for result in results] == [False, True]
    assert (results[0].correct == results[1].correct).all()


def test_copies_of_a_file_are_in_one_fold(few: Path, trainer: Callable[..., Trainer]) -> None:
    content = (few / "train" / "cat" / "00.png").read_bytes()
    for i in range(5):
        (few / "train" / "cat" / f"copy{i}.png").write_bytes(content)
    data = ImageDataModule(few).prepare()
    folds = grouping.assign_folds(data, 3, 0)
    copies = [i for i, key in enumerate(data.splits["train"].keys) if "copy" in key or key.endswith("cat/00.png")]
    assert len(copies) == 6
    assert len({folds[i] for i in copies}) == 1


def ranked(model: str, correct: int, speed: float) -> RankedBackbone:
    return RankedBackbone(
        Candidate(model, "none"), correct=np.arange(10) < correct, images_per_second=speed, parameters=1000
    )


def test_the_most_accurate_is_first_then_the_fastest_and_failures_last() -> None:
    failed = ranking.failed_backbone(Candidate("x", "none"), KeyError("missing"))
    results = [ranked("slow", 8, 1.0), failed, ranked("best", 9, 1.0), ranked("fast", 8, 2.0)]
    assert [r.candidate.model for r in ranking.sort_results(results)] == ["best", "fast", "slow", "x"]
    assert failed.reason == "KeyError: 'missing'"
    assert results[0].accuracy == 0.8
    assert results[0].interval == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson, by hand
    with pytest.raises(ValueError, match="No backbone could be ranked:\n- x: KeyError: 'missing'"):
        ranking.sort_results([failed])
