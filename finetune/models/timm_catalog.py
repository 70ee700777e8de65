"""Ask timm which networks it has, and where their weights are."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from finetune.runtime.process import heavy_imports
from finetune.runtime.suggestions import unknown_name

PREFIX = "timm"
"""Begins the names of timm's networks, before a colon."""


def list_names() -> list[str]:
    """Return the names of timm's architectures, with the prefix; none where timm is not installed."""
    return [f"{PREFIX}:{name}" for name in import_timm().list_models()] if is_installed() else []


def list_tagged_names() -> list[str]:
    """Return the names of timm's architectures with the tags of their weights, with the prefix."""
    return [f"{PREFIX}:{name}" for name in import_timm().list_pretrained()]


def is_installed() -> bool:
    """Return whether timm can be imported, without importing it."""
    return importlib.util.find_spec("timm") is not None


def import_timm() -> Any:
    """Import timm.

    Raises:
        ValueError: it is not installed.
    """
    if not is_installed():
        raise ValueError(
            "Models named timm:NAME need the package timm, which is not installed: pip install 'finetune-lightning[timm]'"
        )
    with heavy_imports():
        import timm
        import timm.data
    return timm


def find_config(name: str) -> Any:
    """Return the `PretrainedCfg` of a name with or without a tag.

    Raises:
        ValueError: timm is not installed, or has no such name.
    """
    timm, bare = import_timm(), name.removeprefix(f"{PREFIX}:")
    architecture, _, tag = bare.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            unknown_name("model of timm", bare, timm.list_models(), "`python -m finetune.models 'timm:*'` lists all.")
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(unknown_name(f"tag of timm's {architecture}", tag, tags, "Without one, it is the first."))
    return timm.get_pretrained_cfg(bare) or timm.models.PretrainedCfg(architecture=architecture)


def cached_file(cfg: Any) -> Path | None:
    """Return the file of weights in the cache of the Hugging Face hub, if it is there."""
    if not cfg.hf_hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    found = [try_to_load_from_cache(cfg.hf_hub_id, name) for name in names]
    return next((Path(path) for path in found if isinstance(path, str)), None)


def require_host(cfg: Any) -> None:
    """Look up the host that weights come from: the hub's own code tries for a minute.

    Raises:
        OSError: there is no such host, as on a machine without a network.
    """
    from huggingface_hub import constants

    url = urlparse(constants.ENDPOINT if cfg.hf_hub_id else cfg.url)
    if not getproxies() and url.hostname:  # a proxy has a look-up of its own
        try:
            socket.getaddrinfo(url.hostname, url.port)
        except OSError as error:
            raise OSError(f"{url.hostname}: {error.strerror or error}") from error
