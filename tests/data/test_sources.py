"""Test `finetune.data.sources`."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from finetune import FineTuner, ImageDataModule
from finetune.images import decode


@pytest.mark.parametrize(("strategy", "before"), [("finetune", 1), ("feature_extract", 2)])
def test_a_scan_opens_each_file_once_and_the_first_epoch_or_the_features_decode_it_once(
    strategy: str, before: int, photos: Path, monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Trainer], tmp_path: Path,
) -> None:  # fmt: skip
    opened: Counter[str] = Counter()
    original = builtins.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).startswith(str(photos)):
            opened[str(file)] += 1
        return original(file, *args, **kwargs)

    class First(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(Counter(opened))

    seen: list[Counter[str]] = []
    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr(
        decode, "read_file", lambda path: pytest.fail("these are no JPEG files")
    )  # it would not be counted
    data = ImageDataModule(photos, batch_size=8, num_workers=0, cache_images="ram", cache_dir=tmp_path).prepare()
    module = FineTuner("squeezenet1_1", data.classes, strategy, weights="none", preprocess={"size": 32})
    trainer(1, callbacks=[First()]).fit(module, datamodule=data)
    files = sorted(str(path) for path in photos.rglob("*.png"))
    assert len(files) == 36
    assert seen == [Counter(dict.fromkeys(files, before))]  # no second reading of sizes, of checksums, of headers
    assert set(opened.values()) == {2}


@pytest.mark.parametrize("options", [{"dataset": [1, 2]}, {"dataset": list}, {"dataset": list, "splits": {}}])
def test_a_data_set_without_its_splits_or_that_is_made_already_is_told_how_to_be_given(options: Any) -> None:
    with pytest.raises(ValueError, match=r"dataset= takes a class or a function that makes a data set, and splits="):
        ImageDataModule(**options).prepare()
