"""Test `finetune.models`, the list of models as a command."""

from __future__ import annotations

import pytest

from finetune.models import __main__
from finetune.models.candidates import matching_names
from finetune.models.specs import FAMILIES


def test_models_table_has_all_eighty_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("81 models")  # those of torchvision, and the one whose weights come in a package
    assert max(map(len, lines)) <= 80
    shown = {line.split()[0] for line in lines[2:82]}
    assert shown == set(FAMILIES)
    assert lines[82].startswith("timm:tf_efficientnet")
    assert lines[82].split()[-1] == "package"
    assert next(line for line in lines if line.startswith("resnet18 ")).split()[1:6] == [
        "11.7",
        "M",
        "224",
        "69.8",
        "fc",
    ]


@pytest.mark.parametrize(("pattern", "expected"), [("resnet18", 1), ("vit_b_??", 2), ("vgg*_bn", 4), ("googlenet", 1)])
def test_models_patterns(pattern: str, expected: int) -> None:
    assert len(matching_names(pattern)) == expected


def test_models_nothing_matches_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(["resnt19"])
    assert stop.value.code == 2
    assert "The nearest are resnet" in capsys.readouterr().err
