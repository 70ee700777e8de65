"""Test `finetune.cli.loggers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from finetune.cli.compose import compose, without_hydra
from finetune.cli.loggers import describe_run, make_loggers
from finetune.tracking.tracked_run import keep_ids


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Compose as a command does, with Hydra's own configuration set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    before = HydraConfig.instance().cfg

    def go(*words: str, mode: RunMode = RunMode.RUN) -> Any:
        cfg = compose("train", ["data=imagefolder", "data.root=pets", *words])
        cfg.hydra.mode, cfg.hydra.sweep.dir = mode, str(tmp_path / "night")
        cfg.hydra.runtime.output_dir = str(tmp_path / "run")
        HydraConfig.instance().set_config(cfg)
        return without_hydra(cfg)

    yield go
    HydraConfig.instance().cfg = before


def test_the_default_has_none(composed: Any, tmp_path: Path) -> None:
    assert make_loggers(composed(), tmp_path, "resnet18") == []


def test_several_are_made_with_their_values(composed: Any, tmp_path: Path) -> None:
    for name in ("mlflow", "tensorboard"):
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    cfg = composed("logger=[csv,tensorboard,mlflow]", "logger.mlflow.experiment_name=pets")
    made = make_loggers(cfg, tmp_path / "run", "resnet18")
    assert sorted(logger.name for logger in made) == ["MLflow", "TensorBoard"]
    by_name: dict[str, Any] = {logger.name: logger.tracker for logger in made}
    assert by_name["MLflow"].experiment_name == "pets"
    assert by_name["TensorBoard"].folder == tmp_path / "run" / "tensorboard"


def test_a_run_is_described_by_its_choices(composed: Any, tmp_path: Path) -> None:
    run = describe_run(composed("strategy=finetune", "model=resnet34"), tmp_path / "runs" / "a", "resnet34")
    assert run.tags == {"model": "resnet34", "strategy": "finetune", "data": "pets"}
    assert (run.name, run.sweep, run.resumed) == ("a", None, None)
    assert run.config["optimizer"]["lr"] == 0.001


def test_a_point_of_a_sweep_knows_its_sweep(composed: Any, tmp_path: Path) -> None:
    cfg = composed(mode=RunMode.MULTIRUN)
    run = describe_run(cfg, tmp_path / "night" / "3", "resnet18")
    assert (run.sweep, run.name) == (tmp_path / "night", "night/3")


def test_a_resumed_run_knows_the_folder_of_the_one_before(composed: Any, tmp_path: Path) -> None:
    last = tmp_path / "before" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    for given in (last, tmp_path / "before"):
        run = describe_run(composed(f"ckpt_path='{given}'"), tmp_path / "after", "resnet18")
        assert run.resumed == tmp_path / "before"
        point = describe_run(
            composed(f"ckpt_path='{given}'", mode=RunMode.MULTIRUN), tmp_path / "night" / "3", "resnet18"
        )
        assert point.resumed is None  # all points would write into one and the same run


def test_a_point_that_goes_on_in_its_own_folder_keeps_its_ids(composed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "night" / "3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    keep_ids(folder, "mlflow", {"run_id": "1"})
    run = describe_run(composed(f"ckpt_path='{folder}'", mode=RunMode.MULTIRUN), folder, "resnet18")
    assert run.find_ids("mlflow") == {"run_id": "1"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": "subprocess.Popen"}, r"subprocess\.Popen is not allowed"),
        ({"_target_": "torch.nn.Linear"}, r"torch\.nn\.Linear is not a Tracker or Logger"),
        (
            {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "a", "foo": 1},
            "unexpected keyword argument 'foo'",
        ),
    ],
)
def test_what_is_no_logger_is_refused(composed: Any, tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    cfg = composed()
    cfg.logger = OmegaConf.create({"own": spec})
    with pytest.raises(ValueError, match=message):
        make_loggers(cfg, tmp_path, "resnet18")


def test_a_logger_of_the_users_without_its_package_is_refused(
    composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError("No module named 'comet_ml'")

    monkeypatch.setattr(CSVLogger, "__init__", make)
    cfg = composed()
    cfg.logger = OmegaConf.create({"own": {"_target_": "lightning.pytorch.loggers.CSVLogger"}})
    with pytest.raises(
        ValueError, match=r"logger=own needs a package that is not installed \(No module named 'comet_ml'\)"
    ):
        make_loggers(cfg, tmp_path, "resnet18")
