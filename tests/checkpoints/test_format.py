"""Test `finetune.checkpoints.format`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from finetune import FineTuner, load
from finetune.checkpoints import format, metadata
from finetune.checkpoints.format import Checkpoint
from finetune.checkpoints.metadata import CheckpointMetadata, ModelRecord
from finetune.io import tensors
from tests.checkpoints.helpers import deleting, save_changed_checkpoint, setting
from tests.helpers import save_small_checkpoint


class SaveAfterEveryBatch(Callback):
    """Saves a checkpoint named by the epoch and the batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}_{batch_idx}.ckpt", weights_only=False)


def test_a_checkpoint_says_in_which_epoch_and_after_how_many_batches_it_goes_on(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """As Lightning itself has counted, in the keys that it uses today."""
    runner = trainer(2, callbacks=[SaveAfterEveryBatch(tmp_path)], limit_train_batches=3)
    runner.fit(BoringModel(), DataLoader(RandomDataset(32, 6)))
    runner.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    found = {}
    for path in tmp_path.glob("*.ckpt"):
        entries = torch.load(path, weights_only=True)
        checkpoint = Checkpoint(entries, ModelRecord("boring", ["a", "b"]), CheckpointMetadata())
        assert checkpoint.is_resumable
        found[path.stem] = checkpoint.progress
    assert found["end"] == (2, 0)
    assert found["0_0"] == (0, 1)
    assert found["0_1"] == (0, 2)
    assert found["1_1"] == (1, 2)


class _Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("entry", ["state_dict", "hyper_parameters", "finetune", "callbacks"])
def test_code_in_a_checkpoint_never_runs(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    path = save_changed_checkpoint(tmp_path / "bad.ckpt", lambda content: {**content, entry: {"a": _Payload(ran)}})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for read in (load, FineTuner.load_from_checkpoint, tensors.read_tensors):
        with pytest.raises(ValueError, match="code, which is never run"):
            read(path)
    assert not ran.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999999])
def test_truncated_checkpoint_is_refused(share: float, tmp_path: Path) -> None:
    save_small_checkpoint(tmp_path / "cut.ckpt")
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.ckpt \(\d+ bytes\) cannot be read .*It is damaged"):
        load(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_flipped_byte_is_found(share: float, tmp_path: Path) -> None:
    save_small_checkpoint(tmp_path / "flipped.ckpt")
    content = bytearray((tmp_path / "flipped.ckpt").read_bytes())
    content[int(share * len(content))] ^= 0xFF
    (tmp_path / "flipped.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.ckpt \(\d+ bytes\) cannot be read"):
        load(tmp_path / "flipped.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deleting("state_dict"), "not a checkpoint of finetune: it has no weights .*model.weights="),
        (deleting("hyper_parameters"), "not a checkpoint of finetune: it names no model and no classes"),
        (deleting("hyper_parameters", "classes"), "it names no model and no classes"),
        (setting({}, "state_dict"), "its state_dict is not one of names and tensors"),
        (setting({"a": 1}, "state_dict"), "its state_dict is not one of names and tensors"),
        (deleting("state_dict", "backbone.classifier.1.bias"), r"cannot be rebuilt: .*classifier\.1\.bias"),
        (setting(torch.zeros(3), "state_dict", "backbone.classifier.1.bias"), "cannot be rebuilt: .*size mismatch"),
        (setting(torch.zeros(3), "state_dict", "backbone.extra"), "cannot be rebuilt: .*Unexpected key"),
        (setting("resnet19", "hyper_parameters", "model"), "cannot be rebuilt: There is no model 'resnet19'"),
        (setting(["a"], "hyper_parameters", "classes"), "cannot be rebuilt: A classifier needs at least two"),
        (setting(7.5, "hyper_parameters", "classes"), "its model and its classes are not names"),
        (setting([["a"] * 9] * 9, "hyper_parameters", "classes"), "its model and its classes are not names"),
        (setting({"a": 1}, "hyper_parameters", "model"), "its model and its classes are not names"),
        (setting(torch.zeros(2), "state_dict"), "it has no weights"),
        (setting({"epoch": "x"}, "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (setting({"results": 3}, "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (setting([1], "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (setting({"max_epochs": "x"}, "finetune", "run"), r"under finetune\.run makes no sense"),
        (setting({"splits": {"val": {}}}, "finetune", "data"), r"under finetune\.data makes no sense"),
        (
            setting({"splits": {"val": {"keys": ["a"], "labels": [9], "sizes": [1]}}}, "finetune", "data"),
            "makes no sense",
        ),
        (setting({"root": 3}, "finetune", "data"), r"under finetune\.data makes no sense"),
        (setting({"size": 10**9}, "hyper_parameters", "preprocess"), "cannot be rebuilt: preprocess needs 1 <= size"),
        (setting({"groups": [{"match": "("}]}, "hyper_parameters", "strategy"), "cannot be rebuilt"),
        (setting(metadata.FORMAT + 1, "finetune", "format"), "newer finetune .format 5, this one knows 4.: upgrade"),
        (setting("two", "finetune", "format"), "newer finetune"),
        (lambda content: [1, 2], "holds a list, not a state dict"),
    ],
)
def test_incomplete_or_wrong_checkpoint_says_what_is_wrong(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    path = save_changed_checkpoint(tmp_path / "bad.ckpt", change)
    with pytest.raises(ValueError, match=rf"bad\.ckpt.*{message}"):
        load(path)


def test_checkpoint_that_is_not_there_or_an_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="a file on this machine; download it first"):
        load("https://example.org/best.ckpt")


def test_older_format_is_read_and_what_it_lacks_is_empty(tmp_path: Path) -> None:
    path = save_changed_checkpoint(tmp_path / "old.ckpt", deleting("finetune"))
    assert format.read_checkpoint(path).metadata == metadata.CheckpointMetadata()
    assert load(path).classes == ["ants", "bees"]
