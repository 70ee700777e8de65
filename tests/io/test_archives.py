"""Test `finetune.io.archives`; what is unpacked and what is refused, see `tests/data/test_archive_root.py` too."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.io import archives
from tests.io.test_download import zip_of


@pytest.mark.parametrize("name", ["photos.rar", "photos.7z", "photos.tar.zst", "labels.csv.gz"])
def test_other_archives_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an archive of a kind that is not read .*unpack it"):
        archives.is_archive(tmp_path / name)
    assert not archives.is_archive(tmp_path / "labels.csv")


def test_measure_is_the_size_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"a/1": bytes(1000), "b/2": b"xyz"}))
    assert archives.measure(tmp_path / "a.zip") == 1003


def test_extract_writes_the_files_and_nothing_of_a_damaged_archive(tmp_path: Path) -> None:
    content = zip_of({"a/1": b"one" * 99, "b/2": b"two" * 99})
    (tmp_path / "a.zip").write_bytes(content)
    archives.extract(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "b" / "2").read_bytes() == b"two" * 99
    at = content.index(b"b/2") + 3  # the second file's compressed bytes
    (tmp_path / "a.zip").write_bytes(content[:at] + b"\xff\xff\xff" + content[at + 3 :])
    with pytest.raises(archives.DamagedArchiveError, match=r"a\.zip is not a whole zip file"):
        archives.extract(tmp_path / "a.zip", tmp_path / "again")
    assert not (tmp_path / "again").exists()
