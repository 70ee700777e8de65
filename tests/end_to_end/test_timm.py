"""Run every command on a network of timm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import FineTuner
from finetune.cli.compose import compose
from finetune.cli.groups import register_prefixed_models
from tests.end_to_end.helpers import (
    Command,
    RunUntil,
    assert_same_run,
    metrics_rows,
    read_metrics,
    read_table,
)

pytest.importorskip("timm")

WORDS = ("model=timm:test_vit", "model.weights=none", "data=imagefolder", "data.image_size=32", "data.num_workers=0",
         "data.batch_size=8", "trainer=cpu", "optimizer.lr=0.01", "report=false")  # fmt: skip


def composed(*words: str) -> dict[str, Any]:
    register_prefixed_models(words)  # as a command does before all else
    return dict(compose("train", words).model)


def test_short_and_long_form_are_the_same() -> None:
    short, long = composed("model=timm:resnet10t"), composed("model=timm", "model.name=resnet10t")
    assert short == long
    assert (short["library"], short["name"]) == ("timm", "resnet10t")
    assert composed("model=timm:resnet10t.c3_in1k", "model.weights=none")["name"] == "resnet10t.c3_in1k"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=timm:resnett10t"], "no model of timm 'resnett10t'. The nearest are resnet10t"),
        (["model=timm", "model.name=resnett10t"], "no model of timm 'resnett10t'. The nearest are resnet10t"),
        (["model=timm:resnet10t.c3_in1"], "no tag of timm's resnet10t 'c3_in1'. The nearest is c3_in1k"),
        (["model=tim:resnet10t"], "'tim:resnet10t'"),
        (["model=resnet10t"], "those of timm are model=timm:NAME"),
        (["model=timm:test_vit", "model.weights=defaul"], "'defaul'"),
        (["model=timm:test_vit", "model.optionz={drop_rate: 0.1}"], "optionz"),
        (["model=timm:test_vit", "model.options={num_classes: 3}"], "num_classes, which is no option here"),
        (["model=timm:test_vit", "model.options={img_size: 64}", "data.image_size=32"], "say one"),
    ],
)
def test_what_is_wrong_with_a_model_of_timm_is_one_line(
    words: list[str], message: str, photos: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    size = [] if any("image_size" in w for w in words) else ["data.image_size=32"]
    rest = ["data=imagefolder", f"data.root={photos}", "data.num_workers=0", "trainer=cpu", *size]
    weights = [] if any("weights" in w for w in words) else ["model.weights=none"]
    _, code = command("train", *words, *rest, *weights)
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a ViT with options; read only."""
    from finetune import train

    folder = tmp_path_factory.mktemp("runs") / "timm"
    options = "model.options={drop_path_rate: 0.1, global_pool: avg}"
    train.main([*WORDS, f"data.root={photos}", options, "trainer.max_epochs=2", f"hydra.run.dir={folder}"])
    return folder


def test_a_run_says_what_it_trained(run: Path) -> None:
    assert len(metrics_rows(run)) == 2
    module = FineTuner.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    backbone: Any = module.backbone
    assert module.model_name == "timm:test_vit"
    assert backbone.global_pool == "avg"
    assert backbone.blocks[5].drop_path1.drop_prob == pytest.approx(0.1)
    assert module.preprocess.size == 32
    assert read_metrics(run)["model"] == "timm:test_vit"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_evaluate_predict_and_export_need_the_checkpoint_alone(
    run: Path, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm: Any = pytest.importorskip("timm")

    def fetched(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", fetched)
    ckpt = f"ckpt={run / 'checkpoints' / 'best.ckpt'}"
    folder, code = command("evaluate", ckpt)
    assert code == 0
    assert json.loads((folder / "evaluation.json").read_text())["as_in_the_run"]["same"] is True
    folder, code = command("predict", ckpt, f"source={photos}/val")
    assert code == 0
    assert len(read_table(folder / "predictions.csv")) == 12
    folder, code = command("export", ckpt, "format=state_dict")
    assert code == 0
    arguments = {"num_classes": 3, "img_size": 32, "global_pool": "avg"}
    network = timm.create_model("test_vit", **arguments)
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=True)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(run_until: RunUntil) -> None:
    words = ["model=timm:test_vit", "model.options={drop_path_rate: 0.2}", "strategy=finetune", "trainer.max_epochs=2"]
    whole = run_until(*words)
    half = run_until(*words, stop=(1, 1), code=143)
    assert_same_run(whole, run_until(f"resume={half}"))


def test_a_finished_run_is_resumed_for_more_epochs(run: Path, tmp_path: Path, command: Command) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    folder, code = command("train", f"resume={copy}", "trainer.max_epochs=3")
    assert code == 0
    assert [row["epoch"] for row in metrics_rows(folder)] == ["1", "2", "3"]


@pytest.mark.slow
def test_networks_of_both_libraries_are_swept_over(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS[1:], f"data.root={photos}", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    _, code = command("train", "-m", "model=resnet18,timm:test_resnet", *words)
    assert code == 0
    rows = read_table(tmp_path / "sweep" / "leaderboard.csv")
    assert sorted(row["run"] for row in rows) == ["model=resnet18", "model=timm:test_resnet"]


@pytest.mark.slow
def test_a_typo_in_a_sweep_is_told_and_does_not_take_the_other_run(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS[1:], f"data.root={photos}", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    _, code = command("train", "-m", "model=timm:test_resnet,timm:resnett10t", *words)
    assert code == 2
    assert "no model of timm 'resnett10t'. The nearest are resnet10t" in capsys.readouterr().err
    assert len(list((tmp_path / "sweep").rglob("metrics.json"))) == 1


def test_a_sweep_over_both_libraries_is_composed() -> None:
    names = [composed(f"model={name}")["name"] for name in ("resnet18", "timm:resnet10t", "timm:test_vit.r160_in1k")]
    assert names == ["resnet18", "resnet10t", "test_vit.r160_in1k"]


# --- without timm ------------------------------------------------------------------------------------------------


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    import importlib.util
    import sys

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "timm" else find_spec(n, *a))
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)


EXTRA = "pip install 'finetune-lightning[timm]'"


@pytest.mark.usefixtures("without_timm")
@pytest.mark.parametrize("name", ["train", "models", "evaluate", "predict", "export", "finetuner", "load"])
def test_without_timm_one_sentence_names_the_extra(
    name: str, run: Path, photos: Path, command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = run / "checkpoints" / "best.ckpt"
    if name in ("finetuner", "load"):
        with pytest.raises(ValueError, match=r"timm:NAME need the package timm.*finetune-lightning\[timm\]"):
            FineTuner("timm:test_vit", 3) if name == "finetuner" else FineTuner.load_from_checkpoint(ckpt)
        return
    if name == "models":
        from finetune.models import __main__

        with pytest.raises(SystemExit) as stop:
            __main__.main(["timm:*"])
        code = int(stop.value.code or 0)
    else:
        words = {"train": [*WORDS, f"data.root={photos}"], "predict": [f"ckpt={ckpt}", f"source={photos}/val"]}
        _, code = command(name, *words.get(name, [f"ckpt={ckpt}"]))
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert EXTRA in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error


@pytest.mark.usefixtures("without_timm")
def test_without_timm_the_rest_of_the_table_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.models import __main__

    __main__.main([])
    assert capsys.readouterr().out.startswith("80 models")
    with pytest.raises(ValueError, match="no model 'resnet10t'"):
        FineTuner("resnet10t", 3, weights="none")
