"""Test `finetune.cli.groups`."""

from __future__ import annotations

import pytest

from finetune.cli import groups
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
