"""Name the options of each Hydra config group."""

from __future__ import annotations

import functools

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
        _register_model(name)


@functools.cache
def _register_model(name: str) -> None:
    from hydra.core.config_store import ConfigStore  # here: the classes work without hydra

    if not (CONF / "model" / f"{name}.yaml").exists():
        node = {"defaults": ["_base", "_self_"], "name": name}
        ConfigStore.instance().store(group="model", name=name, node=node)
