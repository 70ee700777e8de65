"""Help the tests of `finetune.cli`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig


def compose_train(*overrides: str) -> DictConfig:
    return hydra.compose("train", list(overrides))
