"""Test `python -m finetune.demo`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from finetune import demo, predict

TINY = (
    "model=squeezenet1_1", "model.weights=none", "data.image_size=32", "data.per_class=1", "trainer=cpu",
    "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1",
)  # fmt: skip

pytestmark = pytest.mark.slow  # a minute and a half where the machine is busy; `make demo` runs the whole of it

NAMES = ("frozen", "lp_ft", "scratch")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demonstration of a tiny network, in a folder of an awkward name: the folder, and what was printed."""
    for package in demo.PACKAGES:
        pytest.importorskip(package)
    out, printed = tmp_path_factory.mktemp("demo") / "my demo, a=1", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(demo, "SEEDS", 2)
        demo.demo(["--out", str(out), *TINY])
    return out, printed.getvalue()


def accuracies(out: Path, name: str) -> list[float]:
    return [json.loads((out / name / seed / "metrics.json").read_text())["last"]["val/acc"] for seed in "01"]


def test_summary_has_the_means_of_the_runs(shown: tuple[Path, str]) -> None:
    out, _ = shown
    summary = json.loads((out / "summary.json").read_text())
    for name in NAMES:
        first, second = accuracies(out, name)
        assert summary[name] == pytest.approx((first + second) / 2)
        assert [run["acc"] for run in summary["runs"][name]] == [first, second]
    assert (summary["n_train"], summary["n_val"], summary["chance"]) == (8, 192, 0.125)
    assert summary["seconds"] > 0


def test_terminal_shows_each_command_one_table_and_the_page(shown: tuple[Path, str]) -> None:
    out, printed = shown
    assert "epoch 1/1" not in printed  # which is in the train.log of each run
    assert printed.count("$ python -m finetune.train -m") == 3
    for name in NAMES:
        first, second = (round(192 * acc) for acc in accuracies(out, name))
        assert f" {first}, {second} " in printed
    assert printed.splitlines()[-1] == f"See       {out / 'index.html'}"


def test_page_is_one_file_of_six_pictures_with_every_number(shown: tuple[Path, str]) -> None:
    out, _ = shown
    page = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'class="step">(\d)', page) == ["1", "2", "3", "4", "5", "6"]
    assert "<script" not in page
    addresses = re.findall(r'(?:src|url)[=(]"?([^")]+)', page)
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links == [f"{name}/{seed}/report.html" for name in NAMES for seed in "01"]
    for link in links:
        assert (out / link).is_file()
    for name in NAMES:
        first, second = accuracies(out, name)
        assert f"<b>{50 * (first + second):.1f}\N{NO-BREAK SPACE}%</b>" in page
        assert f"{100 * min(first, second):.1f} to {100 * max(first, second):.1f}\N{NO-BREAK SPACE}%" in page


def test_run_of_the_demonstration_predicts_as_any_other(shown: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = shown
    source = out / "data" / "photos" / "val" / "cat"
    predict.main([f"ckpt={out / 'lp_ft' / '1'}", f"source={source}", f"hydra.run.dir={tmp_path / 'predicted'}"])
    with (tmp_path / "predicted" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 24


def test_each_seed_draws_its_own_images_the_same_for_all_ways_to_train(shown: tuple[Path, str]) -> None:
    out, _ = shown
    first, second = ({(out / name / seed / "split.csv").read_text() for name in NAMES} for seed in "01")
    assert len(first) == len(second) == 1
    assert first != second


def test_missing_packages_are_told_once_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    (tmp_path / "frozen").mkdir()
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("pip install 'finetune-lightning[demo]'") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["frozen"]


@pytest.mark.slow
def test_demonstration_shows_offline_what_pretrained_weights_are_worth(tmp_path: Path) -> None:
    for package in demo.PACKAGES:
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-m", "finetune.demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert min(summary["frozen"], summary["lp_ft"]) > summary["scratch"] + 0.15
    assert summary["scratch"] > summary["chance"]
