"""Run every command on what cameras and instruments write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import load
from tests.end_to_end.helpers import Command, read_table
from tests.helpers import TINY, make_image

LEARNS = ("model=resnet18", "optimizer=adamw", "optimizer.lr=0.01", "data.augment=none")


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """Counts of 12 bits in files of 16, the one class brighter."""
    rng, root = np.random.default_rng(0), tmp_path / "counts"
    for split, number in (("train", 10), ("val", 6)):
        for at, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 2500, (40, 40)) + 1500 * at
                Image.fromarray(pixels.astype(np.uint16)).save(root / split / name / f"{i}{('.tif', '.png')[i % 2]}")
    return root


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_counts_of_12_bits_are_trained_evaluated_predicted_and_exported_alike(
    command: Command, counts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # in bf16, some processors round a batch otherwise than an image alone
    words = ["trainer.max_epochs=4", "trainer.precision=32-true"]
    run, code = command("train", *TINY, *LEARNS, f"data.root={counts}", *words)
    assert code == 0
    paths = sorted(counts.glob("train/*/*"))
    files = [np.asarray(Image.open(path)) for path in paths]
    low, high = (f(values) for f, values in ((min, [f.min() for f in files]), (max, [f.max() for f in files])))
    printed = " ".join(capsys.readouterr().out.split())
    assert "grey of more than 8 bits in 32 images: the counts" in printed
    ckpt = run / "checkpoints" / "best.ckpt"
    model = load(ckpt, device="cpu")
    depth = model.module.preprocess.depth
    assert depth is not None
    assert depth == pytest.approx((low, high), abs=10)  # but for a thousandth of each image
    assert json.loads((run / "metrics.json").read_text())["best"]["val/acc"] == 1

    folder, code = command("evaluate", f"ckpt={ckpt}")
    assert code == 0
    assert json.loads((folder / "evaluation.json").read_text())["as_in_the_run"]["same"] is True
    folder, code = command("predict", f"ckpt={ckpt}", f"source={counts}/val", "format=jsonl")
    assert code == 0
    for line in (folder / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        values = np.asarray(Image.open(row["path"])).astype(float)
        grey = np.rint(np.clip((values - depth[0]) / (depth[1] - depth[0]), 0, 1) * 255).astype(np.uint8)
        assert row["confidence"] == pytest.approx(model.predict(grey).confidence, abs=1e-5)
        assert row["label"] == Path(row["path"]).parent.name
        array = np.asarray(Image.open(row["path"]))
        assert model.predict(array.astype(np.int32)).confidence == pytest.approx(row["confidence"], abs=1e-5)
        with Image.open(row["path"]) as image:
            assert model.predict(image).confidence == pytest.approx(row["confidence"], abs=1e-5)
    folder, code = command("export", f"ckpt={ckpt}", "format=state_dict", f"source={counts}/val")
    assert code == 0
    described = json.loads((folder / "model.json").read_text())
    assert f"counts {depth[0]:g} to {depth[1]:g} to 0 to 255" in described["input"]
    assert described["preprocess"]["depth"] == list(depth)


def test_counts_are_the_reason_for_other_features_and_a_resumed_run_keeps_them(
    command: Command, counts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={counts}", "strategy=feature_extract", f"paths.cache_dir={tmp_path / 'cache'}"]
    runs = {}
    for depth in ("auto", "full", "[0,4095]"):
        runs[depth], code = command("train", *words, f"data.depth={depth}", "trainer.max_epochs=1")
        assert code == 0
        assert "computed in" in capsys.readouterr().out
    assert command("train", *words, "data.depth=full", "trainer.max_epochs=1")[1] == 0
    assert "taken from the cache" in capsys.readouterr().out
    last = runs["full"] / "checkpoints" / "last.ckpt"
    assert command("train", *words, f"ckpt_path={last}", "trainer.max_epochs=2")[1] == 2
    assert "preprocess.depth" in capsys.readouterr().err
    assert command("train", *words, "data.depth=full", f"ckpt_path={last}", "trainer.max_epochs=2")[1] == 0


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Pictures of 480 x 80 whose left end alone tells their class."""
    rng, root = np.random.default_rng(0), tmp_path / "long"
    for split, number in (("train", 12), ("val", 10)):
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (80, 480, 3), np.uint8)
                pixels[10:70, 20:80] = colour
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("resize", "least", "most"),
    [("crop", 0.2, 0.8), ("squash", 1, 1), pytest.param("pad", 1, 1, marks=pytest.mark.slow)],
)
def test_what_stands_at_an_end_is_seen_by_squash_and_pad(
    resize: str, least: float, most: float, command: Command, long: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *LEARNS, f"data.root={long}", f"data.resize={resize}", "trainer.max_epochs=6", "data.image_size=48"]
    run, code = command("train", *words)
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("data.resize=squash" in printed) == (resize == "crop"), printed
    metrics = json.loads((run / "metrics.json").read_text())
    assert least <= metrics["best"]["val/acc"] <= most
    ckpt = run / "checkpoints" / "best.ckpt"
    folder, code = command("evaluate", f"ckpt={ckpt}")
    assert code == 0
    assert json.loads((folder / "evaluation.json").read_text())["as_in_the_run"]["same"] is True
    for tta in ("none", "five_crop"):
        folder, code = command("predict", f"ckpt={ckpt}", f"source={long}/val", f"tta={tta}")
        assert code == 0
        rows = read_table(folder / "predictions.csv")
        correct = np.mean([row["label"] == Path(row["path"]).parent.name for row in rows])
        assert tta != "none" or resize == "crop" or correct == 1
    assert load(ckpt, device="cpu").module.preprocess.fit == resize


