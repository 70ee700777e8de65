"""Run the benchmarks in miniature."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_gpu_runs_in_miniature_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    sizes = ["--images", "12", "--models", "resnet18", "--batch", "4", "--size", "32", "--epochs", "2"]
    load("gpu").main([*sizes, "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [r["what"] for r in rows] == ["full fine-tuning", "feature extraction, one pass"]
    assert all(r["files"] > 0 and r["tensors"] > 0 for r in rows)
    assert "| resnet18 | full fine-tuning |" in capsys.readouterr().out
