"""Train and compose from Python."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import finetune
from finetune import FineTuner, check, evaluate, export, predict, train
from tests.helpers import TINY, write_images

TIMES = ("seconds", "images_per_second")

LEARNS = (*TINY, "model=resnet18", "optimizer=adamw", "optimizer.lr=0.03", "data.augment=none")
"""As the fixture `trained` has it."""


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is run leaves Hydra, the folder and the settings of torch as they were."""
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield
    assert Path.cwd() == tmp_path
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()
    assert torch.get_float32_matmul_precision() == precision


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def test_run_trains_as_the_command_does_and_returns_what_came_of_it(trained: Path, photos: Path) -> None:
    run = finetune.run([*LEARNS, f"data.root={photos}"])
    assert rows_of(run.folder) == rows_of(trained)
    assert {p.name for p in run.folder.iterdir()} == {p.name for p in trained.iterdir()}
    best = max(rows_of(trained), key=lambda row: float(row["val/acc"]))
    assert (run.monitor, run.best) == ("val/acc", float(best["val/acc"]))
    assert {k: run.metrics[k] for k in best} == {k: float(v) for k, v in best.items()}
    assert [row["epoch"] for row in run.history.rows] == [1, 2]
    assert run.test == {}
    assert run.data.classes == ["cat", "dog", "emu"]
    assert isinstance(run.module, FineTuner)
    assert not run.module.training
    stored = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    state = run.module.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert "FineTuner(" not in repr(run)  # for a notebook
    (line,) = finetune.plot_curves([run, trained], ["val/loss"]).axes[0].lines[:1]
    assert list(line.get_ydata()) == [float(row["val/loss"]) for row in rows_of(trained)]  # type: ignore[arg-type]


def test_the_module_has_the_weights_of_the_best_epoch_and_not_of_the_last(photos: Path) -> None:
    run = finetune.run([*TINY, f"data.root={photos}"])
    assert run.metrics["epoch"] == 1
    best, last = (
        torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"][
            "backbone.classifier.1.bias"
        ]
        for name in ("best", "last")
    )
    assert not torch.equal(best, last)
    assert torch.equal(run.module.state_dict()["backbone.classifier.1.bias"], best)
    assert run.module.metadata.validation.epoch == 1


