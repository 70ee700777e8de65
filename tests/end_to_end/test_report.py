"""Run `finetune.report`: numbers, doubts, images, and that a browser shows the page."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import compare, report
from finetune.reporting import runs, saliency

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its report; read only."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(trained, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report.main([str(folder)])
    return folder


class _Links(HTMLParser):
    """What a page would fetch, the text that it shows, and the tags that stand open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action") and tag != "a"]
        self.scripts += sum(k.startswith("on") for k, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> _Links:
    """A page, parsed."""
    links = _Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


# --- the page ----------------------------------------------------------------------------------------------------


def test_report_is_one_file_without_scripts(page: Path) -> None:
    found = read(page / "report.html")
    assert found.scripts == 0
    # url(#...) and #... point into the page itself
    assert [f for f in found.fetched if not f.startswith(("data:", "#"))] == []
    assert re.findall(r"url\((?!#)", (page / "report.html").read_text()) == []
    assert "@import" not in (page / "report.html").read_text()


def test_report_says_what_metrics_json_says(page: Path) -> None:
    text = " ".join(" ".join(read(page / "report.html").text).split())
    found = json.loads((page / "metrics.json").read_text())
    correct = round(found["best"]["val/acc"] * 12)
    assert f"{correct} of 12 correct: {100 * correct / 12:.1f}" in text
    assert "Always predicting" in text
    assert "95 % interval" in text
    assert found["command"] in text
    assert f"ckpt={page}" in text
    assert "torchvision" in text
    assert "strategy: " in text  # the configuration
    assert re.search(r"head 2 1,539 0.03 epoch 1", text)


def test_report_images_are_whole(page: Path) -> None:
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', (page / "report.html").read_text())
    assert len(shown) >= 16
    for data in shown:
        Image.open(BytesIO(base64.b64decode(data))).load()


def test_report_writes_suspicious_labels(page: Path) -> None:
    lines = (page / "suspicious_labels.csv").read_text().splitlines()
    assert lines[0] == "path,label,suggested,probability_of_label,probability_of_suggested"


def test_report_names_the_file_whose_label_is_wrong(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    predictions = runs.read_run(trained).predictions
    assert predictions is not None
    sure = np.where(np.eye(3)[predictions.labels] == 1, 0.94, 0.03)
    sure[5] = [0.02, 0.02, 0.96]  # the second dog
    path = tmp_path / "run/checkpoints/best.npz"
    np.savez(path, probabilities=sure, labels=predictions.labels, keys=predictions.keys)
    report.main([str(tmp_path / "run")])
    lines = (tmp_path / "run/suspicious_labels.csv").read_text().splitlines()[1:]
    assert lines == ["val/dog/01.png,dog,emu,0.0200,0.9600"]
    assert "val/dog/01.png" in (tmp_path / "run/report.html").read_text()


def test_report_without_its_images_has_its_numbers(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    stored = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    stored["finetune"]["data"]["root"] = str(tmp_path / "gone")
    torch.save(stored, tmp_path / "run/checkpoints/best.ckpt")
    report.main([str(tmp_path / "run")])
    assert "Without images: 12 of the run's 12 val images are not at" in " ".join(capsys.readouterr().out.split())
    assert "of 12 correct" in (tmp_path / "run" / "report.html").read_text()
    report.main([str(tmp_path / "run"), "--root", str(photos)])
    good = (tmp_path / "run" / "report.html").read_text()
    assert good.count("<img") >= 16
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path / "run")])  # does not take the images away again
    assert stop.value.code == 2
    assert (tmp_path / "run" / "report.html").read_text() == good
    assert "is left as it is" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["checkpoints/best.npz", "checkpoints/best.ckpt"])
