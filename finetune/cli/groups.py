"""Name the options of each Hydra config group."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from finetune.io.paths import CONF
from finetune.models.specs import FAMILIES


def group_options(group: str) -> list[str]:
    """Return the names of the options of a config group, sorted."""
    names = {path.stem for path in (CONF / group).glob("[!_]*.yaml")}
    return sorted(names | set(FAMILIES) if group == "model" else names)


def register_models() -> None:
    """Add the user's own families to Hydra's `model` group; each model of the table has a file there.

    Those are files and not nodes of Hydra's ConfigStore: a node would be taken as the schema of a `model/resnet18.yaml`
    that another application has in the same process, and stop that one.
    """
    for name in FAMILIES:
        if not (CONF / "model" / f"{name}.yaml").exists():
            _register_model(name, "_base", name)


def register_prefixed_models(overrides: Sequence[str]) -> None:
    """Add the options that overrides name as `model=LIBRARY:NAME` to Hydra's `model` group.

    `model=timm:NAME` is short for `model=timm model.name=NAME`, and several can be swept over.
    """
    for override in overrides:
        key, _, values = override.partition("=")
        for library, name in re.findall(r"(\w+):([\w.]+)", values) if key == "model" else ():
            if (CONF / "model" / f"{library}.yaml").exists():
                _register_model(f"{library}:{name}", library, name)


@functools.cache
def _register_model(option: str, base: str, name: str) -> None:
    from hydra.core.config_store import ConfigStore  # here: the classes work without hydra

    ConfigStore.instance().store(group="model", name=option, node={"defaults": [base, "_self_"], "name": name})
