"""Run `finetune.evaluate`."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from finetune import report
from finetune.cli.groups import group_options
from tests.end_to_end.helpers import Command
from tests.helpers import REAL_TRUNKS, TINY


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_says_how_many_images_were_trained_on_under_other_names(
    command: Command, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, source in enumerate(("train/cat/00", "train/cat/03", "train/dog/05", "val/emu/00", "val/cat/01")):
        target = tmp_path / "new" / source.split("/")[1] / f"holiday_{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / f"{source}.png", target)
    capsys.readouterr()
    folder, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={tmp_path}/new")
    assert evaluation(folder)["trained_on"] == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "Note 3 of these 5 images were trained on: their accuracy says nothing about new ones" in printed
    with Image.open(photos / "train/dog/02.png") as image:
        image.resize((40, 40)).save(tmp_path / "new/dog/larger.png")
    folder, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={tmp_path}/new")
    assert (evaluation(folder)["trained_on"], evaluation(folder)["near_duplicates"]) == (3, 1)
    (near,) = rows(folder / "near_duplicates.csv")
    assert (near["path"], near["label"]) == ("dog/larger.png", "dog")
    assert 0 <= int(near["bits"]) <= 6
    assert "1 of these 6 images looks like a training image" in " ".join(capsys.readouterr().out.split())
    folder, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt")
    assert (evaluation(folder)["trained_on"], evaluation(folder)["near_duplicates"]) == (0, 0)
    assert not (folder / "near_duplicates.csv").exists()
    assert "trained on" not in capsys.readouterr().out


WAYS = [
    *[
        pytest.param(f"strategy={s}", marks=[] if s == "finetune" else [pytest.mark.slow])
        for s in group_options("strategy")
    ],
    pytest.param("trainer.precision=bf16-mixed"),
    # many BatchNorms in 16 bits: features of convolutions fused with them differ in the loss's last digits
    pytest.param("model=resnet18 trainer.precision=bf16-mixed data.image_size=64"),
    pytest.param("strategy.cache=never", marks=pytest.mark.slow),
    pytest.param("strategy.cache_dtype=float16", marks=pytest.mark.slow),
    pytest.param("model=resnet18", marks=pytest.mark.slow),
    pytest.param("+callbacks=ema", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("way", WAYS)
def test_evaluate_gives_the_numbers_of_training_to_the_last_digit(
    way: str, command: Command, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.runtime import hardware

    native = "bf16-mixed" if "bf16" in way else hardware.native_precision("cpu")
    monkeypatch.setattr(hardware, "native_precision", lambda accelerator: native)
    run, _ = command("train", *TINY, f"data.root={photos}", *way.split())
    best = json.loads((run / "metrics.json").read_text())
    folder, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt")
    found = evaluation(folder)
    assert code == 0
    assert found["as_in_the_run"]["same"] is True
    for name in ("acc", "loss", "f1"):
        assert float(f"{found[name]:.7g}") == best["best"][f"val/{name}"]
    assert found["confusion_matrix"] == best["confusion_matrix"]
    assert "of the run: the same" in capsys.readouterr().out


def test_evaluate_leaves_what_it_promises(command: Command, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", "report=true")
    found = evaluation(folder)
    assert (found["images"], found["classes"]) == (12, ["cat", "dog", "emu"])
    assert found["acc_interval"][0] < found["acc"] < found["acc_interval"][1] or found["acc"] in (0, 1)
    assert found["top_3"] == 1
    assert {"temperature", "ece", "ece_scaled", "log_loss_scaled", "versions", "ckpt", "tta", "split"} <= found.keys()
    table = rows(folder / "predictions.csv")
    assert [r["path"] for r in table] == [f"val/{c}/{i:02d}.png" for c in ("cat", "dog", "emu") for i in range(4)]
    assert [r["true"] for r in table] == ["cat"] * 4 + ["dog"] * 4 + ["emu"] * 4
    assert sum(int(r["correct"]) for r in table) == found["correct"]
    matrix = rows(folder / "confusion_matrix.csv")
    assert [[int(r[c]) for c in found["classes"]] for r in matrix] == found["confusion_matrix"]
    Image.open(folder / "plots" / "confusion_matrix.png").load()
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 80
    for part in ("of 12 correct; 95 % interval", "macro F1", "after temperature scaling", "Per class"):
        assert part in printed


def test_evaluate_finds_a_folder_that_was_moved(command: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    before, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt")
    shutil.copytree(photos, tmp_path / "moved")
    after, _ = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={tmp_path}/moved")
    assert "of the run" in evaluation(after)["description"]
    assert (before / "predictions.csv").read_text() == (after / "predictions.csv").read_text()


def test_evaluate_refuses_a_part_of_the_held_out_images(
    command: Command, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "moved")
    (tmp_path / "moved" / "val" / "dog" / "01.png").unlink()
    (tmp_path / "moved" / "val" / "emu" / "02.png").write_bytes(b"another picture")
    _, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={tmp_path}/moved")
    assert code == 2
    assert "10 of the 12 val images of the run; it lacks, or has with another size, val/dog/01.png, val/emu/02.png" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_evaluate_says_that_the_folder_is_gone(
    command: Command, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}})
    run, _ = command("train", *TINY, f"data.root={root}", "trainer.max_epochs=1", "report=false")
    root.rename(root.with_name("elsewhere"))
    _, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt")
    assert code == 2
    assert "4 of the run's 4 val images are not at" in capsys.readouterr().err
    _, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", f"data.root={root}")
    assert code == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", f"data.root={root.with_name('elsewhere')}")[1] == 0


@pytest.mark.slow
def test_evaluate_on_a_flat_folder_that_was_split(command: Command, make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 8, "dog": 8}})
    run, _ = command("train", *TINY, f"data.root={root}", "trainer.max_epochs=1")
    folder, _ = command("evaluate", f"ckpt={run}/checkpoints/last.ckpt", f"data.root={root}")
    held = [r["path"] for r in rows(run / "split.csv") if r["split"] == "val"]
    assert [r["path"] for r in rows(folder / "predictions.csv")] == held
    assert evaluation(folder)["as_in_the_run"]["same"] is True


def test_evaluate_names_the_classes_of_nested_folders_as_the_run_did(
    command: Command, make_images: Callable[..., Path]
) -> None:
    root = make_images({"train/animal": {"cat": 5, "dog": 5}, "val/animal": {"cat": 2, "dog": 2}})
    run, _ = command("train", *TINY, f"data.root={root}", "data.class_depth=leaf", "trainer.max_epochs=1")
    folder, code = command("evaluate", f"ckpt={run}", f"data.root={root}/val")
    assert code == 0
    assert set(evaluation(folder)["per_class"]) == {"animal/cat", "animal/dog"}


def test_evaluate_maps_the_classes_of_new_data_by_name(
    command: Command, trained: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"": {"emu": 5, "dog": 3}}, name="new")
    (root / "emu" / "bad.png").write_bytes(b"no")
    folder, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={root}")
    found = evaluation(folder)
    assert code == 0
    assert [found["per_class"][c]["images"] for c in ("cat", "dog", "emu")] == [0, 3, 5]
    assert {r["true"] for r in rows(folder / "predictions.csv")} == {"emu", "dog"}
    printed = capsys.readouterr().out
    assert "there are no images of cat" in printed
    assert "1 unreadable files" in printed
    assert rows(folder / "bad_files.csv")[0]["reason"] == "is not an image that Pillow can read"


@pytest.mark.parametrize(
    ("splits", "argv", "message"),
    [
        ({"": {"dog": 3, "wolf": 3}}, [], "classes that the model does not know: wolf. It knows cat, dog, emu"),
        ({"train": {"dog": 3}, "test": {"dog": 3}}, [], "has no val folder, it has train, test"),
        ({"": {"dog": 3}}, ["data.classes=[cat]"], "no images to evaluate the model on"),
        ({"": {"dog": 3}}, ["split=vall"], "no split 'vall'"),
        ({"": {"dog": 3}}, ["+modle=1"], "no key 'modle'"),
    ],
)
def test_evaluate_says_what_is_wrong_with_new_data(
    splits: dict[str, dict[str, int]],
    argv: list[str],
    message: str,
    command: Command,
    trained: Path,
    make_images: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images(splits, name="new")
    _, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"data.root={root}", *argv)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_evaluate_on_a_table(command: Command, trained: Path, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{photos}/train/cat/00.png,cat\n{photos}/train/dog/01.png,dog\n")
    folder, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", "data=csv", f"data.root={table}")
    assert code == 0
    assert [r["true"] for r in rows(folder / "predictions.csv")] == ["cat", "dog"]


@pytest.mark.slow
def test_evaluate_of_a_run_on_a_table_finds_its_images(command: Command, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = [f"{photos}/train/{c}/{i:02d}.png,{c}" for c in ("cat", "dog") for i in range(6)]
    table.write_text("path,label\n" + "\n".join(lines))
    run, _ = command("train", *TINY, "data=csv", f"data.root={table}", "trainer.max_epochs=1", "report=false")
    for more in ([], ["data=csv", f"data.root={table}"]):
        folder, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", *more)
        assert code == 0
        assert evaluation(folder)["as_in_the_run"]["same"] is True


def test_evaluate_of_a_run_on_a_table_as_people_have_it_and_on_an_archive(
    command: Command, photos: Path, tmp_path: Path
) -> None:
    """The images lie elsewhere, without endings; then both packed, and the cache emptied in between."""
    found = [(path.relative_to(photos).with_suffix(""), path.parent.name) for path in sorted(photos.rglob("*.png"))]
    lines = [f"{path};{label};{path.parts[0] == 'val'!s}\n" for path, label in found]
    table = tmp_path / "tables" / "labels.csv"
    table.parent.mkdir()
    table.write_text("image_id;breed;is_valid\n" + "".join(lines))
    columns = "data.columns={path: image_id, label: breed, split: is_valid}"
    words = ("data=csv", f"data.root={table}", f"data.images={photos}", columns)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", photos)
    held_out = sorted(str(path) for path, _ in found if path.parts[0] == "val")
    cache = tmp_path / "cache"
    for given in (words, (f"data.root={archive}",)):
        options = (*given, "trainer.max_epochs=1", f"paths.cache_dir={cache}")
        run, code = command("train", *TINY, *options)
        assert code == 0
        keys = [row["path"] for row in rows(run / "split.csv") if row["split"] == "val"]
        assert (
            sorted(key.partition("val/")[1] + key.partition("val/")[2].removesuffix(".png") for key in keys) == held_out
        )
        shutil.rmtree(cache)
        folder, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", f"paths.cache_dir={cache}")
        assert (code, evaluation(folder)["as_in_the_run"]["same"]) == (0, True)
        assert [row["path"] for row in rows(folder / "predictions.csv")] == keys


def test_evaluate_a_table_beside_the_runs_images_is_not_the_run(command: Command, trained: Path, photos: Path) -> None:
    """Its rows are judged, though the held-out images lie where it lies too."""
    table = photos / "other.csv"
    table.write_text("path,label\ntrain/cat/00.png,cat\ntrain/dog/01.png,dog\n")
    try:
        folder, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", "data=csv", f"data.root={table}")
    finally:
        table.unlink()
    assert code == 0
    assert [r["path"] for r in rows(folder / "predictions.csv")] == ["train/cat/00.png", "train/dog/01.png"]


@pytest.mark.slow
def test_evaluate_a_changed_copy_of_a_flat_folder_leaves_the_training_images_out(
    command: Command, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"": {"cat": 8, "dog": 8}})
    run, _ = command("train", *TINY, f"data.root={root}", "trainer.max_epochs=1")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    folder, code = command("evaluate", f"ckpt={run}/checkpoints/last.ckpt", f"data.root={root}")
    assert code == 0
    held = [r["path"] for r in rows(run / "split.csv") if r["split"] == "val"]
    assert [r["path"] for r in rows(folder / "predictions.csv")] == held
    assert evaluation(folder)["as_in_the_run"] is None
    assert "another size than then" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_names_that_are_no_markup_and_no_mathematics(
    command: Command, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["[old] cars", "b[-b]", r"$\x$", os.fsdecode(b"raw\xff")]
    root = make_images({"train": dict.fromkeys(names, 3), "val": dict.fromkeys(names, 2)})
    run, _ = command("train", *TINY, f"data.root={root}", "report=true", "trainer.max_epochs=1")
    _, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", "report=true")
    assert code == 0, capsys.readouterr().err
    assert "[old] cars" in capsys.readouterr().out
    _, code = command("predict", f"ckpt={run}/checkpoints/best.ckpt", f"source={root}", "report=true")
    assert code == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_evaluate_in_other_precisions(precision: str, command: Command, trained: Path) -> None:
    folder, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"precision={precision}")
    assert code == 0
    assert evaluation(folder)["precision"] == precision


def test_evaluate_says_which_keys_change_nothing(
    command: Command, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", "data.image_size=64", "top_k=null")[1] == 2
    error = capsys.readouterr().err
    assert "data.image_size changes nothing in evaluate" in error
    assert "top_k must not be null; its default is 5" in error


def test_evaluate_test_split_gives_the_numbers_of_the_end_of_the_run(
    command: Command, make_images: Callable[..., Path]
) -> None:
    root = make_images({s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    run, _ = command("train", *TINY, f"data.root={root}")
    folder, _ = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt", "split=test")
    then, now = json.loads((run / "metrics.json").read_text())["test"], evaluation(folder)
    assert (then["test/acc"], then["test/loss"]) == (now["acc"], now["loss"])
    assert now["as_in_the_run"] is None


@pytest.mark.slow
def test_evaluate_a_torchvision_data_set_by_its_name(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "my_conf" / "data"
    conf.mkdir(parents=True)
    for name, size in (("fake", 24), ("other", 9)):
        (conf / f"{name}.yaml").write_text(
            "defaults: [_base, _self_]\n"
            f"dataset: {{_target_: torchvision.datasets.FakeData, size: {size}, image_size: [3, 32, 32], num_classes: 2}}\n"
            "splits: {train: {random_offset: 0}, test: {random_offset: 50}}\n"
        )
    # FakeData takes no root
    own = ["--config-dir", str(tmp_path / "my_conf")]
    run, code = command("train", *own, *[t for t in TINY if t != "data=imagefolder"], "data=fake")
    assert code == 0, capsys.readouterr().err
    report.main([str(run)])  # finds the images by the run's configuration
    assert (run / "report.html").read_text().count("<img") >= 5
    assert "Without images" not in capsys.readouterr().out
    _, code = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt")
    assert code == 2
    assert "name them: data=fakedata" in capsys.readouterr().err
    folder, code = command("evaluate", *own, f"ckpt={run}/checkpoints/best.ckpt", "data=fake")
    assert code == 0
    assert evaluation(folder)["as_in_the_run"]["same"] is True
    folder, code = command("evaluate", *own, f"ckpt={run}/checkpoints/best.ckpt", "data=other", "split=test")
    assert code == 0
    assert evaluation(folder)["images"] == 9


@pytest.mark.parametrize("tta", ["flip", "five_crop"])
def test_evaluate_with_tta(tta: str, command: Command, trained: Path) -> None:
    folder, code = command("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"tta={tta}")
    assert code == 0
    assert evaluation(folder)["tta"] == tta
    assert len(rows(folder / "predictions.csv")) == 12


def test_evaluate_a_checkpoint_without_a_list_asks_for_data(
    command: Command, trained: Path, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    del content["finetune"]
    torch.save(content, tmp_path / "old.ckpt")
    _, code = command("evaluate", f"ckpt={tmp_path}/old.ckpt")
    assert code == 2
    assert (
        "lists no val images (it has: none). Say what to evaluate on with data.root=FOLDER" in capsys.readouterr().err
    )
    folder, code = command("evaluate", f"ckpt={tmp_path}/old.ckpt", f"data.root={photos}")
    assert code == 0
    assert evaluation(folder)["images"] == 12


def test_evaluate_missing_checkpoint_is_one_sentence(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", "ckpt=none.ckpt")[1] == 2
    assert "ckpt=none.ckpt: there is no such file" in capsys.readouterr().err
    assert command("evaluate")[1] == 2
    assert "ckpt is missing: give it as ckpt=..." in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("squeezenet1_1", "feature_extract"),
        ("squeezenet1_1", "differential"),
        ("timm:tf_efficientnet_lite0", "feature_extract"),
    ],
)
def test_evaluate_of_a_real_run_is_the_same_and_predict_agrees(
    model: str, strategy: str, shared: Path, command: Command, tmp_path: Path
) -> None:
    root, weights = shared / "data/hymenoptera_data", shared / REAL_TRUNKS[model]
    argv = [f"model={model}", f"model.weights={weights}", f"strategy={strategy}", "trainer.max_epochs=1"]
    run, _ = command("train", "data=imagefolder", f"data.root={root}", "data.batch_size=8", *argv)
    folder, _ = command("evaluate", f"ckpt={run}/checkpoints/best.ckpt")
    assert evaluation(folder)["as_in_the_run"]["same"] is True
    predicted, _ = command("predict", f"ckpt={run}/checkpoints/best.ckpt", f"source={root}/val")
    mine = {f"{root}/{r['path']}": r["label"] for r in rows(folder / "predictions.csv")}
    theirs = {r["path"]: r["label"] for r in rows(predicted / "predictions.csv")}
    assert mine.keys() == theirs.keys()
    assert sum(mine[p] == theirs[p] for p in mine) >= len(mine) - 1  # other batches: a tie may fall the other way
