"""Test `finetune.reporting.label_issues`."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.reporting import label_issues


def test_label_issues_are_images_surely_of_another_class() -> None:
    sure, unsure = [0.95, 0.03, 0.02], [0.45, 0.30, 0.25]
    rows = np.array([sure, sure, unsure, sure[::-1], sure[::-1], sure])
    found = label_issues.find_label_issues(rows, np.array([0, 0, 0, 2, 2, 2]))
    assert [(s.position, s.label, s.suggested) for s in found] == [(5, 2, 0)]
    assert found[0].suggested_probability == pytest.approx(0.95)


def test_label_issues_do_not_suggest_a_class_without_images() -> None:
    assert label_issues.find_label_issues(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 0])) == []
