"""Fixtures: tiny real image files, a Trainer for two epochs, the real data where they are."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from finetune import train
from finetune.cli import compose
from finetune.cli.factories import quiet
from finetune.runtime.console import IGNORED_WARNINGS

SHARED = Path(os.environ.get("FINETUNE_SHARED", Path(__file__).parents[2] / "shared"))
COLOURS = {"cat": (200, 60, 40), "dog": (40, 180, 60), "emu": (50, 70, 200)}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", "ignore:You defined a `validation_step` but have no")  # on purpose here
    for message in IGNORED_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (SHARED / "data" / "hymenoptera_data").is_dir():
        reason = f"the real data are not at {SHARED} (set FINETUNE_SHARED)"
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the tests is kept in the user's cache; commands that tests start inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """Also where a script has started the tests in its background, which ignores it, as do commands that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        quiet()
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Where the real data and weights lie."""
    return SHARED


def picture(seed: int = 0, side: int = 96) -> Image.Image:
    """Smooth, so that a copy of it in another size looks the same."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def write_images(root: Path, splits: dict[str, dict[str, int]], size: int = 32) -> Path:
    """PNG files of noise around a colour per class: root/split/class/n.png, or root/class/n.png for a split of ''."""
    rng = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = np.array(COLOURS.get(name, (128, 128, 128)))
                noise = rng.integers(-40, 40, (size, size, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """`write_images` below a fresh folder."""

    def make(splits: dict[str, dict[str, int]], name: str = "photos", size: int = 32) -> Path:
        return write_images(tmp_path / name, splits, size)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 8 training and 4 validation images each, 32 pixels; read only."""
    root = tmp_path_factory.mktemp("data") / "photos"
    return write_images(root, {"train": dict.fromkeys(COLOURS, 8), "val": dict.fromkeys(COLOURS, 4)})


TINY = (
    "model=squeezenet1_1", "model.weights=none", "data=imagefolder", "data.image_size=32", "data.num_workers=0",
    "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=2", "optimizer.lr=0.01",
    "report=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on `photos`; read only."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with warnings.catch_warnings():
        quiet()
        # learns something in two epochs, so that its answers differ
        learns = ["model=resnet18", "optimizer=adamw", "optimizer.lr=0.03", "data.augment=none"]
        train.main([*TINY, *learns, f"data.root={photos}", f"hydra.run.dir={folder}"])
    return folder


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, int]]:
    """Run a command in this process, without plots unless asked for: its folder, and its exit code."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count(1)

    def run(name: str, *argv: str) -> tuple[Path, int]:
        folder = tmp_path / f"{name}_{next(numbers)}"
        plots = [] if name == "export" or any("report=" in word for word in argv) else ["report=false"]
        try:
            import_module(f"finetune.{name}").main([*argv, *plots, f"hydra.run.dir={folder}"])
        except SystemExit as stop:
            return folder, int(stop.code or 0)
        return folder, 0

    return run


def faults_of(name: str, *words: str) -> list[str]:
    """What is wrong with the words of a command."""
    try:
        compose.compose(name, words)
    except ValueError as error:
        first, *rest = str(error).splitlines()
        return [line.removeprefix("- ") for line in rest] or [first]
    return []


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(photos: Path, tmp_path: Path) -> Iterator[Start]:
    """Start `finetune.train` in a session of its own; nothing of it outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def go(*argv: str, env: dict[str, str] | None = None, module: tuple[str, ...] = ("-m",)) -> subprocess.Popen[str]:
        words = () if argv[0].startswith("resume=") else (*TINY, f"data.root={photos}")
        process = subprocess.Popen(
            [sys.executable, *module, "finetune.train", *words, *argv],
            cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield go
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.communicate()


def finished(process: subprocess.Popen[str], code: int = 0, timeout: float = 120) -> str:
    """What a process said on standard error."""
    errors = process.communicate(timeout=timeout)[1]
    assert process.returncode == code, errors[-3000:]
    return errors


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a process has made a file."""
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is not None:
        assert path.exists(), process.communicate()[1]
    assert path.exists()


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A quiet CPU Trainer, as a stranger would make one."""

    def make(max_epochs: int = 2, **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(max_epochs=max_epochs, **{**defaults, **options})

    return make
