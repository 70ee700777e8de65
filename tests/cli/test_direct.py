"""Test `finetune.cli.direct`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import finetune
from finetune.cli.direct import hydra_task
from finetune.cli.errors import INTERRUPTED, SOME_FAILED, TERMINATED, Exit

Seen = list[tuple[Any, Any]]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compose(*words: str) -> DictConfig:
    return finetune.compose(["data.root=.", "hydra.run.dir=out", *words], "check")


def test_function_gets_its_own_keys_within_the_state_of_hydra(tmp_path: Path) -> None:
    @hydra_task("check")
    def task(cfg: DictConfig) -> list[Any]:
        """Look."""
        node = HydraConfig.get()
        return [
            "hydra" in cfg,
            cfg.data.root,
            node.runtime.output_dir,
            list(node.overrides.task),
            node.runtime.choices["data"],
        ]

    cfg = compose("data=csv")
    cfg.data.root = tmp_path
    assert (task.__name__, task.__doc__) == ("task", "Look.")
    assert task(cfg) == [False, str(tmp_path), str(tmp_path / "out"), ['data.root="."', "data=csv"], "csv"]
    assert not HydraConfig.initialized()
    assert "hydra" in cfg  # the caller's is not changed


def test_choices_of_a_configuration_without_its_record_are_not_known() -> None:
    task = hydra_task("check")(lambda cfg: HydraConfig.get().runtime.choices.get("model"))
    assert task(compose()) == "resnet18"
    plain = OmegaConf.masked_copy(compose(), ["phash_threshold", "report", "model", "data", "paths"])
    assert task(plain) is None
    assert not list(Path("runs/check").glob("*/.hydra"))


def test_function_within_an_application_is_called_as_it_is() -> None:
    @hydra_task("check")
    def inner(cfg: DictConfig) -> tuple[Any, str]:
        return cfg, HydraConfig.get().runtime.output_dir

    @hydra_task("check")
    def outer(cfg: DictConfig) -> tuple[bool, str]:
        seen, folder = inner(cfg)
        return seen is cfg, Path(folder).name

    assert outer(compose()) == (True, "out")


@pytest.mark.parametrize(
    ("code", "expected", "match"),
    [(INTERRUPTED, KeyboardInterrupt, "^go on with resume=$"), (TERMINATED, SystemExit, f"^{TERMINATED}$")],
)
def test_a_signal_is_pythons_own_error(code: int, expected: type[BaseException], match: str) -> None:
    def task(cfg: DictConfig) -> None:
        raise Exit("go on with resume=", code)

    with pytest.raises(expected, match=match):
        hydra_task("check")(task)(compose())
    assert not HydraConfig.initialized()


def test_what_was_done_but_for_some_inputs_is_returned_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    def task(cfg: DictConfig) -> int:
        raise Exit("1 of 2 failed", SOME_FAILED, 7)

    assert hydra_task("check")(task)(compose()) == 7
    assert capsys.readouterr().out == "Note      1 of 2 failed\n"


def test_errors_of_the_configuration_are_sentences_and_others_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^Key 'gone' is not in struct"):
        hydra_task("check")(lambda cfg: cfg.gone)(compose())
    with pytest.raises(ZeroDivisionError, match="division"):
        hydra_task("check")(lambda cfg: 1 / 0)(compose("hydra.run.dir=other"))
    assert "ZeroDivisionError" in Path("other/check.log").read_text()
    assert capsys.readouterr() == ("", "")


def test_a_sweep_is_not_resumed_from_python(tmp_path: Path) -> None:
    record = {"hydra": {"runtime": {"cwd": str(tmp_path)}, "overrides": {"task": ["seed=0,1"]}}}
    OmegaConf.save(OmegaConf.create(record), tmp_path / "multirun.yaml")
    with pytest.raises(ValueError, match=r"^resume=.* asks for several runs"):
        finetune.compose([f"resume={tmp_path}"])


@pytest.mark.parametrize("word", ["sweep=optuna", "sweep=grid", "sweep/space=head"])
def test_name_of_a_sweep_is_refused_where_one_run_is_asked_for(word: str) -> None:
    with pytest.raises(ValueError, match=f"{word} asks for several runs"):
        finetune.compose([word])
