"""Test `finetune.runtime.suggestions`."""

from __future__ import annotations

import pytest

from finetune.models.specs import FAMILIES
from finetune.runtime.suggestions import closest_matches, require_known, unknown_name


def test_closest_matches_are_as_many_as_asked_for_and_the_best_comes_first() -> None:
    known = ["resnet18", "resnet34", "resnet50", "alexnet"]
    assert closest_matches("ResNet_34", known, n=1) == ["resnet34"]
    assert set(closest_matches("resnet35", known)) == {"resnet18", "resnet34", "resnet50"}
    assert closest_matches("qqqq", known) == []


def test_unknown_name_says_what_is_near_and_what_to_do() -> None:
    text = unknown_name("optimizer", "sdg", ["sgd", "adamw"], "See --help.")
    assert text == "There is no optimizer 'sdg'. The nearest is sgd. See --help."


def test_unknown_name_lists_six_where_nothing_is_near() -> None:
    text = unknown_name("colour", "zzz", (word * 4 for word in "abcdefgh"))
    assert text == "There is no colour 'zzz'. There is, for example, aaaa, bbbb, cccc, dddd, eeee, ffff."


@pytest.mark.parametrize(
    ("word", "best"), [("ResNet-18", "resnet18"), ("vit_b16", "vit_b_16"), ("mobilenetv3_small", "mobilenet_v3_small")]
)
def test_nearest_ignores_case_and_separators(word: str, best: str) -> None:
    assert closest_matches(word, FAMILIES)[0] == best


def test_a_value_that_is_none_of_the_known_ones_is_refused_with_the_nearest() -> None:
    require_known("data.layout", "splits", ("auto", "splits"))
    with pytest.raises(ValueError, match=r"There is no data\.layout 'split'\. The nearest is splits"):
        require_known("data.layout", "split", ("auto", "splits"))
