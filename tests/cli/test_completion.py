"""Test `finetune.cli.completion`."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from finetune.cli.completion import SCRIPTS, complete
from finetune.cli.groups import group_options
from finetune.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("finetune", []),
        ("finetune tr", ["train "]),
        ("finetune e", ["evaluate ", "export "]),
        ("finetune train mo", ["model.", "model=", "monitor="]),
        ("finetune train model=resnet1", ["resnet101 ", "resnet152 ", "resnet18 "]),
        ("finetune train model=resnet18 preset=", ["best ", "fast ", "good "]),
        ("finetune train preset=fast strategy=l", ["layer_decay ", "linear_probe ", "lp_ft "]),
        ("finetune train strategy=scratch strategy.de", ["strategy.decay="]),
        ("finetune train loss.class_weights=", ["auto ", "none "]),
        ("finetune train trainer.compile=", ["auto ", "false ", "true "]),
        ("finetune train data/augment=tr", ["trivial "]),
        ("finetune train sweep/space=he", ["head "]),
        ("finetune train nonsense=3 -m mod", ["model.", "model="]),
        ("finetune predict tta=f", ["five_crop ", "flip "]),
        ("finetune predict model", []),  # it takes none
        ("finetune train data.root=my", []),  # a file, which the shell completes
        ("finetune train optimizer.lr=0", []),
        ("finetune compare ru", []),
        ("finetune nonsense mo", []),
        ("", []),
        ("finetune export format=sa", ["safetensors "]),
        ("finetune predict format=", ["csv ", "jsonl ", "parquet "]),
        ("finetune train monitor=val/a", ["val/acc ", "val/auroc "]),
        ("finetune train strategy.solve_head=t", ["true "]),
        ("finetune train +callb", ["+callbacks="]),
        ("finetune train +callbacks=em", ["ema "]),
        ("finetune train callb", []),  # which Hydra does not take without a plus
        ("finetune train -m model=resnet18,resnet5", ["resnet18,resnet50 "]),
        ("finetune train --", ["--cfg ", "--config-dir ", "--help "]),
        ("finetune train --config-dir my", []),  # a folder
        ("finetune predict dat", ["data."]),
        ("finetune cache c", ["clear "]),
    ],
)
def test_the_last_word_is_completed_from_its_equals_sign_on(line: str, expected: list[str]) -> None:
    assert complete(line, COMMANDS) == expected


def test_every_command_and_every_model_is_offered() -> None:
    assert complete("finetune ", COMMANDS) == [f"{name} " for name in COMMANDS]
    assert complete("finetune rank data.root=x trainer=", COMMANDS) == [f"{n} " for n in group_options("trainer")]
    assert complete("finetune train model=", COMMANDS) == sorted(f"{name} " for name in group_options("model"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("finetune train preset=f", "ast "),
        ("finetune ev", "aluate "),
        ("finetune train data.root=my_ph", "otos/"),
        ("cd . && finetune train preset=f", "ast "),
    ],
)
@pytest.mark.parametrize("shell", list(SCRIPTS))
def test_a_shell_completes_with_the_tab_key(shell: str, typed: str, completed: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "my_photos").mkdir()
    command = tmp_path / "finetune"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m finetune "$@"\n')
    command.chmod(0o755)
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "ready> ", "ZDOTDIR": str(tmp_path)}
        words = [shell, "-f"] if shell == "zsh" else [shell, "--norc", "--noprofile"]
        os.execvpe(shell, [*words, "-i"], {**os.environ, **own})
    try:
        os.write(terminal, f'eval "$(finetune --completion {shell})"; echo set "up"\n'.encode())
        read_until(terminal, "set up")
        os.write(terminal, f"{typed}\t".encode())
        read_until(terminal, f"{typed}{completed}")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def read_until(terminal: int, expected: str) -> None:
    """Read what a terminal shows, without its control characters, until it shows a text."""
    shown, end = "", time.monotonic() + 20
    while expected not in re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\x1b[=>]|\r|\x07|\x08", "", shown):
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