def test_run_has_the_metrics_of_the_test_images(tmp_path: Path) -> None:
    root = write_images(tmp_path / "my photos, a=b", {s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    run = finetune.run([*TINY, f"data.root={root}", "trainer.max_epochs=1"])
    assert run.test == json.loads((run.folder / "metrics.json").read_text())["test"]
    assert {"test/acc", "test/loss"} <= run.test.keys()


def test_two_runs_have_two_folders_and_their_own_logs(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "trainer.max_epochs=1"]
    runs = [finetune.run(words), finetune.run([*words, "--seed=1"])]
    assert runs[0].folder != runs[1].folder
    assert all(run.folder.parent == Path.cwd() / "runs" / "train" for run in runs)
    for run, seed in zip(runs, (0, 1), strict=True):
        assert f"seed: {seed}" in (run.folder / "config.yaml").read_text()
        assert (run.folder / "train.log").read_text().count("epoch 1/1") == 1
    command = json.loads((runs[1].folder / "metrics.json").read_text())["command"]
    typed = [word.replace('"', "") for word in shlex.split(command)]  # paths are quoted, for Hydra
    assert typed == ["python", "-m", "finetune.train", *words, "seed=1"]


def test_run_resumes_a_run_of_its_own(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}"]
    half, whole = finetune.run([*words, "trainer.max_epochs=1"]), finetune.run(words)
    resumed = finetune.run([f"resume={half.folder}", "trainer.max_epochs=2"])
    assert rows_of(resumed.folder) == rows_of(whole.folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("model=resnet18", r"^Give a list of arguments: \[\"model=resnet18\", .*; got 'model=resnet18'\.$"),
        (["model=resnet18", 3], r"^Give a list of arguments: .*; 3 in it is no string\.$"),
        (["modle=resnet18"], r"^There is no key 'modle'\. Did you mean model"),
        (["model=resnet19"], r"^There is no model 'resnet19'|no model 'resnet19'"),
        (["data=imagefolder"], r"^data\.root is missing: give the folder with your images"),
        (["data=imagefolder", "data.root=nowhere"], r"^data\.root=nowhere: there is no such folder or table"),
        (["modle=x", "data.batch_size=0"], r"^2 things are wrong:\n- .*'modle'.*\n- data\.batch_size must be"),
        (["-m", "seed=0,1"], r"^-m asks for several runs, .* in a loop: for value in .*finetune\.run\("),
        (["seed=0,1"], r"^seed=0,1 asks for several runs, .* in a loop"),
        (["seed=range(0,3)"], r"^seed=range\(0,3\) asks for several runs"),
        (["hydra.mode=MULTIRUN"], r"^hydra\.mode=MULTIRUN asks for several runs"),
        (["--cfg", "job"], r"^'--cfg' is a flag of the command line"),
        (["--optimizer.lr", "0.1"], r"^--optimizer\.lr is no flag\. .*: optimizer\.lr=\.\.\.$"),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence_and_leave_nothing(words: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        finetune.run(words)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["modle=x", "data.batch_size=0", "data=imagefolder", "data.root=nowhere"],
        ["resume=gone"],
        ["data.root=photos"],
        ["optimizer.lr=[1"],
        ["model.weights=gone.pth"],
    ],
)
def test_the_sentence_is_that_of_the_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(words)
    told = capsys.readouterr().err
    first = told.removeprefix("error: ").splitlines()[0]
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(first)) as error:
        finetune.run(words)
    assert told == f"error: {error.value}\n"
    assert capsys.readouterr() == ("", "")


def test_files_that_are_not_there_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^resume=gone: there is no run in it"):
        finetune.run(["resume=gone"])
    with pytest.raises(FileNotFoundError, match=r"^config_dir=gone: there is no such folder"):
        finetune.run([], config_dir="gone")


def test_an_error_of_the_run_is_the_callers_and_its_folder_is_claimed_once(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "hydra.run.dir=out", "trainer.max_epochs=1"]
    finetune.run(words)
    with pytest.raises(FileExistsError, match="out holds another run"):
        finetune.run(words)
    with pytest.raises(ValueError, match=r"data\.classes|no class"):
        finetune.run([*words[:-2], "data.classes=[wolf]"])


def test_an_interrupted_run_is_a_keyboard_interrupt_that_says_how_to_go_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        os.kill(os.getpid(), 2)

    monkeypatch.setattr("finetune.training.history.History.on_train_batch_end", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"(?s)^interrupted.*python -m finetune\.train .*resume="):
        finetune.run([*TINY, f"data.root={photos}"])


def test_the_callers_log_gets_no_line_twice_and_stays_open(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.FileHandler(tmp_path / "mine.log", mode="w")
    root = logging.getLogger()
    root.addHandler(handler)
    handlers = list(root.handlers)
    try:
        root.warning("before")
        run = finetune.run([*TINY, f"data.root={photos}", "trainer.max_epochs=1"])
        with pytest.raises(ValueError, match="wolf"):
            finetune.run([*TINY, f"data.root={photos}", "data.classes=[wolf]", "hydra.run.dir=failed"])
        root.warning("after")
        assert root.handlers == handlers
    finally:
        root.removeHandler(handler)
        handler.close()
    assert (tmp_path / "mine.log").read_text() == "before\nafter\n"
    assert "epoch 1/1" in (run.folder / "train.log").read_text()
    assert "Traceback" in Path("failed/train.log").read_text()
    assert capsys.readouterr().out.count("epoch 1/1") == 1


# --- configurations ----------------------------------------------------------------------------------------------


def without_hydra(cfg: DictConfig) -> Any:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    values.pop("hydra", None)
    return values


def test_compose_is_what_the_command_shows_and_hydra_composes() -> None:
    words = ["model=swin_t", "strategy=lp_ft", "scheduler=cosine", "data.root=my photos, a=b"]
    cfg = finetune.compose(words)
    assert cfg.data.root == "my photos, a=b"
    shown = subprocess.check_output([sys.executable, "-m", "finetune.train", *words, "--cfg", "job"], text=True)
    assert without_hydra(cfg) == OmegaConf.to_container(OmegaConf.create(shown), resolve=True)
    with hydra.initialize_config_dir(finetune.conf_dir, version_base="1.3"):
        plain = hydra.compose("train", [*words[:3], "data.root='my photos, a=b'"])
    assert without_hydra(cfg) == without_hydra(plain)
    assert list(Path.cwd().iterdir()) == []


def test_compose_leaves_another_applications_hydra_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert finetune.compose(command="check").phash_threshold == 6
        assert hydra.compose("mine") == {"a": 1}


def test_compose_takes_yaml_files_of_ones_own(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "it's mine" / "strategy").mkdir(parents=True)
    (tmp_path / "it's mine" / "strategy" / "top.yaml").write_text(
        "groups: [{match: '@head'}, {match: '.*', start: null}]"
    )
    run = finetune.run([*TINY, f"data.root={photos}", "strategy=top", "trainer.max_epochs=1"], tmp_path / "it's mine")
    assert run.module.strategy.name == "top"


@pytest.mark.slow
def test_an_application_of_ones_own_trains_in_its_own_folder_and_runs_others_beside(photos: Path) -> None:
    words = [*TINY, "data.root=photos", "trainer.max_epochs=1"]
    Path("photos").symlink_to(photos)
    Path("app.py").write_text(
        "import finetune, hydra\n"
        "from finetune import train\n"
        "@hydra.main(config_path=finetune.conf_dir, config_name='train', version_base='1.3')\n"
        "def app(cfg):\n"
        "    train.train(cfg)\n"
        f"    print('beside', finetune.run([*{words!r}, 'seed=1', 'hydra.run.dir=beside']).folder)\n"
        "    print('own', hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)\n"
        "app()\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py", *words, "model.weights='none'", "hydra.run.dir=mine"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [f"beside {Path.cwd() / 'beside'}", f"own {Path.cwd() / 'mine'}"]
    assert "seed: 0" in Path("mine/config.yaml").read_text()
    assert "seed: 1" in Path("beside/config.yaml").read_text()
    assert len(rows_of(Path("mine"))) == len(rows_of(Path("beside"))) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: finetune.compose([], "trian"), "no command 'trian'"),
        (lambda: finetune.compose(["x=1"], "export"), "no key 'x'"),
        (lambda: train.train(["model=resnet18"]), r"train\.train takes the configuration that finetune\.compose"),  # type: ignore[arg-type]
        (lambda: train.train(finetune.compose(["optimizer.lr=-1"])), r"^optimizer\.lr must be"),
        (lambda: evaluate.evaluate(finetune.compose([], "evaluate")), "^ckpt is missing"),
        (lambda: evaluate.evaluate(finetune.compose([])), "There is no key 'strategy'"),
    ],
)
def test_wrong_configurations_are_answered_in_a_sentence_and_leave_nothing(
    call: Callable[[], object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
    assert list(Path.cwd().iterdir()) == []


def test_train_takes_a_composed_configuration_and_one_that_was_changed(
    trained: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = max(float(row["val/acc"]) for row in rows_of(trained))
    cfg = finetune.compose([*LEARNS, f"data.root={photos}", "hydra.run.dir=same"])
    assert train.train(cfg) == best
    assert rows_of(Path("same")) == rows_of(trained)
    assert "Note      this configuration" not in capsys.readouterr().out
    cfg = finetune.compose([*LEARNS, f"data.root={photos}", "optimizer.lr=0.5", "trainer.max_epochs=7"])
    cfg.optimizer.lr, cfg.trainer.max_epochs, cfg.data.root, cfg.hydra.run.dir = 0.03, 2, photos, "changed"
    assert train.train(cfg) == best
    assert rows_of(Path("changed")) == rows_of(trained)
    assert "Note      this configuration is not that of its arguments" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="there is no run in it"):  # the arguments would train for 7 epochs
        finetune.run(["resume=changed"])


@pytest.mark.slow
def test_the_command_of_a_changed_configuration_repeats_it(photos: Path) -> None:
    cfg = finetune.compose([*TINY, f"data.root={photos}", "trainer.max_epochs=2", "hydra.run.dir=out"])
    cfg.trainer.max_epochs = 1
    train.train(cfg)
    command = shlex.split(json.loads(Path("out/metrics.json").read_text())["command"])
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    (folder,) = Path("runs/train").iterdir()
    assert rows_of(folder) == rows_of(Path("out"))
    assert len(rows_of(folder)) == 1


def test_train_takes_what_plain_hydra_composes(trained: Path, photos: Path) -> None:
    with hydra.initialize_config_dir(finetune.conf_dir, version_base="1.3"):
        cfg = hydra.compose("train", [*LEARNS, f"data.root={photos}"])
        train.train(cfg)
        assert hydra.compose("train").seed == 0
    (folder,) = Path("runs/train").iterdir()
    assert rows_of(folder) == rows_of(trained)


def test_every_command_takes_a_composed_configuration_and_returns_its_result(trained: Path, photos: Path) -> None:
    best = max(float(row["val/acc"]) for row in rows_of(trained))
    ckpt = f"ckpt={trained}"
    assert evaluate.evaluate(finetune.compose([ckpt, "report=false"], "evaluate")) == pytest.approx(best, abs=1e-6)
    table = predict.predict(finetune.compose([ckpt, f"source={photos / 'val'}", "report=false"], "predict"))
    assert len(table.read_text().splitlines()) == 1 + 12
    findings = check.check(finetune.compose([f"data.root={photos}", "report=false"], "check"))
    assert "few" in " ".join(finding.message for finding in findings)
    words = [ckpt, "format=state_dict", f"source={photos / 'val'}"]
    assert 0 <= export.export(finetune.compose(words, "export")) <= 1e-4


def test_images_without_a_prediction_are_a_note_from_python(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no image.png").write_text("no")
    write_images(tmp_path / "some", {"": {"cat": 1}})
    (tmp_path / "some" / "cat" / "broken.png").write_text("no")
    table = predict.predict(finetune.compose([f"ckpt={trained}", "source=some", "report=false"], "predict"))
    assert len(table.read_text().splitlines()) == 1 + 2
    assert "1 of 2 images have no prediction" in capsys.readouterr().out


@pytest.mark.slow
def test_main_returns_what_the_function_returns(trained: Path, photos: Path) -> None:
    words = [*LEARNS, f"data.root={photos}"]
    best = max(float(row["val/acc"]) for row in rows_of(trained))
    assert train.main(words) == best
    values = train.main(["-m", *words, "trainer.max_epochs=1,2"])
    assert values == [float(rows_of(trained)[0]["val/acc"]), best]
    assert train.main([*words, "--cfg", "job"]) is None


@pytest.mark.slow
def test_every_process_of_a_run_has_the_folder_and_the_best_weights(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    Path("script.py").write_text(
        f"import finetune\nrun = finetune.run({words!r})\n"
        "total = sum(float(p.double().sum()) for p in run.module.parameters())\n"
        "print('result', run.folder, total, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300)
    first, second = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("result")]
    assert first == second
    stored = torch.load(Path(first[0]) / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert Path(first[0]).parent == Path.cwd() / "runs" / "train"
    assert float(first[1]) == pytest.approx(sum(float(value.double().sum()) for value in stored.values()))


@pytest.mark.slow
def test_run_works_in_a_notebook(photos: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    words = [*TINY, f"data.root={photos}", "trainer.max_epochs=1"]
    cells = [
        f"import finetune\nruns = [finetune.run({words!r}) for _ in range(2)]",
        "finetune.compose(['model=resnet50']).model.name, len({run.folder for run in runs})",
        "finetune.plot_curves(runs)",
        "import matplotlib.pyplot\nfinetune.plot_curves(runs)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120).execute()
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "('resnet50', 2)"
    for cell in notebook.cells[2:]:
        assert ["image/png" in output["data"] for output in cell.outputs] == [True]
