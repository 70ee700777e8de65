"""Test `finetune.cli.main`."""

from __future__ import annotations

import sys

import pytest

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
    assert (
        "check, rank, train, evaluate, predict, export, report, models, compare, soup, cache, demo"
        in capsys.readouterr().out
    )