def test_report_makes_do_without(missing: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    report.main([str(tmp_path / "run")])
    assert "of 12 correct" in (tmp_path / "run" / "report.html").read_text()


def test_report_of_no_run_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_report_of_a_damaged_run_exits_2(
    content: bytes, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/checkpoints/best.npz").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


def test_report_of_a_best_epoch_without_validation_says_so(
    photos: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=squeezenet1_1", "model.weights=none", "data=imagefolder", f"data.root={photos}", "report=true"]
    words += ["data.image_size=32", "trainer=cpu", "trainer.check_val_every_n_epoch=2", "monitor=train/loss"]
    folder, code = command("train", *words, "trainer.max_epochs=1")
    assert code == 0
    assert "was not validated" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "checkpoints" / "best.npz").exists()


def test_report_of_some_of_the_batches_counts_those(photos: Path, command: Any) -> None:
    words = ["model=squeezenet1_1", "model.weights=none", "data=imagefolder", f"data.root={photos}", "report=true"]
    words += ["data.image_size=32", "trainer=cpu", "+trainer.limit_val_batches=1", "data.batch_size=8"]
    folder, code = command("train", *words, "trainer.max_epochs=1")
    assert code == 0
    assert " of 8 correct" in (folder / "report.html").read_text()
    assert len(runs.read_run(folder).predictions or []) == 3
    assert runs.read_run(folder).n_evaluated == 8


def test_report_shows_names_as_they_are(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    found["classes"] = ["<b>cat</b>", "$d_o^g$", "e&mu"]
    (tmp_path / "run/metrics.json").write_text(json.dumps(found))
    report.main([str(tmp_path / "run")])
    html = (tmp_path / "run/report.html").read_text()
    assert "<b>cat</b>" not in html
    assert "&lt;b&gt;cat&lt;/b&gt;" in html
    assert "$d_o^g$" in html
    assert "e&amp;mu" in html


def test_train_ends_with_a_report(photos: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=squeezenet1_1", "model.weights=none", "data=imagefolder", f"data.root={photos}", "report=true"]
    folder, code = command("train", *words, "data.image_size=32", "trainer=cpu", "trainer.max_epochs=1")
    assert code == 0
    assert read(folder / "report.html").scripts == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"Report    {folder.name}/report.html" in printed
    end = printed[[line.startswith("Best") for line in printed].index(True) :]
    assert len(end) <= 8


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "check", "compare"])
def test_pages_in_a_browser(name: str, page: Path, photos: Path, tmp_path: Path, command: Any, width: int) -> None:
    source = page / "report.html"
    if name == "compare":
        shutil.copytree(page, tmp_path / "two" / "a")
        shutil.copytree(page, tmp_path / "two" / "b")
        compare.main([str(tmp_path / "two")])
        source = tmp_path / "two" / "compare.html"
    if name == "check":
        folder, _ = command("check", f"data.root={photos}", "report=true")
        source = folder / "check.html"
    probe = """<script>
    const errors = [];
    addEventListener('error', e => errors.push(String(e.message || e.target.src).slice(0, 99)), true);
    addEventListener('securitypolicyviolation', e => errors.push(e.blockedURI));
    addEventListener('load', async () => {
      const images = [...document.images], made = await Promise.allSettled(images.map(i => i.decode()));
      const asked = performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));
      const wide = Math.max(0, document.documentElement.scrollWidth - innerWidth);
      const failed = made.filter(m => m.status != 'fulfilled').length;
      document.body.textContent = 'FOUND' + JSON.stringify({images: images.length, failed, asked, errors, wide}) + 'END';
    });</script></head>"""
    (tmp_path / "copy.html").write_text(source.read_text().replace("</head>", probe, 1))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "copy.html").as_uri()]
    for _ in range(3):  # on a busy machine Chromium gives the page back before it has run
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)}
        )
        if results := re.findall(r"FOUND({.*})END", done.stdout):
            break
    found = json.loads(results[-1])
    assert found.pop("images") >= {"report": 16, "check": 18, "compare": 0}[name]
    assert found == {"failed": 0, "asked": [], "errors": [], "wide": 0}
    assert "CONSOLE" not in done.stderr


def test_report_without_captum_says_how_to_have_maps(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(saliency, "available", lambda: False)
    report.main([str(tmp_path / "run")])
    assert "finetune-lightning[inspect]" in capsys.readouterr().out
    assert "<img" in (tmp_path / "run/report.html").read_text()
