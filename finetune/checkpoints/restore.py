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

from finetune.io.files import write_file

M = TypeVar("M", bound=LightningModule)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a crash or a full disk leaves the checkpoint before it whole.

    Lightning's own goes through the temporary folder and copies, which can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        write_file(Path(path), lambda file: torch.save(checkpoint, file))


class _SkipInit(TorchFunctionMode):
    """Makes torch.nn.init do nothing: a network of 100 million weights takes seconds to draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def rebuild(cls: type[M], stored: Mapping[str, Any], path: str | Path, strict: bool, changes: Mapping[str, Any]) -> M:
    """A LightningModule from what `read` gave, without drawing weights that are overwritten in the next moment.

    Args:
        cls: its class.
        stored: the checkpoint.
        path: for errors.
        strict: False leaves tensors of another shape as the constructor made them.
        changes: arguments of the constructor in place of those that were saved.

    Raises:
        ValueError: what the file says of itself cannot be built.
    """
    # `source` is a record, and whatever the file says, nothing is fetched
    saved = {k: v for k, v in stored["hyper_parameters"].items() if k != "source"}
    arguments = {**saved, **({"weights": "none"} if "weights" in saved else {}), **changes}
    takes = signature(cls.__init__).parameters
    if all(p.kind is not Parameter.VAR_KEYWORD for p in takes.values()):
        arguments = {k: v for k, v in arguments.items() if k in takes or k in changes}
    try:
        with _SkipInit() if strict else contextlib.nullcontext():
            module = cls(**arguments)
        state = stored["state_dict"]
        if not strict:
            own = module.state_dict()
            state = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        module.load_state_dict(state, strict=strict)
    # a file can say anything of itself
    except Exception as error:
        text = "; ".join(line.strip() for line in str(error).splitlines()[:4])
        raise ValueError(f"{path} cannot be rebuilt: {text or type(error).__name__}") from error
    return module
