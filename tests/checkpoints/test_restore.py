"""Test `finetune.checkpoints.restore`."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from finetune import FineTuner, ImageDataModule, load
from finetune.checkpoints import format
from finetune.checkpoints.restore import AtomicCheckpointIO
from finetune.models.specs import FAMILIES
from tests.checkpoints.helpers import save_changed_checkpoint, setting
from tests.helpers import CLASSES, SMALLEST_SIZE, SmallNetwork, make_batches, make_finetuner, save_small_checkpoint


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


def test_load_fetches_nothing_whatever_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_changed_checkpoint(tmp_path / "model.ckpt", setting("default", "hyper_parameters", "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("nothing may be fetched"))
    assert load(path, device="cpu").classes == ["ants", "bees"]


def test_load_needs_neither_network_nor_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = save_small_checkpoint(tmp_path / "model.ckpt").eval()

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
    any_size = not module.family.fixed_size and module.family.size_argument is None
    size = max(64, module.family.min_size) if any_size else module.preprocess.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), module(images))
    assert loaded.hparams == module.hparams


def test_loaded_module_keeps_what_its_checkpoint_said(tmp_path: Path) -> None:
    module = save_small_checkpoint(tmp_path / "a.ckpt")
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
    module = save_small_checkpoint(tmp_path / "model.ckpt")
    other = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt", classes=["a", "b", "c"], strict=False)
    assert torch.equal(other.backbone.features[0].weight, module.backbone.features[0].weight)  # type: ignore
    assert other.head.out_channels == 3
    with pytest.raises(ValueError, match=r"it is for the classes \['ants', 'bees'\]: with others, strict=False"):
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


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        pytest.param("googlenet", marks=pytest.mark.slow),
        pytest.param("inception_v3", marks=pytest.mark.slow),
    ],
)
def test_checkpoint_loads_with_nothing_else(
    model: str, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SMALLEST_SIZE.get(model, 64)
    module = make_finetuner(
        model, "finetune", transform_input=True if FAMILIES[model].aux else None, optimizer=partial(SGD, lr=1e-4)
    )
    first = trainer(1)
    first.fit(module, make_batches(size, 1, 2), make_batches(size, 1, 2))
    first.save_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *a, **k: pytest.fail("asked the network"))
    monkeypatch.chdir(tmp_path)
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt", map_location="cpu")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert loaded.classes == CLASSES
    assert loaded.preprocess == module.preprocess
    with pytest.raises(ValueError, match="has no optimizer"):
        trainer(1).fit(loaded, make_batches(size))


def test_checkpoint_of_ones_own_network_asks_for_it(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    first = trainer(1)
    module = FineTuner(SmallNetwork(), CLASSES, "finetune", head="fc")
    first.fit(module, make_batches())
    first.save_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, model=network\)"):
        FineTuner.load_from_checkpoint(tmp_path / "best.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt", model=SmallNetwork())
    assert torch.equal(loaded.head.weight, module.head.weight)  # type: ignore[arg-type]


@pytest.mark.slow
def test_vision_transformer_of_another_size_comes_back_from_its_checkpoint(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    module = make_finetuner("vit_b_32", preprocess={"size": 64, "resize": 64})
    first = trainer(1)
    first.fit(module, make_batches(64, 1), make_batches(64, 1))
    first.save_checkpoint(tmp_path / "best.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "best.ckpt")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module.eval()(images))
    with pytest.raises(ValueError, match="vit_b_32 cannot be built for images of 100 pixels"):
        make_finetuner("vit_b_32", preprocess={"size": 100, "resize": 100})


@pytest.mark.slow
def test_a_loaded_module_that_learns_is_validated_as_it_is(
    trainer: Callable[..., Trainer], photos: Path, tmp_path: Path
) -> None:
    """Nothing of the model that was loaded may evaluate the one that it becomes."""
    data = ImageDataModule(photos, image_size=32, batch_size=8, num_workers=0).prepare()
    first = FineTuner("resnet18", classes=data.classes, weights="none", preprocess={"size": 32})
    trainer().fit(first, datamodule=data)
    first.save(tmp_path / "model.ckpt")
    model = load(tmp_path / "model.ckpt", strategy="finetune", optimizer=partial(torch.optim.SGD, lr=0.1))
    images, _ = next(iter(data.val_dataloader()))
    model.logits(images)
    trainer().fit(model.module, datamodule=data)
    model.module.eval()
    with torch.no_grad():
        plain = model.module.backbone(model.module.preprocess.normalize(images))
        assert torch.allclose(model.module(images), plain, atol=1e-5)
