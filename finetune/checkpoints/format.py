"""Read and validate checkpoints of every format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.io import paths
from finetune.io.tensors import read_tensors

FORMAT = 2
"""Of our checkpoints. 1 had no `finetune` entry: neither the held-out files nor how the run was validated."""

METADATA = "finetune"
"""The entry that makes a checkpoint ours, beside Lightning's own."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours, whole and complete, older formats in today's form.

    Returns:
        Lightning's entries (`state_dict`, `hyper_parameters`, ...) and `finetune`: `format`, `versions`, `config`,
        `data` (the root, the held-out images) and `validated` (how, and with what result).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, is not of ours or of a newer format.
    """
    if str(path).startswith(("http://", "https://")):
        raise ValueError(f"{path}: a checkpoint is a file on this machine; download it first.")
    path = paths.checkpoint_path(path)
    data = read_tensors(path)
    hyper, state = data.get("hyper_parameters"), data.get("state_dict")
    if not isinstance(state, Mapping) or not isinstance(hyper, Mapping) or not {"model", "classes"} <= hyper.keys():
        known = isinstance(hyper, Mapping) and {"model", "classes"} <= hyper.keys()
        lacks = "it has no weights in it" if known else "it names no model and no classes"
        raise ValueError(
            f"{path} is not a checkpoint of finetune: {lacks}. "
            f"If it holds a network's weights, start from it with model.weights={path}."
        )
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is damaged: its state_dict is not one of names and tensors.")
    if not isinstance(hyper["model"], str) or not _is_list_of(hyper["classes"], str):
        raise ValueError(f"{path} is damaged: its model and its classes are not names.")
    about = data.get(METADATA)
    about = dict(about) if isinstance(about, Mapping) else {"format": 1}
    if not isinstance(about.get("format"), int) or about["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a newer finetune (format {about.get('format')}, this one knows {FORMAT}): upgrade it."
        )
    for key in ("versions", "config", "data", "validated"):
        about[key] = about[key] if isinstance(about.get(key), Mapping) else {}
    for key, right in (
        ("data", _is_data(about["data"], len(hyper["classes"]))),
        ("validated", _is_validated(about["validated"])),
    ):
        if not right:
            raise ValueError(f"{path} is damaged: what it says under finetune.{key} makes no sense.")
    return {**data, METADATA: about}


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _is_data(data: Mapping[str, Any], classes: int) -> bool:
    splits = data.get("splits", {})
    return (
        all(isinstance(data.get(key), str | None) for key in ("root", "dataset"))
        and isinstance(splits, Mapping)
        and all(isinstance(split, Mapping) and _is_split(split, classes) for split in splits.values())
    )


def _is_split(split: Mapping[str, Any], classes: int) -> bool:
    keys, labels, sizes = (split.get(name) for name in ("keys", "labels", "sizes"))
    return (
        isinstance(keys, list) and isinstance(labels, list)
        and _is_list_of(keys, str) and _is_list_of(labels, int) and len(keys) == len(labels)
        and all(0 <= label < classes for label in labels)
        and (sizes is None or (_is_list_of(sizes, int) and len(sizes) == len(keys)))
    )  # fmt: skip


def _is_validated(validated: Mapping[str, Any]) -> bool:
    kinds = {"epoch": int, "batch_size": int, "precision": str, "device": str, "features_before": str}
    return (
        all(isinstance(validated.get(key), kind | None) for key, kind in kinds.items())
        and validated.get("features_dtype", "float32") in ("float32", "float16")
        and isinstance(validated.get("results", {}), Mapping)
    )