def test_a_checkpoint_from_before_reads_as_then(command: Command, counts: Path, tmp_path: Path) -> None:
    run, code = command("train", *TINY, f"data.root={counts}", "data.depth=full", "trainer.max_epochs=1")
    assert code == 0
    stored: dict[str, Any] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for key in ("fit", "depth"):
        del stored["hyper_parameters"]["preprocess"][key]
    torch.save(stored, tmp_path / "old.ckpt")
    old, new = (load(path, device="cpu") for path in (tmp_path / "old.ckpt", run / "checkpoints" / "best.ckpt"))
    path = next(counts.glob("val/light/*.tif"))
    grey = np.rint(np.asarray(Image.open(path)) / 65535 * 255).astype(np.uint8)
    assert old.predict(path).probabilities == new.predict(path).probabilities == new.predict(grey).probabilities


def test_evaluate_and_predict_take_a_limit_and_refuse_what_the_checkpoint_says(
    command: Command, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = f"ckpt={trained}/checkpoints/best.ckpt"
    for name in ("cat", "dog"):
        (tmp_path / "new" / name).mkdir(parents=True)
        make_image(3, 100).save(tmp_path / "new" / name / "a.png")
        make_image(4, 40).save(tmp_path / "new" / name / "b.png")
    for limit, codes in ((9_999, (0, 3)), (10_000, (0, 0))):
        folder, code = command("evaluate", ckpt, f"data.root={tmp_path / 'new'}", f"data.max_pixels={limit}")
        assert code == codes[0]
        assert json.loads((folder / "evaluation.json").read_text())["images"] == (2 if limit < 10_000 else 4)
        folder, code = command("predict", ckpt, f"source={tmp_path / 'new'}", f"data.max_pixels={limit}")
        assert code == codes[1]
        failed = [row["error"] for row in read_table(folder / "predictions.csv") if row["status"] != "ok"]
        assert len(failed) == (2 if limit < 10_000 else 0)
        assert all("give data.max_pixels=10000" in error for error in failed)
    capsys.readouterr()
    for word in ("data.resize=pad", "data.depth=full"):
        assert command("evaluate", ckpt, word)[1] == 2
        assert f"{word.split('=')[0]} changes nothing in evaluate" in capsys.readouterr().err


def test_predict_names_what_reads_a_heic_image(
    without_heic: None, command: Command, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert command("predict", f"ckpt={trained}/checkpoints/best.ckpt", f"source={path}")[1] == 3
    assert "finetune-lightning[heic]" in " ".join(capsys.readouterr().out.split())


def test_predict_says_that_a_model_of_8_bits_has_no_range_for_counts(
    trained: Path, counts: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("predict", f"ckpt={trained}", f"source={counts}/val")
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    number = len(list(counts.glob("val/*/*")))
    assert f"grey of more than 8 bits in {number} images, and the model was not trained on such" in printed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_counts_of_another_scale_than_the_models_are_said(
    command: Command, counts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = command("train", *TINY, f"data.root={counts}", "trainer.max_epochs=1")
    for path in counts.glob("val/*/*"):
        target = tmp_path / "brighter" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 15).save(target)
    number = len(list((tmp_path / "brighter").glob("*/*")))
    capsys.readouterr()
    _, code = command("evaluate", f"ckpt={run}", f"data.root={tmp_path}/brighter")
    assert code == 0
    assert f"{number} of {number} images have counts of another scale" in " ".join(capsys.readouterr().out.split())
    _, code = command("predict", f"ckpt={run}", f"source={tmp_path}/brighter")
    assert code == 0
    assert f"{number} images of more than 8 bits are mostly black or white" in " ".join(capsys.readouterr().out.split())
    _, code = command("predict", f"ckpt={run}", f"source={counts}/val")
    assert code == 0
    assert "mostly black or white" not in " ".join(capsys.readouterr().out.split())
