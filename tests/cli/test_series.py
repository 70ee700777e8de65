"""Test `finetune.cli.series`."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.progress import Progress

from finetune.cli.series import EpochCounter, clear_folders, format_command, run_series


def test_formatted_command_says_the_same_to_a_shell_in_lines_of_80_columns() -> None:
    words = [*(f"key_{i}=a value, {i}" for i in range(20)), "x" * 90, "last=${seed}"]
    typed = format_command(["printf", "%s\n", *words])
    shell = subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == words
    assert [len(line) for line in typed.splitlines() if len(line) > 80] == [4 + 90 + 2]  # the long word, alone


def test_series_runs_each_command_and_prints_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> None:
        print("epoch 1/1  train loss 1.0000")
        seen.append(words)

    run_series(run, {"a": ["x=1"], "b": ["x=2"]}, {"a": 1, "b": 3}, runs=1)
    assert seen == [["x=1", "sweep.verbose=true"], ["x=2", "sweep.verbose=true"]]
    assert "loss" not in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_moves_on_the_terminal_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def run(words: Sequence[str]) -> None:
        print("epoch 1/2  train loss 1.0000")
        end = time.monotonic() + 5
        while "50%" not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.02)
        assert "a name" in terminal.getvalue()
        assert "50%" in terminal.getvalue()

    run_series(run, {"a name": []}, {"a name": 1}, runs=1)
    assert "loss" not in terminal.getvalue()


def test_folder_that_is_not_of_a_demonstration_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty, and not of a demonstration; --out FOLDER takes another"):
        clear_folders(tmp_path, ["scratch"])
    assert (tmp_path / "scratch" / "thesis.txt").read_text() == "precious"


def test_earlier_demonstration_is_replaced(tmp_path: Path) -> None:
    clear_folders(tmp_path / "demo", ["scratch"])
    (tmp_path / "demo" / "scratch" / "0").mkdir(parents=True)
    (tmp_path / "demo" / "notes.txt").write_text("of the reader")
    clear_folders(tmp_path / "demo", ["scratch"])
    assert (tmp_path / "demo" / "notes.txt").read_text() == "of the reader"
    assert list((tmp_path / "demo" / "scratch").iterdir()) == []


def test_bar_is_full_when_every_run_has_told_of_its_epochs() -> None:
    bar = Progress(disable=True)
    counter = EpochCounter(bar, 2 * 1 + 2 * 4)
    for share in (1, 4):
        counter.begin("a name", share)
        for _ in range(2):
            for epoch in (1, 2, 3):
                print(f"epoch {epoch}/3  train loss 1.0000 acc 0.5000  0.1 s", file=counter)
            print("Time      epoch 3/3 is told of once", file=counter)
    assert bar.tasks[0].completed == pytest.approx(10)
