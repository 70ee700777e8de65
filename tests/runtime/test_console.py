"""Test `finetune.runtime.console`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from finetune.runtime import console


def test_field_line_wraps_at_80_columns_and_breaks_no_path() -> None:
    path = "/data/" + "x" * 90
    lines = console.field_line("Data", f"{path} and " + "some more words that have to be wrapped " * 3).splitlines()
    assert lines[0] == f"Data      {path}"
    assert all(line.startswith(" " * 10) and len(line) <= 80 for line in lines[1:])
    assert console.field_line("Empty", "") == "Empty     "


def test_printable_escapes_what_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert console.printable("K\xe4fer") == "K\\xe4fer"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert console.printable("K\xe4fer") == "K\xe4fer"
    assert console.printable("raw\udcff.png") == "raw\\udcff.png"  # a byte of a file name that is no text


def test_print_table_shows_names_that_look_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table("Classes", ["class", "images", "note"], [["[red]cat[/red]", "8", "[/]"], ["dog", "12", ""]])
    title, header, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert title.rstrip() == "Classes"
    assert header.split() == ["class", "images", "note"]
    assert first.split() == ["[red]cat[/red]", "8", "[/]"]
    assert first.index("8") == second.index("2")  # numbers end in one column


def test_progress_bar_gives_all_items_and_prints_nothing_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(console.progress_bar(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_echo_link_is_the_bare_path_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("/runs") / ("very long " * 12) / "report.html"
    console.echo_link("Report", path)
    assert capsys.readouterr().out == f"Report    {path}\n"  # on one line, to be copied


def test_paths_below_the_current_folder_are_shown_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    console.echo_link("Report", tmp_path / "work" / "runs" / "report.html")
    assert capsys.readouterr().out == "Report    runs/report.html\n"
    assert console.short_path(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert console.short_path(f"{tmp_path}/work2") == f"{tmp_path}/work2"
    assert console.short_path("CIFAR100") == "CIFAR100"


def test_quiet_shows_a_note_once_and_nothing_else_and_the_log_has_all(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    note = console.field_line("Note", f"this is said once, {tmp_path}")
    with caplog.at_level("INFO", "finetune"):
        for _ in range(2):
            with console.quiet():
                console.echo("epoch 1/2")
                console.echo(note)
                console.echo_link("See", tmp_path)
                console.print_table("Classes", ["class", "images"], [["cat", "1"]])
    console.echo("and on")
    assert capsys.readouterr().out == f"{note}\nand on\n"
    assert [caplog.messages.count(text) for text in ("epoch 1/2", note, f"See       {tmp_path}")] == [2, 2, 2]


def test_a_command_goes_on_where_its_output_is_no_longer_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with console.unbroken_output():
            print("read")
            assert os.read(reading, 5) == b"read\n"
            os.close(reading)
            for _ in range(3):
                print("not read", flush=True)
        assert sys.stdout is stream


def test_a_broken_pipe_of_something_else_is_still_an_error() -> None:
    with pytest.raises(BrokenPipeError), console.unbroken_output():
        raise BrokenPipeError
