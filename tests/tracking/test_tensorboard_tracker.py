"""Test `finetune.tracking.tensorboard_tracker` on its files, read with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finetune.tracking.tensorboard_tracker import TensorBoardTracker
from finetune.tracking.tracker import Results
from tests.tracking.conftest import Train
from tests.tracking.helpers import make_tracked_run
from tests.tracking.test_mlflow_tracker import rows_of

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def scalars_of(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def hparams_of(events: Any) -> dict[str, Any]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = {}
    for name, content in events.PluginTagToContent("hparams").items():
        data = HParamsPluginData()
        data.ParseFromString(content)
        found[name.rpartition("/")[2]] = data
    return found


def test_a_run_is_in_its_files_as_in_its_folder(train_run: Train, capfd: pytest.CaptureFixture[str]) -> None:
    folder = train_run("mine", "logger=tensorboard", "seed=3")
    events = read(folder / "tensorboard")
    rows = rows_of(folder)
    for name in ("train/loss", "val/acc", "lr/head"):
        expected = [(int(row["epoch"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]
        assert scalars_of(events, name) == expected
    for name in ("curves", "confusion_matrix", "samples"):
        (event,) = events.Images(name)
        drawn = Image.open(folder / "plots" / f"{name}.png").convert("RGB")
        kept = Image.open(io.BytesIO(event.encoded_image_string))
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(drawn))
    metrics = json.loads((folder / "metrics.json").read_text())
    hparams = hparams_of(events)
    values = hparams["session_start_info"].session_start_info.hparams
    assert (values["model.name"].string_value, values["seed"].number_value) == ("squeezenet1_1", 3)
    assert values["strategy"].string_value == "feature_extract"
    named = {info.name.tag for info in hparams["experiment"].experiment.metric_infos}
    assert "best/val/acc" in named
    assert named <= set(events.Tags()["scalars"])
    assert scalars_of(events, "best/val/acc") == [(2, pytest.approx(metrics["best"]["val/acc"], rel=1e-6))]
    (text,) = events.Tensors("run/text_summary")
    assert "| model | squeezenet1_1 |" in text.tensor_proto.string_val[0].decode()
    assert not events.Tags()["graph"]
    assert f"Tracking  tensorboard --logdir {folder / 'tensorboard'}\n" in capfd.readouterr().out


def test_a_resumed_run_has_all_epochs_in_its_own_folder(train_run: Train) -> None:
    first = train_run("first", "logger=tensorboard", "trainer.max_epochs=1", "report=false")
    second = train_run("second", f"resume={first}", "trainer.max_epochs=3", "report=false")
    expected = [(int(row["epoch"]), pytest.approx(float(row["val/loss"]), rel=1e-6)) for row in rows_of(second)]
    assert scalars_of(read(second / "tensorboard"), "val/loss") == expected
    assert len(expected) == 3


def test_a_folder_that_has_the_run_already_is_gone_on_with(tmp_path: Path) -> None:
    run = make_tracked_run(tmp_path / "a")
    tracker = TensorBoardTracker(str(tmp_path))
    assert tracker.start(run) == 0
    tracker.finish("stopped")
    assert TensorBoardTracker(str(tmp_path)).start(run) is None


def test_the_folder_is_named_by_three_keys(tmp_path: Path) -> None:
    assert TensorBoardTracker(str(tmp_path)).folder == tmp_path / "tensorboard"
    assert TensorBoardTracker(str(tmp_path), name="a", version="b").folder == tmp_path / "a" / "b"


def test_the_graph_is_written_where_it_is_asked_for(train_run: Train) -> None:
    folder = train_run("mine", "logger=tensorboard", "logger.graph=true", "report=false")
    events = read(folder / "tensorboard")
    assert events.Tags()["graph"]
    assert any("classifier" in node.name for node in _nodes(events))


def _nodes(events: Any) -> Any:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    graph.ParseFromString(events.Graph().SerializeToString())
    return graph.node


def test_a_network_that_cannot_be_traced_raises_here(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not today")

    tracker = TensorBoardTracker(str(tmp_path), graph=True)
    tracker.start(make_tracked_run(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="not today"):
        tracker.log_graph(Strange(), torch.zeros(1, 3, 8, 8))
    tracker.finish("failed")


def test_parameters_that_are_no_plain_values_are_text(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(str(tmp_path))
    run = make_tracked_run(tmp_path / "a")
    run.config.update({"none": None, "yes": True, "rate": 0.5, "names": ["a", "b"]})
    tracker.start(run)
    tracker.log_results(Results({"best/val/acc": 0.5}, 4))
    tracker.finish("finished")
    values = hparams_of(read(tmp_path / "tensorboard"))["session_start_info"].session_start_info.hparams
    assert values["none"].string_value == "None"
    assert values["yes"].number_value == 1  # as torch writes it
    assert values["rate"].number_value == 0.5
    assert values["names"].string_value == '["a", "b"]'
