"""Fixtures for the tests of `finetune.cli`."""

from __future__ import annotations

from collections.abc import Iterator

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from finetune.cli import groups, run_folder
from finetune.io import paths


@pytest.fixture
def hydra_configuration() -> Iterator[None]:
    OmegaConf.register_new_resolver("unique_dir", run_folder.unique_dir, replace=True)
    groups.register_models()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        yield


@pytest.fixture
def hydra_models() -> Iterator[None]:
    OmegaConf.register_new_resolver("unique_dir", run_folder.unique_dir, replace=True)
    groups.register_models()
    yield
    GlobalHydra.instance().clear()
