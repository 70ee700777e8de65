"""Test `finetune.inspection.finding`."""

from __future__ import annotations

import pytest

from finetune.inspection import finding
from finetune.inspection.finding import Finding


@pytest.mark.parametrize(
    ("count", "what", "expected"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (1234, "file", "1,234 files"),
        (2, "class", "2 classes"),
        (3, "copy", "3 copies"),
        (1, "copy", "1 copy"),
    ],
)
def test_count_of_is_plain_english(count: int, what: str, expected: str) -> None:
    assert finding.count_of(count, what) == expected


def test_list_names_says_how_many_more_there_are() -> None:
    assert finding.list_names(["a", "b"]) == "a, b"
    assert finding.list_names(list("abcde"), 3) == "a, b, c and 2 more"
    assert finding.list_names([]) == ""


def test_finding_counts_the_files_of_all_its_groups() -> None:
    found = Finding("duplicates", "note", "Text.", groups=[["a", "b"], ["c"]])
    assert found.files == 3
    values = found.to_dict()
    assert (values["name"], values["files"], values["groups"]) == ("duplicates", 3, [["a", "b"], ["c"]])
