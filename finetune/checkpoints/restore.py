"""Write checkpoints atomically, and rebuild modules from them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.overrides import TorchFunctionMode

from finetune.checkpoints.format import Checkpoint
from finetune.checkpoints.heads import StoredHead
from finetune.checkpoints.metadata import CheckpointMetadata, DataRecord
from finetune.io.files import write_file
from finetune.runtime import process
from finetune.runtime.console import echo, field_line

NETWORK = "backbone."
"""Begins the names of the network's tensors."""

M = TypeVar("M", bound=LightningModule)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, sync, and rename, so that a crash or a full disk leaves the previous checkpoint whole.

    Lightning's own writes into the temporary folder and copies, which can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all."""
        write_file(Path(path), lambda file: torch.save(checkpoint, file))


class _SkipInit(TorchFunctionMode):
    """Make torch.nn.init do nothing: a network of 100 million weights takes seconds to draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def rebuild(cls: type[M], checkpoint: Checkpoint, path: str | Path, strict: bool, changes: Mapping[str, Any]) -> M:
    """Build a module from a checkpoint, without drawing random weights that the stored ones replace.

    Args:
        cls: the module's class.
        checkpoint: what `read_checkpoint` returned.
        path: of the file, for errors.
        strict: False keeps the constructor's tensors where the stored ones have another shape, and those of the head for
            classes that the checkpoint has not; see `StoredHead`.
        changes: arguments of the constructor in place of the stored ones.

    Raises:
        ValueError: the module that the file describes cannot be built.
    """
    arguments = {**checkpoint.arguments, **changes}
    takes = signature(cls.__init__).parameters
    if all(p.kind is not Parameter.VAR_KEYWORD for p in takes.values()):
        arguments = {k: v for k, v in arguments.items() if k in takes or k in changes}
    try:
        with _SkipInit() if strict else contextlib.nullcontext():
            module = cls(**arguments)
        if "classes" in changes:
            _check_classes(module, checkpoint, strict, changes)
        if strict:
            module.load_state_dict(checkpoint.state_dict)
        else:
            _load_what_fits(module, checkpoint, Path(path))
    # a file can describe anything, and torch can raise anything from it
    except Exception as error:
        text = "; ".join(f"{line.strip():.200}" for line in str(error).splitlines()[:4])
        if "Unexpected key(s)" in text:
            text += "; was it saved by a subclass? Load it with that class."
        raise ValueError(f"{path} cannot be rebuilt: {text or type(error).__name__}") from error
    return module


def metadata_for(checkpoint: Checkpoint, classes: Sequence[str], strict: bool) -> CheckpointMetadata:
    """Return what a checkpoint says, without the labels and results of its own classes where a module has others.

    Labels are positions among the classes; loaded strictly, classes may have other names but not other positions.
    """
    metadata = checkpoint.metadata
    if strict or list(classes) == checkpoint.model.classes:
        return metadata
    data = DataRecord(loader=metadata.data.loader)
    return replace(metadata.without_measurements(), data=data, run=None)


def _check_classes(module: Any, checkpoint: Checkpoint, strict: bool, changes: Mapping[str, Any]) -> None:
    """Refuse classes that would get the rows, or the weights in the loss, of others."""
    old, new = checkpoint.model.classes, list(module.classes)
    moved = any(old.index(name) != i for i, name in enumerate(new) if name in old)
    if strict and (moved or len(old) != len(new)):
        raise ValueError(f"it is for the classes {old}: with others, strict=False keeps the rows of those that stay")
    if not strict and old != new and checkpoint.model.class_weights is not None and "class_weights" not in changes:
        raise ValueError("it has class weights for its own classes: give class_weights=... for the new ones, or None")


def _load_what_fits(module: Any, checkpoint: Checkpoint, path: Path) -> None:
    """Load the tensors whose shapes fit, and say which of the trunk stay new; of other classes, load the head by name."""
    own, state = module.state_dict(), checkpoint.state_dict
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    last_layers = module.family.last_layers
    parts = tuple(f"{NETWORK}{part}." for part in (*module.family.new, *last_layers))
    new = [k for k in own if k.startswith(NETWORK) and k not in fitting and not k.startswith(parts)]
    if new and process.is_first_process():
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        text = f"{len(new)} trunk tensors have another shape in {path}, or are not there, and stay new: "
        echo(field_line("Note", f"{text}{', '.join(new[:3])}{more}."))
    if list(module.classes) == checkpoint.model.classes:
        module.load_state_dict(fitting, strict=False)
        return
    module.load_state_dict({k: v for k, v in fitting.items() if not k.startswith(parts)}, strict=False)
    heads = {k.removeprefix(NETWORK): v for k, v in state.items() if k.startswith(parts)}
    StoredHead(checkpoint.model.classes, heads, path).take_over(module.backbone, last_layers, module.classes)
