"""Fixtures for the tests of `finetune.tracking`: a real MLflow server, and a way to train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from finetune import train
from finetune.cli.factories import quiet
from finetune.tracking.addresses import is_answering
from tests.helpers import TINY
from tests.tracking.helpers import free_port

Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's is used or written: neither keys, nor servers, nor folders."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


@pytest.fixture
def train_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in this process, in a folder of its own, and return the folder of the run."""
    monkeypatch.chdir(tmp_path)

    def go(name: str, *words: str) -> Path:
        first = () if words[0].startswith("resume=") else (*TINY, f"data.root={photos}", "report=true")
        with warnings.catch_warnings():
            quiet()
            train.main([*first, *words, f"hydra.run.dir={tmp_path / name}"])
        return tmp_path / name

    return go


class Server:
    """An MLflow server on SQLite, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                    "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
                    "--artifacts-destination", str(self.folder / "artifacts"),
                ],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 300
        while not is_answering(self.address, "/health"):
            if self.process.poll() is not None or time.monotonic() > end:
                text = (self.folder / "server.log").read_text()[-3000:]
                self.stop()
                raise RuntimeError(f"the MLflow server did not start:\n{text}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    server = Server(tmp_path_factory.mktemp("mlflow_server"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
