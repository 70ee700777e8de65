"""Test `finetune.cli.main`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from finetune import __version__
from finetune.cli import main


def test_console_names_the_nearest_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "trian"])
    with pytest.raises(SystemExit) as stop:
        main.console_script()
    assert stop.value.code == 2
    assert "no command 'trian'. The nearest are train" in capsys.readouterr().err


def test_console_runs_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "models", "resnet18"])
    main.console_script()
    assert "11.7 M" in capsys.readouterr().out


def test_console_help_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "--help"])
    with pytest.raises(SystemExit) as stop:
        main.console_script()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name:<10}{meaning}\n" in said for name, meaning in main.COMMANDS.items())
    assert max(map(len, said.splitlines())) <= 90


def test_every_command_is_a_module() -> None:
    for name in main.COMMANDS:
        assert importlib.util.find_spec(f"finetune.{name}") is not None


@pytest.mark.parametrize(
    "words", [["-m", "finetune", "--version"], ["-m", "finetune", "models", "resnet18"], ["-m", "finetune", "--help"]]
)
def test_the_package_is_a_command_and_loads_no_torch_for_it(words: list[str]) -> None:
    code = f"import runpy, sys; sys.argv = ['finetune', *{words[2:]!r}]\ntry: runpy.run_module('finetune', run_name='__main__')\nexcept SystemExit: pass"
    code += "\nprint('torch' in sys.modules)" if "models" not in words else ""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"--version": f"finetune {__version__}", "models": "11.7 M", "--help": "usage: finetune"}[
        words[2]
    ] in done.stdout
    assert "True" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["check", "data.root=photos"],
        ["rank", "data.root=photos", "models=[resnet18]"],
        ["train", "data=imagefolder", "data.root=photos"],
        ["train", "data=imagefolder", "data.root=photos", "model=timm:resnet18"],
        ["evaluate", "ckpt=best.ckpt"],
        ["predict", "ckpt=best.ckpt", "source=photos"],
        ["export", "ckpt=best.ckpt", "format=state_dict"],
        ["report", "run"],
        ["compare", "run", "run"],
        ["soup", "run", "run"],
        ["models", "resnet18"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_a_command_says_that_it_works_before_torch_is_imported(words: list[str], tmp_path: Path) -> None:
    if missing := [p for p in ("timm", "skimage") if (p in words[-1] or "demo" in words) and not find_spec(p)]:
        pytest.skip(f"needs {missing}")
    (tmp_path / "photos" / "ants").mkdir(parents=True)
    (tmp_path / "best.ckpt").touch()
    torch = tmp_path / "broken" / "torch" / "__init__.py"
    torch.parent.mkdir(parents=True)
    torch.write_text("import os; os.write(1, b'[torch]'); os._exit(7)")
    environ = {**os.environ, "PYTHONPATH": str(torch.parents[1]), "FINETUNE_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "finetune", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"finetune {__version__}: loading PyTorch ...\n[torch]"
