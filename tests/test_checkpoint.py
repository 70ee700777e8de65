from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from finetune import FineTuner, load
from finetune.checkpoints import format, metadata
from finetune.checkpoints.restore import AtomicCheckpointIO
from finetune.io import tensors
from finetune.io.files import write_atomically
from finetune.models.specs import FAMILIES


def small(path: Path, **options: Any) -> FineTuner:
    """A checkpoint of a small network."""
    module = FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none", **options)
    module.save(path)
    return module


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint with something changed in it."""
    small(path)
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    torch.save(content, path)
    return path


# --- writing -----------------------------------------------------------------------------------------------------


def test_save_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "happens",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        KeyboardInterrupt("Ctrl-C"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_what_happens_within_a_save_is_what_it_raises(
    happens: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not torch's complaint about its archive; whatever was being handled when the save began."""

    class Interrupted:
        def __init__(self, file: Any) -> None:
            self.file, self.flush = file, file.flush

        def write(self, data: bytes) -> int:
            if len(data) > 30_000:
                raise happens
            return int(self.file.write(data))

    real = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: real(content, cast(Any, Interrupted(file))))
    try:
        raise ValueError("before")
    except ValueError:
        with pytest.raises(type(happens), match=re.escape(str(happens))):
            AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(9_999)}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_write_atomically_replaces(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1


# --- files that are not what they should be ----------------------------------------------------------------------


class _Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off", bytes(range(256)) * 9])
@pytest.mark.parametrize("name", ["w.pth", "w.ckpt", "w.safetensors"])
def test_read_tensors_of_another_file_is_one_clear_error(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} .*(cannot be read|is damaged)"):
        tensors.read_tensors(tmp_path / name)


def test_read_tensors_of_a_zip_of_another_kind(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "w.ckpt", "w", compression) as archive:
            archive.writestr("word/document.xml", "<xml/>" * 100)
        with pytest.raises(ValueError, match=r"w\.ckpt \(\d+ bytes\) cannot be read"):
            load(tmp_path / "w.ckpt")


@pytest.mark.parametrize("entry", ["state_dict", "hyper_parameters", "finetune", "callbacks"])
def test_code_in_a_checkpoint_never_runs(entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    path = changed(tmp_path / "bad.ckpt", lambda content: {**content, entry: {"a": _Payload(ran)}})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for read in (load, FineTuner.load_from_checkpoint, tensors.read_tensors):
        with pytest.raises(ValueError, match="code, which is never run"):
            read(path)
    assert not ran.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999999])
def test_truncated_checkpoint_is_refused(share: float, tmp_path: Path) -> None:
    small(tmp_path / "cut.ckpt")
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.ckpt \(\d+ bytes\) cannot be read .*It is damaged"):
        load(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_flipped_byte_is_found(share: float, tmp_path: Path) -> None:
    small(tmp_path / "flipped.ckpt")
    content = bytearray((tmp_path / "flipped.ckpt").read_bytes())
    content[int(share * len(content))] ^= 0xFF
    (tmp_path / "flipped.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.ckpt \(\d+ bytes\) cannot be read"):
        load(tmp_path / "flipped.ckpt")


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def _with(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("state_dict"), "not a checkpoint of finetune: it has no weights .*model.weights="),
        (_without("hyper_parameters"), "not a checkpoint of finetune: it names no model and no classes"),
        (_without("hyper_parameters", "classes"), "it names no model and no classes"),
        (_with({}, "state_dict"), "its state_dict is not one of names and tensors"),
        (_with({"a": 1}, "state_dict"), "its state_dict is not one of names and tensors"),
        (_without("state_dict", "backbone.classifier.1.bias"), r"cannot be rebuilt: .*classifier\.1\.bias"),
        (_with(torch.zeros(3), "state_dict", "backbone.classifier.1.bias"), "cannot be rebuilt: .*size mismatch"),
        (_with(torch.zeros(3), "state_dict", "backbone.extra"), "cannot be rebuilt: .*Unexpected key"),
        (_with("resnet19", "hyper_parameters", "model"), "cannot be rebuilt: There is no model 'resnet19'"),
        (_with(["a"], "hyper_parameters", "classes"), "cannot be rebuilt: A classifier needs at least two"),
        (_with(7.5, "hyper_parameters", "classes"), "its model and its classes are not names"),
        (_with([["a"] * 9] * 9, "hyper_parameters", "classes"), "its model and its classes are not names"),
        (_with({"a": 1}, "hyper_parameters", "model"), "its model and its classes are not names"),
        (_with(torch.zeros(2), "state_dict"), "it has no weights"),
        (_with({"epoch": "x"}, "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (_with({"results": 3}, "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (_with([1], "finetune", "validation"), r"under finetune\.validation makes no sense"),
        (_with({"max_epochs": "x"}, "finetune", "run"), r"under finetune\.run makes no sense"),
        (_with({"splits": {"val": {}}}, "finetune", "data"), r"under finetune\.data makes no sense"),
        (
            _with({"splits": {"val": {"keys": ["a"], "labels": [9], "sizes": [1]}}}, "finetune", "data"),
            "makes no sense",
        ),
        (_with({"root": 3}, "finetune", "data"), r"under finetune\.data makes no sense"),
        (_with({"size": 10**9}, "hyper_parameters", "preprocess"), "cannot be rebuilt: preprocess needs 1 <= size"),
        (_with({"groups": [{"match": "("}]}, "hyper_parameters", "strategy"), "cannot be rebuilt"),
        (_with(metadata.FORMAT + 1, "finetune", "format"), "newer finetune .format 4, this one knows 3.: upgrade"),
        (_with("two", "finetune", "format"), "newer finetune"),
        (lambda content: [1, 2], "holds a list, not a state dict"),
    ],
)
def test_incomplete_or_wrong_checkpoint_says_what_is_wrong(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "bad.ckpt", change)
    with pytest.raises(ValueError, match=rf"bad\.ckpt.*{message}"):
        load(path)


def test_checkpoint_that_is_not_there_or_an_address(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="a file on this machine; download it first"):
        load("https://example.org/best.ckpt")


def test_older_format_is_read_and_what_it_lacks_is_empty(tmp_path: Path) -> None:
    path = changed(tmp_path / "old.ckpt", _without("finetune"))
    assert format.read_checkpoint(path).metadata == metadata.CheckpointMetadata()
    assert load(path).classes == ["ants", "bees"]


# --- one file is enough ------------------------------------------------------------------------------------------


def test_load_fetches_nothing_whatever_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path / "model.ckpt", _with("default", "hyper_parameters", "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("nothing may be fetched"))
    assert load(path, device="cpu").classes == ["ants", "bees"]


def test_load_needs_neither_network_nor_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small(tmp_path / "model.ckpt").eval()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.chdir(tmp_path)
    loaded = load("model.ckpt", device="cpu").module
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(loaded(images), module(images))
    assert loaded.preprocess == module.preprocess


@pytest.mark.parametrize(
    "model", [pytest.param(f[0], marks=[pytest.mark.slow] if f[0] != "googlenet" else []) for f in
              sorted({family.names for family in FAMILIES.values()})]
)  # fmt: skip
def test_every_family_comes_back_with_equal_logits(model: str, tmp_path: Path) -> None:
    module = FineTuner(model, classes=3, weights="none", transform_input=True).eval()
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    size = max(64, module.family.min_size) if not module.family.fixed_size else module.preprocess.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), module(images))
    assert loaded.hparams == module.hparams


