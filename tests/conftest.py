"""Fixtures: tiny real image files, a Trainer for two epochs, the real data where they are."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
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
from finetune.cli.factories import quiet
from finetune.io import formats
from finetune.runtime.console import IGNORED_WARNINGS
from tests.helpers import COLOURS, TINY, Start, make_image, write_images

SHARED = Path(os.environ.get("FINETUNE_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", "ignore:You defined a `validation_step` but have no")  # on purpose here
    config.addinivalue_line("filterwarnings", "ignore:GPU available but not used")  # tests choose the CPU
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


@pytest.fixture(autouse=True)
def _absl_holds_no_captured_output() -> Iterator[None]:
    """It takes what is standard error when it is imported, and closes it when Hydra sets up logging: pytest's, here."""
    yield
    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__


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


@pytest.fixture
def ants_and_bees(tmp_path: Path) -> Path:
    """Two classes, 6 training and 5 validation images each, all different."""
    seeds = iter(range(100))
    for split, count in (("train", 6), ("val", 5)):
        for name in ("ants", "bees"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                make_image(next(seeds), 64).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def odd_images(tmp_path: Path) -> list[str]:
    """Pictures of several sizes and kinds: turned by EXIF, grey, with transparency."""
    rng = np.random.default_rng(0)
    found = []
    for i, (mode, suffix) in enumerate(
        [("RGB", "jpg"), ("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("CMYK", "jpg")]
    ):
        channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
        array = rng.integers(0, 255, (20 + i, 30, channels), dtype=np.uint8)
        image = Image.fromarray(array.squeeze(), mode)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        path = tmp_path / f"{i}.{suffix}"
        image.save(path, exif=exif)
        found.append(str(path))
    return found


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where no package decodes HEIC."""
    monkeypatch.setattr(formats, "_heif_package", lambda: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for known in (formats.known_formats, formats.extensions):
        known.cache_clear()
    yield
    for known in (formats.known_formats, formats.extensions):
        known.cache_clear()
