"""Test `finetune.cli.key_comments`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from finetune.cli import key_comments
from finetune.io.paths import CONF

COMMANDS = ["train", "check", "evaluate", "predict", "export", "rank"]

GROUPS = [
    "callbacks",
    "data",
    "logger",
    "loss",
    "metrics",
    "model",
    "optimizer",
    "paths",
    "scheduler",
    "strategy",
    "sweep",
]


def test_a_comment_goes_on_below_itself_and_nowhere_else() -> None:
    text = (
        "# the file\n"
        "a: 1      # one\n"
        "          # goes on\n"
        "# another matter\n"
        "b:\n"
        "  c: '#'  # two # three\n"
        "  d: x#y\n"
        "list:     # items\n"
        "- {e: 1}  # an item's\n"
        "  # and below\n"
        "f: {g: 1}   # of all of f\n"
    )
    assert key_comments.read_comments(text) == {
        "a": "one goes on",
        "b.c": "two # three",
        "list": "items",
        "f": "of all of f",
    }
    assert key_comments.read_header(text) == "the file"


def test_the_package_of_a_file_says_where_its_keys_are() -> None:
    assert key_comments.prefix_of("# @package _global_\na: 1", "sweep") == ""
    assert key_comments.prefix_of("# @package data\naugment: auto", "data/augment") == "data."
    assert key_comments.prefix_of("a: 1", "sweep/space") == "sweep.space."


def test_the_chosen_option_counts_then_what_all_have_then_another() -> None:
    chosen = key_comments.key_comments("train", {"strategy": "frozen_lr0", "scheduler": "cosine"})
    assert "no gradients to look at" in chosen["strategy.cache"]
    assert "epochs of linear warm-up" in chosen["scheduler.warmup"]  # which constant.yaml says
    assert "auto computes features" in key_comments.key_comments("train", {"strategy": "finetune"})["strategy.cache"]


def test_files_of_the_users_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "top.yaml").write_text("groups: []\nmine: 1   # of my own\n")
    comments = key_comments.key_comments("train", {"strategy": "top"}, [tmp_path])
    assert comments["strategy.mine"] == "of my own"


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_has_a_comment(command: str) -> None:
    cfg = compose(command, return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    comments = key_comments.key_comments(command, choices)
    keys = [key for _, key in key_comments.iterate_keys(OmegaConf.to_yaml(cfg)) if key]
    sections = {key.rpartition(".")[0] for key in keys}
    assert [key for key in keys if key not in comments and key not in sections] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_option_has_a_comment(group: str) -> None:
    for file in sorted((CONF / group).glob("*.yaml")):
        text = file.read_text()
        prefix = key_comments.prefix_of(text, group)
        comments = key_comments.key_comments("train", {group: file.stem})
        keys = [key for line, key in key_comments.iterate_keys(text) if key and not line.rstrip().endswith(":")]
        missing = [k for k in keys if prefix + k not in comments and not k.endswith("_target_")]
        assert [k for k in missing if k.split(".")[0] not in ("defaults", "hydra")] == [], file.name
