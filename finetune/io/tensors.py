"""Read files of tensors without running code that they may hold."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of weights or a checkpoint as plain data and tensors; refuse code in it.

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
        reason = _explain(error)
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a file of tensors and plain data: {reason}. "
            "It is damaged, of another kind, or holds code, which is never run."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a state dict; save model.state_dict() instead.")
    return data


def _explain(error: Exception) -> str:
    """Explain an error of `torch.load` in a few words, without its advice to load the file anyway."""
    text = str(error).strip()
    if "Weights only load failed" in text:
        match = re.search(r"Unsupported \w+: GLOBAL (\S+)|Unsupported class (\S+)", text)
        requested = next((name for name in match.groups() if name), "") if match else ""
        return f"it asks for code ({requested})" if requested else "torch did not write it"
    if "PytorchStreamReader" in text or "central directory" in text:
        return "a part of it is missing or broken"
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")


def _check_archive(path: Path) -> None:
    """Check the checksums in an archive that torch has written; torch itself does not notice a flipped byte."""
    if not zipfile.is_zipfile(path):
        return  # written by torch before 1.6, or not by torch: torch.load reports that
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is a compressed archive, which torch does not write")
        if (part := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {part} in it is wrong")
