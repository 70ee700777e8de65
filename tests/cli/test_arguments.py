"""Test `finetune.cli.arguments`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli.arguments import quote_paths


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("data.root=my photos", 'data.root="my photos"'),
        ("data.root=a=b,c(d)[e]", 'data.root="a=b,c(d)[e]"'),
        ("model.weights=größe/猫.pth", 'model.weights="größe/猫.pth"'),
        ("ckpt_path=it's", 'ckpt_path="it\'s"'),
        ('data.root=say "a"', 'data.root="say \\"a\\""'),
        ("hydra.run.dir=out/x", 'hydra.run.dir="out/x"'),
        ("paths.data_dir=/d", 'paths.data_dir="/d"'),
        ("+data.root=x", '+data.root="x"'),
        ("ckpt_path=null", "ckpt_path=null"),
        ("data.root=", "data.root="),
        ('data.root="done"', 'data.root="done"'),
        ("hydra.run.dir=a/${now:%Y}", "hydra.run.dir=a/${now:%Y}"),
        ("model=resnet18", "model=resnet18"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_quote_paths(given: str, quoted: str) -> None:
    assert quote_paths([given]) == [quoted]


def test_quote_paths_expands_home_and_keeps_choices_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["data.root=~/photos"]) == ['data.root="/home/me/photos"']
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", "data.root=a,b"]
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", 'data.root="a,b"']


def test_quote_paths_moves_flags_to_the_front() -> None:
    assert quote_paths(["a=1", "--config-dir", "x y", "b=2", "-m"]) == ["--config-dir", "x y", "-m", "a=1", "b=2"]
