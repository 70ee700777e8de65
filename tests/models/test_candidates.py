"""Test `finetune.models.candidates`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.io import download
from finetune.models import candidates
from finetune.models.candidates import Candidate, default_candidates, parse_candidates
from finetune.models.packaged_weights import PACKAGED, PackagedWeights
from finetune.models.torchvision_library import cached_weights, find_weights


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("resnet18", [("resnet18", "default")]),
        (["resnet18", "resnet50", "resnet18"], [("resnet18", "default"), ("resnet50", "default")]),
        (["squeezenet1_1@a@b/c.pth", "resnet18"], [("squeezenet1_1", "a@b/c.pth"), ("resnet18", "default")]),
        (["squeezenet*@none"], [("squeezenet1_0", "none"), ("squeezenet1_1", "none")]),
        (
            ["timm:tf_efficientnet_lite[01]"],
            [("timm:tf_efficientnet_lite0", "default"), ("timm:tf_efficientnet_lite1", "default")],
        ),
        (["no_such*", "other:name"], [("no_such*", "default"), ("other:name", "default")]),
    ],
)
def test_names_patterns_and_weights_are_told_apart(models: str | list[str], expected: list[tuple[str, str]]) -> None:
    assert parse_candidates(models, "default") == [Candidate(*pair) for pair in expected]


def put_weights(name: str) -> None:
    path = cached_weights(find_weights(name, "default"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network, and no weights on this machine; the addresses that were tried."""
    addresses: list[str] = []

    def is_reachable(url: str) -> bool:
        addresses.append(url)
        return False

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(PackagedWeights, "find", lambda self: None)
    monkeypatch.setattr(download, "is_reachable", is_reachable)
    return addresses


def test_defaults_range_over_the_cost() -> None:
    found = [find_weights(name, "default").meta for name in candidates.DEFAULT_MODELS]
    operations = [meta["_ops"] for meta in found]
    assert max(operations) > 10 * min(operations)
    assert max(meta["num_params"] for meta in found) > 20 * min(meta["num_params"] for meta in found)


def test_defaults_are_taken_with_a_network(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "is_reachable", lambda url: True)
    found, note = default_candidates("default")
    assert ([c.model for c in found], note) == (list(candidates.DEFAULT_MODELS), "")


def test_without_a_network_those_whose_weights_are_here_are_taken(asked: list[str]) -> None:
    put_weights("resnet34")
    put_weights("resnet18")
    found, note = default_candidates("default")
    assert found == [Candidate("resnet18", "default"), Candidate("resnet34", "default")]
    assert "the 2 backbones of torchvision and of packages whose weights are on this machine" in note
    assert asked == [find_weights("squeezenet1_1", "default").url]


def test_nobody_is_asked_where_all_weights_are_here(asked: list[str]) -> None:
    for name in candidates.DEFAULT_MODELS:
        put_weights(name)
    assert [c.model for c in default_candidates("default")[0]] == list(candidates.DEFAULT_MODELS)
    assert [c.weights for c in default_candidates("none")[0]] == ["none"] * len(candidates.DEFAULT_MODELS)
    assert asked == []


def test_without_any_weights_it_says_what_to_do(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"No pretrained weights are on this machine.*models=\[squeezenet1_1@FILE"
    ) as error:
        default_candidates("default")
    assert str(tmp_path / "checkpoints") in str(error.value)


def test_without_a_network_weights_in_a_package_are_taken(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackagedWeights, "find", lambda self: tmp_path)
    assert default_candidates("default")[0] == [Candidate(name, "package") for name in PACKAGED]
