"""Test `finetune.io.tensors`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from finetune import load
from finetune.io import tensors
from finetune.io.tensors import read_tensors


@pytest.mark.parametrize("new_format", [True, False])
def test_read_tensors_gives_what_torch_saved(new_format: bool, tmp_path: Path) -> None:
    content = {"weight": torch.arange(6.0).view(2, 3), "epoch": 3, "names": ["a", {"b": None}]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new_format)  # before torch 1.6 without
    found = read_tensors(tmp_path / "w.pth")
    assert torch.equal(found.pop("weight"), content.pop("weight"))  # type: ignore[arg-type]
    assert found == content


def test_read_tensors_gives_what_safetensors_saved(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {"a": torch.arange(4.0).half(), "b": torch.ones(2, 2, dtype=torch.int64)}
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    found = read_tensors(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in weights.items())


def test_read_tensors_of_nothing_or_of_a_single_tensor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth: there is no such file"):
        read_tensors(tmp_path / "none.pth")
    torch.save(torch.zeros(3), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds a Tensor, not a state dict"):
        read_tensors(tmp_path / "w.pth")


def test_read_tensors_finds_a_flipped_bit_that_torch_does_not(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(bytes(4000)) + 2000] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    assert torch.load(tmp_path / "w.pth", weights_only=True)["weight"].count_nonzero() == 1
    with pytest.raises(ValueError, match=r"the checksum of \S+ in it is wrong"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off", bytes(range(256)) * 9])
@pytest.mark.parametrize("name", ["w.pth", "w.ckpt", "w.safetensors"])
def test_read_tensors_of_another_file_is_one_clear_error(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} .*(cannot be read|is damaged)"):
        tensors.read_tensors(tmp_path / name)


def test_read_tensors_of_a_zip_of_another_kind(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "w.ckpt", "w", compression) as archive:
            archive.writestr("word/document.xml", "<xml/>" * 100)
        with pytest.raises(ValueError, match=r"w\.ckpt \(\d+ bytes\) cannot be read"):
            load(tmp_path / "w.ckpt")
