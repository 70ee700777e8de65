"""Test `finetune.inference.prediction`."""

from __future__ import annotations

import pytest
import torch

from finetune.inference import prediction


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("../../up", "_.._up"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "_"),
        ("", "_"),
        ("  x. ", "x"),
        ("a?b*", "a_b_"),
    ],
)
def test_folder_name_leads_nowhere_else(label: str, name: str) -> None:
    assert prediction.folder_name(label) == name


def test_gallery_keeps_the_most_and_the_least_certain() -> None:
    gallery = prediction.Gallery()
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for value in torch.randperm(100).tolist():
        gallery.add(value / 100, f"{value}", image)
    assert sorted(int(entry[2]) for entry in gallery._most) == list(range(92, 100))
    assert sorted(int(entry[2]) for entry in gallery._least) == list(range(8))
