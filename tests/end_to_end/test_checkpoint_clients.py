"""Write the checkpoints of the command line from a script and from LightningCLI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from finetune import FineTuner, ImageDataModule, load
from tests.end_to_end.helpers import Command, read_table
from tests.helpers import TINY

EPOCHS = 2


def by_script(photos: Path, weights: Path, folder: Path) -> None:
    seed_everything(0, verbose=False)
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    module = FineTuner("resnet18", data.classes, weights=str(weights), head_init="zero")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    kept = ModelCheckpoint(folder, filename="last", monitor=None, save_on_train_epoch_end=True)
    Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=[kept], **quiet).fit(module, datamodule=data)  # type: ignore[arg-type]


def by_lightning_cli(photos: Path, weights: Path, folder: Path) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    class Cli(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data", "model.classes", lambda data: data.prepare().classes, apply_on="instantiate")

    words = [
        f"--data.root={photos}", "--data.image_size=32", "--data.batch_size=8", "--data.num_workers=0",
        "--model.model=resnet18", f"--model.weights={weights}", "--model.head_init=zero", "--seed_everything=0",
        "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", f"--trainer.max_epochs={EPOCHS}",
        "--trainer.callbacks=ModelCheckpoint", f"--trainer.callbacks.dirpath={folder}", "--trainer.callbacks.filename=last",
        "--trainer.callbacks.save_on_train_epoch_end=true",
    ]  # fmt: skip
    Cli(FineTuner, ImageDataModule, save_config_callback=None, args=["fit", *words])


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}/{key}")
        else:
            yield f"{prefix}/{key}", value


@pytest.mark.slow
@pytest.mark.parametrize("write", [by_script, by_lightning_cli])
def test_a_checkpoint_says_the_same_as_that_of_the_command_line(
    write: Callable[[Path, Path, Path], None],
    photos: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    weights = tmp_path / "trunk.ckpt"
    FineTuner("resnet18", 2, weights="none").save(weights)
    run, code = command(
        "train", *TINY, "model=resnet18", f"data.root={photos}", f"model.weights={weights}", "model.head_init=zero",
        f"trainer.max_epochs={EPOCHS}", "trainer.precision=32-true", "optimizer.lr=0.001",
    )  # fmt: skip
    assert code == 0
    write(photos, weights, tmp_path)
    expected, found = (
        torch.load(path, weights_only=True) for path in (run / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt")
    )
    assert set(found) == set(expected)
    assert found["hyper_parameters"] == expected["hyper_parameters"]
    assert (found["epoch"], found["global_step"]) == (expected["epoch"], expected["global_step"])
    assert set(found["state_dict"]) == set(expected["state_dict"])
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, msg=name)
    configuration = expected["finetune"].pop("config")  # of a command alone
    assert configuration["seed"] == 0
    found["finetune"].pop("config", None)
    records = dict(flat(found["finetune"])), dict(flat(expected["finetune"]))
    assert set(records[0]) == set(records[1])
    for key, value in records[1].items():
        if isinstance(value, float | torch.Tensor):
            torch.testing.assert_close(records[0][key], value, msg=key)
        else:
            assert records[0][key] == value, key

    answered, code = command("predict", f"ckpt={tmp_path}/last.ckpt", f"source={photos}/val")
    assert code == 0
    rows = read_table(answered / "predictions.csv")
    model = load(run / "checkpoints" / "last.ckpt", device="cpu", precision="32-true")
    assert [row["label"] for row in rows] == [p.label for p in model.predict([row["path"] for row in rows])]