def test_loaded_module_keeps_what_its_checkpoint_said(tmp_path: Path) -> None:
    module = small(tmp_path / "a.ckpt")
    module.metadata = replace(module.metadata, config={"seed": 3})
    module.save(tmp_path / "a.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded.save(tmp_path / "b.ckpt")
    a, b = (format.read_checkpoint(tmp_path / f"{name}.ckpt") for name in "ab")
    assert a.metadata == b.metadata
    assert a.model == b.model
    assert a.metadata.config == {"seed": 3}
    assert {"python", "torch", "lightning"} <= a.metadata.versions.keys()


def test_load_with_other_classes_keeps_the_trunk(tmp_path: Path) -> None:
    module = small(tmp_path / "model.ckpt")
    other = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt", classes=["a", "b", "c"], strict=False)
    assert torch.equal(other.backbone.features[0].weight, module.backbone.features[0].weight)  # type: ignore
    assert other.head.out_channels == 3
    with pytest.raises(ValueError, match="size mismatch"):
        FineTuner.load_from_checkpoint(tmp_path / "model.ckpt", classes=["a", "b", "c"])


def test_subclass_with_arguments_of_its_own_is_loaded(tmp_path: Path) -> None:
    class Mine(FineTuner):
        def __init__(self, extra: int = 1, **options: Any) -> None:
            super().__init__(**options)
            self.save_hyperparameters({"extra": extra})

    Mine(extra=7, model="squeezenet1_1", classes=2, weights="none").save(tmp_path / "mine.ckpt")
    loaded = Mine.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert isinstance(loaded, Mine)
    assert loaded.hparams["extra"] == 7


def test_weights_from_a_checkpoint_of_another_model_names_it(tmp_path: Path) -> None:
    small(tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"does not fit ResNet: it lacks .* It is a checkpoint of squeezenet1_1: give model="
    ):
        FineTuner("resnet18", classes=2, weights=str(tmp_path / "model.ckpt"))


def test_weights_from_a_checkpoint_keep_its_transform_input(tmp_path: Path) -> None:
    FineTuner("googlenet", classes=2, weights="none").save(tmp_path / "scratch.ckpt")
    module = FineTuner("googlenet", classes=3, weights=str(tmp_path / "scratch.ckpt"))
    assert module.hparams["transform_input"] is False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_killed_while_writing_leaves_the_file_before_it_whole(tmp_path: Path) -> None:
    """`kill -9` after so many bytes of a checkpoint, and before and after it is given its name."""
    script = """
import os, signal, sys
import torch
from finetune.checkpoints.restore import AtomicCheckpointIO; from finetune.io.tensors import read_tensors
torch.set_num_threads(1)
path, save = sys.argv[1], AtomicCheckpointIO().save_checkpoint
content = lambda value: {"weight": torch.full((50_000,), value), "epoch": value}
save(content(0), path)
size, die = os.path.getsize(path), lambda: os.kill(os.getpid(), signal.SIGKILL)
for at in (0, 1, size // 3, size - 1, "sync", "rename", "renamed"):
    if os.fork() == 0:
        real = torch.save
        class Dying:
            def __init__(self, file): self.file, self.left = file, at
            def write(self, data):
                if isinstance(at, int) and len(data) > self.left:
                    self.file.write(bytes(data)[: self.left]); self.file.flush(); die()
                if isinstance(at, int): self.left -= len(data)
                return self.file.write(data)
            def flush(self): self.file.flush()
        torch.save = lambda content, file: real(content, Dying(file))
        rename, sync = os.replace, os.fsync
        def dying_rename(a, b):
            if at == "rename": die()
            rename(a, b)
            die()
        os.fsync = lambda n: die() if at == "sync" else sync(n)
        os.replace = dying_rename
        save(content(1), path)
        os._exit(0)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL, at
    assert read_tensors(__import__("pathlib").Path(path))["epoch"] == (1 if at == "renamed" else 0), at
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "last.ckpt")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
