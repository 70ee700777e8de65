"""Test what is installed: public names, the wheel, the metadata, the documents."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import finetune
from tests.helpers import require_tests

ROOT = Path(__file__).parents[2]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_public_names_are_there() -> None:
    for name in finetune.__all__:
        value = getattr(finetune, name)
        assert name == "conf_dir" or value.__name__ == name
    assert (Path(finetune.conf_dir) / "train.yaml").is_file()
    assert set(finetune.__all__) <= set(dir(finetune))
    with pytest.raises(AttributeError, match=r"no attribute 'Finetuner'; it has .*FineTuner"):
        _ = finetune.Finetuner


@pytest.mark.parametrize(
    "name", sorted({*finetune._PUBLIC.values(), "finetune.metrics.statistics", "finetune.metrics.calibration"})
)
def test_examples_of_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize("name", ["Backbone", "Classifier", "FineTuner", "ImageDataModule", "Strategy", "load"])
def test_public_names_have_an_example(name: str) -> None:
    assert doctest.DocTestParser().get_examples(inspect.getdoc(getattr(finetune, name)) or "")


@pytest.mark.slow
def test_the_classes_need_no_hydra(tmp_path: Path) -> None:
    """A machine for training may have torch and lightning only; the commands need hydra, the classes do not."""
    code = (
        "import sys; sys.modules['hydra'] = None\n"
        "from finetune import FineTuner, ImageDataModule\n"
        "ImageDataModule('x'); FineTuner('squeezenet1_1', 2, 'lp_ft', weights='none')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_version_stands_in_one_place_twice_the_same() -> None:
    assert PROJECT["version"] == finetune.__version__
    assert f"## {finetune.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_floors_exclude_the_known_bad_releases() -> None:
    wanted = {"torch": "2.9", "torchvision": "0.24", "lightning": "2.6.6", "hydra-core": "1.3.8"}
    found = dict(d.split(",")[0].split(">=") for d in PROJECT["dependencies"])
    assert wanted.items() <= found.items()


def test_nothing_unsafe_is_called() -> None:
    """No pickle, eval, exec or shell, and no torch.load without weights_only=True."""
    for path in (ROOT / "finetune").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib)\b", text, re.MULTILINE), path
        assert not re.search(r"(?<![.\w])(eval|exec)\(", text), path
        assert not re.search(r"yaml\.load\(|os\.(system|popen)\(|shell=True", text), path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, path


@pytest.mark.parametrize(("group", "page"), [("strategy", "strategies.md"), ("data", "getting_started.md")])
def test_every_choice_is_in_the_documents(group: str, page: str) -> None:
    from finetune.cli.groups import group_options

    text = (ROOT / "docs" / page).read_text()
    for name in group_options(group):
        assert name.startswith("_") or f"`{name}`" in text, f"{group}={name} is not in {page}"


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are on a site of repositories."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_every_promise_has_a_test() -> None:
    promised = (ROOT / "docs" / "promises.md").read_text().split("## What we promise")[1].split("\n## ")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ")][1:]
    require_tests(rows)


def test_every_row_on_files_of_strangers_has_a_test() -> None:
    rows = [row for row in (ROOT / "SECURITY.md").read_text().splitlines() if row.startswith("| ")][1:]
    require_tests(rows)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_install_works_from_any_directory(editable: bool, tmp_path: Path) -> None:
    """A wheel, or an editable install, in an environment that borrows this one's packages."""
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    borrowed = next(p for p in sys.path if p.endswith("site-packages"))
    if editable:
        checkout = tmp_path / "checkout"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
        what = ["-e", str(checkout)]
    else:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
            check=True,
            capture_output=True,
        )
        what = [str(next(tmp_path.glob("*.whl")))]
    (site / "borrowed.pth").write_text(borrowed + "\n")  # hatchling too
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--force-reinstall",
        *what,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = subprocess.check_output(
        [python, "-c", "import finetune; print(finetune.__file__)"], text=True, cwd=empty, env=env
    )
    assert str(tmp_path) in where
    for command in ([python, "-m", "finetune.train"], [str(tmp_path / "env" / "bin" / "finetune"), "train"]):
        shown = subprocess.run([*command, "--help"], cwd=empty, env=env, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert "feature_extract" in shown.stdout
        job = subprocess.run(
            [*command, "experiment=hotdog_resnet18", "--cfg", "job"], cwd=empty, env=env, capture_output=True, text=True
        )
        assert "xavier_normal" in job.stdout
    sweeper = "import hydra_plugins.finetune_sweeper as s; print(s.__file__)"
    where = subprocess.check_output([python, "-c", sweeper], text=True, cwd=empty, env=env)
    assert str(tmp_path) in where
    page = "from finetune.reporting import html; html._environment().get_template('report.html')"
    shown = subprocess.run([python, "-c", page], cwd=empty, env=env, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert list(empty.iterdir()) == []


def test_importing_the_package_imports_neither_torch_nor_hydra_and_composing_no_torch() -> None:
    code = (
        "import sys, finetune; assert not {'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)\n"
        "finetune.compose(['model=resnet50']); assert 'hydra' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sweepers_are_known_to_hydra_which_imports_neither_torch_nor_optuna_for_that() -> None:
    code = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.sweeper import Sweeper\n"
        "names = {c.__name__ for c in Plugins.instance().discover(Sweeper)}\n"
        "assert {'RandomSweeper', 'OptunaSweeper'} <= names, names\n"
        "assert not {'torch', 'optuna', 'finetune'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_families_import_no_torch() -> None:
    code = "import sys, finetune.models.specs, finetune.io.paths, finetune.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
