"""Test `finetune.cli.groups`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torchvision

from finetune.cli import groups
from finetune.io.paths import CONF
from finetune.models.specs import FAMILIES
from tests.cli.helpers import compose_train


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if i % 8 == 0 else [pytest.mark.slow]) for i, name in enumerate(sorted(FAMILIES))],
)
def test_every_model_is_an_option(name: str) -> None:
    assert compose_train(f"model={name}").model.name == name
    assert name in groups.group_options("model")


def test_every_model_of_torchvision_has_a_file_of_two_lines() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) == 80
    files = {path.stem: path.read_text() for path in (CONF / "model").glob("[!_]*.yaml")}
    files.pop("timm")
    assert files == {name: f"defaults: [_base, _self_]\nname: {name}\n" for name in names}


def test_plain_hydra_composes_what_lies_in_conf(tmp_path: Path) -> None:
    """In a process that has run no command."""
    code = (
        "import finetune, hydra\n"
        f"with hydra.initialize_config_dir({str(CONF)!r}, version_base='1.3'):\n"
        "    cfg = hydra.compose('train', ['model=convnext_tiny', 'data.root=photos'])\n"
        "print(cfg.model.name, cfg.data.root)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "convnext_tiny photos\n", done.stderr


def test_another_application_has_models_of_the_same_names(tmp_path: Path) -> None:
    groups.register_models()
    (tmp_path / "model").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [{model: resnet18}]\n")
    (tmp_path / "model" / "resnet18.yaml").write_text("depth: 18\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert hydra.compose("main") == {"model": {"depth": 18}}
