"""Write checkpoints atomically, and rebuild modules from them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.overrides import TorchFunctionMode

from finetune.checkpoints.format import Checkpoint
from finetune.io.files import write_file

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
        strict: False keeps the constructor's tensors where the stored ones have another shape.
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
        state = checkpoint.state_dict
        if not strict:
            own = module.state_dict()
            state = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        module.load_state_dict(state, strict=strict)
    # a file can describe anything, and torch can raise anything from it
    except Exception as error:
        text = "; ".join(line.strip() for line in str(error).splitlines()[:4])
        raise ValueError(f"{path} cannot be rebuilt: {text or type(error).__name__}") from error
    return module
