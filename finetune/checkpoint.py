"""Files of tensors: written whole or not at all, read without running what they say, and self-describing."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.overrides import TorchFunctionMode

from finetune import config

M = TypeVar("M", bound=LightningModule)
FORMAT = 2
"""Of our checkpoints. 1 had no `finetune` entry: neither the held-out files nor how the run was validated."""
ABOUT = "finetune"
"""The entry that makes a checkpoint ours, beside Lightning's own."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a crash or a full disk leaves the checkpoint before it whole.

    Lightning's own goes through the temporary folder and copies, which can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        _write(Path(path), lambda file: torch.save(checkpoint, file))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    _write(path, lambda file: file.write(content))


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: Path) -> None:
    """Write a table whole or not at all. File names that are no text come out as they are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a .npz file whole or not at all."""
    _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    with source.open("rb") as content:
        _write(target, lambda file: shutil.copyfileobj(content, file))


def write_json(values: dict[str, Any], path: Path) -> None:
    """Indented JSON; NaN becomes null, which every reader knows."""
    plain = json.loads(json.dumps(values), parse_constant=lambda _: None)
    write_atomically(path, (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = sys.exception()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")  # containers share numbers
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # torch.save answers what happens within, Ctrl-C or a full disk, with an error of its own about its archive
        cause = error
        while (
            isinstance(cause, Exception) and not cause.__suppress_context__ and cause.__context__ not in (None, outside)
        ):
            cause = cause.__context__
        if isinstance(cause, OSError) and cause.errno in config.NO_PLACE:
            raise OSError(cause.errno, _no_place(cause, path), str(path)) from error
        if cause is not error:
            raise cause from error
        raise


def _no_place(error: OSError, path: Path) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    kept = "; what was there before is whole" if path.exists() else ""
    return f"{error.strerror}: {free:,.0f} MiB are free in {path.parent}{kept}"


# --- reading -----------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, Any]:
    """A weights file or checkpoint as plain data and tensors; code in it is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(
                "A .safetensors file needs the package safetensors: pip install 'finetune-lightning[export]'"
            ) from error
        try:
            return dict(load_file(path))
        # safetensors has an exception of its own, and its headers can fail in other ways too
        except Exception as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        _check_archive(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    # a damaged file can raise anything from EOFError to struct.error inside torch
    except Exception as error:
        reason = _why(error)
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a file of tensors and plain data: {reason}. "
            "It is damaged, of another kind, or holds code, which is never run."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a state dict; save model.state_dict() instead.")
    return data


def _why(error: Exception) -> str:
    """In a few words, and without torch's advice to load the file anyway."""
    text = str(error).strip()
    if "Weights only load failed" in text:
        found = re.search(r"Unsupported \w+: GLOBAL (\S+)|Unsupported class (\S+)", text)
        named = next((name for name in found.groups() if name), "") if found else ""
        return f"it asks for code ({named})" if named else "torch did not write it"
    if "PytorchStreamReader" in text or "central directory" in text:
        return "a part of it is missing or broken"
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")


def _check_archive(path: Path) -> None:
    """Torch does not notice a flipped byte; the archive that it writes has a checksum of every part."""
    if not zipfile.is_zipfile(path):
        return  # as torch wrote before 1.6, or no file of torch's: torch.load will say
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is a compressed archive, which torch does not write")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {part} in it is wrong")


def read(path: str | Path) -> dict[str, Any]:
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
    path = config.checkpoint_path(path)
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
    about = data.get(ABOUT)
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
    return {**data, ABOUT: about}


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


class _NoDrawing(TorchFunctionMode):
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
        with _NoDrawing() if strict else contextlib.nullcontext():
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
