"""Make checkpoints that are damaged in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.helpers import save_small_checkpoint


def save_changed_checkpoint(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A checkpoint with something changed in it."""
    save_small_checkpoint(path)
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    torch.save(content, path)
    return path


def deleting(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def setting(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change
