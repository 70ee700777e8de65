from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from finetune.models import specs
from finetune.models.specs import FAMILIES, Family, find_family, register
from finetune.runtime.suggestions import closest_matches


def test_families_import_no_torch() -> None:
    code = "import sys, finetune.models.specs, finetune.io.paths, finetune.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_find_family_unknown_name_gives_nearest_three_and_command() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet19'.*resnet18.*finetune\.models"):
        find_family("resnet19")
    assert len(closest_matches("resnet19", FAMILIES)) == 3


@pytest.mark.parametrize(
    ("word", "best"), [("ResNet-18", "resnet18"), ("vit_b16", "vit_b_16"), ("mobilenetv3_small", "mobilenet_v3_small")]
)
def test_nearest_ignores_case_and_separators(word: str, best: str) -> None:
    assert closest_matches(word, FAMILIES)[0] == best


def test_register_adds_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "FAMILIES", dict(FAMILIES))
    register(
        Family(("mynet",), head="1", feature_boundary="1", build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    )
    assert find_family("mynet").head == "1"


def test_register_refuses_a_taken_name_and_a_family_without_build() -> None:
    with pytest.raises(ValueError, match="already has resnet18"):
        register(Family(("resnet18",), head="fc", feature_boundary="fc", build=nn.Identity))
    with pytest.raises(ValueError, match="needs build="):
        register(Family(("mynet",), head="fc", feature_boundary="fc"))
