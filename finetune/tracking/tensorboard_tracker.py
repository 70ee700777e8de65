"""Write a run for TensorBoard: metrics, pictures, and a row of its HParams page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from finetune.tracking.tracked_run import TrackedRun
from finetune.tracking.tracker import Results, Tracker


class TensorBoardTracker(Tracker):
    """Writes event files; a resumed run in a folder of its own begins with the epochs that it goes on from."""

    label = "TensorBoard"

    def __init__(self, save_dir: str, name: str = "tensorboard", version: str = "", graph: bool = False) -> None:
        """Name the folder.

        Args:
            save_dir: folder of the run, for example.
            name: of the folder in it.
            version: of a folder in that; "" is none.
            graph: whether to write the graph of the network, which takes a few seconds.
        """
        self.folder = Path(save_dir).expanduser() / name / version
        self.graph = graph
        self._writer: Any = None
        self._parameters: dict[str, Any] = {}

    def start(self, run: TrackedRun) -> int | None:
        """Open an event file, and write the tags."""
        from torch.utils.tensorboard import SummaryWriter

        has_earlier = any(self.folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(self.folder))
        rows = "\n".join(f"| {name} | {value} |" for name, value in run.tags.items())
        self._writer.add_text("run", f"| tag | value |\n|---|---|\n{rows}")
        self._parameters = {name: _plain(value) for name, value in (run.parameters() | run.tags).items()}
        self._writer.flush()
        return None if has_earlier else 0

    def describe(self) -> str:
        """Return the command that shows the run."""
        return f"tensorboard --logdir {shlex.quote(str(self.folder))}"

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Write the metrics of an epoch, over the epochs."""
        self._write({name: value for name, value in row.items() if name != "epoch"}, int(row["epoch"]))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics of a step."""
        self._write(metrics, step)

    def _write(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_graph(self, network: nn.Module, images: Tensor) -> None:
        """Write the graph of a network."""
        self._writer.add_graph(network, images)

    @property
    def wants_graph(self) -> bool:
        """Return whether the graph was asked for."""
        return self.graph

    def log_results(self, results: Results) -> None:
        """Write the pictures, and the row of the HParams page with the best and the test metrics."""
        from torch.utils.tensorboard.summary import hparams

        for name, path in results.pictures.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(name, pixels, results.epoch, dataformats="HWC")
        for summary in hparams(self._parameters, results.metrics):
            self._writer.file_writer.add_summary(summary)
        self._write(results.metrics, results.epoch)

    def finish(self, status: str) -> None:
        """Close the file."""
        self._writer.close()

    @property
    def experiment(self) -> Any:
        """Return the `SummaryWriter`."""
        return self._writer


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
