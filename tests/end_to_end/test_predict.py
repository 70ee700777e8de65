"""Run `finetune.predict`."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import FineTuner, load, train
from finetune.checkpoints.format import read_checkpoint
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.inference import inputs, prediction
from tests.end_to_end.helpers import Command, read_table
from tests.helpers import TINY, write_image

# --- sources -----------------------------------------------------------------------------------------------------


def test_predict_a_folder_answers_in_order_and_names_bad_files(
    best_checkpoint: str, mixed: Path, trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = command("predict", best_checkpoint, f"source={mixed}", "report=true")
    assert code == 3
    table = read_table(folder / "predictions.csv")
    assert [r["path"] for r in table] == inputs.find_inputs(str(mixed)).names
    assert len(table) == 8
    bad = {Path(r["path"]).name: r["error"] for r in table if r["status"] == "error"}
    assert bad.keys() == {"empty.jpg", "text.png", "cut.jpg"}
    assert bad["empty.jpg"] == "the file is empty"
    assert all(r["label"] == "" for r in table if r["status"] == "error")
    model = load(trained / "checkpoints" / "best.ckpt", device="cpu")
    for row in table:
        if row["status"] == "ok":
            alone = model.predict(row["path"])
            assert row["label"] == alone.label
            assert float(row["confidence"]) == pytest.approx(alone.confidence, abs=0.01)
    captured = capsys.readouterr()
    assert "5 of 8" in captured.out
    assert "1 file is no image of a kind" in captured.out
    assert "3 of 8 images have no prediction" in captured.err
    Image.open(folder / "plots" / "certain.png").load()


@pytest.mark.slow
def test_predict_top_k_is_sorted_and_clipped(best_checkpoint: str, photos: Path, command: Command) -> None:
    folder, code = command("predict", best_checkpoint, f"source={photos}/val/cat", "top_k=9")
    assert code == 0
    for row in read_table(folder / "predictions.csv"):
        assert {row["label"], row["label_2"], row["label_3"]} == {"cat", "dog", "emu"}
        values = [float(row[c]) for c in ("confidence", "confidence_2", "confidence_3")]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-4)
    one, _ = command("predict", best_checkpoint, f"source={photos}/val/cat", "top_k=1")
    assert list(read_table(one / "predictions.csv")[0]) == ["path", "label", "confidence", "status", "error"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "there is no such file or folder"),
        ("*.nothing", "No file matches"),
        ("empty", "there are no images in it. Images are .apng"),
        ("empty.txt", "there are no images in it"),
        ("columns.csv", "needs a column path, got a, b"),
        ("binary.txt", "is not a list in UTF-8"),
    ],
)
def test_predict_source_that_holds_nothing_is_an_error(
    source: str,
    message: str,
    best_checkpoint: str,
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    _, code = command("predict", best_checkpoint, f"source={source}")
    assert code == 2
    assert message in capsys.readouterr().err


def test_predict_reads_paths_from_standard_input(
    best_checkpoint: str, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"{photos}/val/cat/00.png\nnone.png\n{photos}/val/dog/00.png\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    folder, code = command("predict", best_checkpoint, "source=-")
    assert code == 3
    assert [r["status"] for r in read_table(folder / "predictions.csv")] == ["ok", "error", "ok"]
    assert read_table(folder / "predictions.csv")[1]["error"] == "there is no such file"


@pytest.mark.slow
def test_console_predicts_from_a_pipe(trained: Path, photos: Path, tmp_path: Path) -> None:
    given = f"{photos}/val/cat/00.png\nnone.png\n{photos}/val/dog/00.png\n"
    argv = ["predict", f"ckpt={trained}/checkpoints/best.ckpt", "source=-", f"hydra.run.dir={tmp_path}/out"]
    code = f"import sys; sys.argv = ['finetune', *{argv!r}]; from finetune.cli.main import console_script; console_script()"
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in read_table(tmp_path / "out" / "predictions.csv")] == ["ok", "error", "ok"]
    assert read_table(tmp_path / "out" / "predictions.csv")[1]["error"] == "there is no such file"


@pytest.mark.parametrize("argv", [["source=x", "top_k=null"], ["source=null"], ["source="], []])
def test_predict_says_what_must_be_given(
    argv: list[str], best_checkpoint: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", best_checkpoint, *argv)[1] == 2
    error = capsys.readouterr().err
    assert "source is missing: give it as source=..." in error or "top_k must not be null" in error


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_formats_say_the_same(best_checkpoint: str, mixed: Path, command: Command) -> None:
    tables = {}
    for suffix in ("csv", "jsonl", "parquet"):
        folder, code = command("predict", best_checkpoint, f"source={mixed}", f"format={suffix}", "report=false")
        assert code == 3
        tables[suffix] = folder / f"predictions.{suffix}"
    as_json = [json.loads(line) for line in tables["jsonl"].read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tables["parquet"]).to_pylist()
    for a, b, c in zip(read_table(tables["csv"]), as_json, parquet, strict=True):
        assert list(a) == list(b) == list(c)
        assert {k: v or None for k, v in a.items()} == {k: None if v is None else str(v) for k, v in b.items()}
        assert {**b, "path": ""} == {**c, "path": ""}


def test_parquet_without_its_package_names_the_extra(
    best_checkpoint: str,
    photos: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, code = command("predict", best_checkpoint, f"source={photos}", "format=parquet")
    assert code == 2
    assert "pip install 'finetune-lightning[parquet]'" in capsys.readouterr().err


def test_predict_embeddings_have_a_row_for_every_row(
    best_checkpoint: str, mixed: Path, trained: Path, command: Command
) -> None:
    folder, _ = command("predict", best_checkpoint, f"source={mixed}", "embeddings=true")
    found, table = np.load(folder / "embeddings.npy"), read_table(folder / "predictions.csv")
    assert (found.shape, found.dtype) == ((8, 512), np.float32)
    assert [bool(np.isnan(row).all()) for row in found] == [r["status"] == "error" for r in table]
    good = [r["path"] for r in table if r["status"] == "ok"]
    expected = load(trained / "checkpoints" / "best.ckpt", device="cpu").features(good)
    assert np.allclose(found[~np.isnan(found[:, 0])], expected.numpy(), rtol=0.05, atol=0.02)


def test_predict_embeddings_where_bad_files_come_first_or_alone(
    best_checkpoint: str, command: Command, tmp_path: Path
) -> None:
    root = tmp_path / "pictures"
    for i in range(40):  # more than a batch
        (root / f"{i:02d}.png").parent.mkdir(exist_ok=True)
        (root / f"{i:02d}.png").write_text("bad")
    folder, code = command("predict", best_checkpoint, f"source={root}", "embeddings=true")
    assert (np.load(folder / "embeddings.npy").shape, code) == ((40, 0), 3)
    write_image(root / "z.png")
    folder, _ = command("predict", best_checkpoint, f"source={root}", "embeddings=true")
    found = np.load(folder / "embeddings.npy")
    assert found.shape == (41, 512)
    assert np.isnan(found[:40]).all()
    assert not np.isnan(found[40]).any()


def test_predict_copies_into_folders_by_label(
    best_checkpoint: str, mixed: Path, command: Command, tmp_path: Path
) -> None:
    write_image(mixed / "c" / "b.png", (1, 2, 3))  # a name that is there twice
    target = tmp_path / "sorted"
    for _ in range(2):  # again: nothing is copied twice
        folder, _ = command("predict", best_checkpoint, f"source={mixed}", f"copy_to={target}")
        table = [r for r in read_table(folder / "predictions.csv") if r["status"] == "ok"]
        copies = sorted(p for p in target.rglob("*") if p.is_file())
        assert len(copies) == len(table) == 6
        assert {p.parent.name for p in copies} == {r["label"] for r in table}
    contents = {p.read_bytes() for p in copies}
    assert contents == {Path(r["path"]).read_bytes() for r in table}


def test_predict_refuses_to_copy_into_its_source(
    best_checkpoint: str, mixed: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("predict", best_checkpoint, f"source={mixed}", f"copy_to={mixed}/sorted")
    assert code == 2
    assert "lies in the source" in capsys.readouterr().err
    assert not (mixed / "sorted").exists()


@pytest.mark.slow
def test_predict_temperature_softens_and_keeps_the_label(best_checkpoint: str, photos: Path, command: Command) -> None:
    plain, _ = command("predict", best_checkpoint, f"source={photos}/val")
    soft, _ = command("predict", best_checkpoint, f"source={photos}/val", "temperature=4")
    for a, b in zip(read_table(plain / "predictions.csv"), read_table(soft / "predictions.csv"), strict=True):
        assert a["label"] == b["label"]
        assert float(b["confidence"]) <= float(a["confidence"])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a temperature: 36 validation images in colours that are hard to tell apart; read only."""
    folder = tmp_path_factory.mktemp("calibrated")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 12)):
        for label, name in enumerate(("cat", "dog", "emu")):
            for i in range(count):
                path = folder / "photos" / split / name / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = np.clip(rng.normal(128, 40, 3) + 30 * np.eye(3)[label], 0, 255)
                Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(path)
    learns = ["model=resnet18", "optimizer=adamw", "optimizer.lr=0.03", "data.augment=none"]
    train.main([*TINY, *learns, f"data.root={folder}/photos", f"hydra.run.dir={folder}/run"])
    return folder / "run"


def _record(run: Path) -> CalibrationRecord:
    return read_checkpoint(run / "checkpoints" / "best.ckpt").metadata.calibration


def test_a_run_ends_with_a_temperature_that_predict_and_evaluate_use(
    calibrated: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(calibrated / "checkpoints" / "best.npz") as file:
        logits, labels = np.log(np.maximum(file["probabilities"].astype(float), 1e-38)), file["labels"]

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(36), labels]).mean())

    temperature = _record(calibrated).temperature
    assert temperature == pytest.approx(min(np.geomspace(0.05, 20, 1200), key=loss), rel=0.006)
    assert 0.06 < temperature < 19
    stored = json.loads((calibrated / "metrics.json").read_text())["calibration"]
    assert stored == {"temperature": temperature, "fitted_on": "36 validation images", "problem": None}

    root = calibrated.parent / "photos"
    found, _ = command("predict", f"ckpt={calibrated}", f"source={root}/val", "precision=32-true")
    raw, _ = command("predict", f"ckpt={calibrated}", f"source={root}/val", "precision=32-true", "temperature=1")
    for scaled, plain in zip(read_table(found / "predictions.csv"), read_table(raw / "predictions.csv"), strict=True):
        powers = [float(plain[name]) ** (1 / temperature) for name in ("confidence", "confidence_2", "confidence_3")]
        assert scaled["label"] == plain["label"]
        assert float(scaled["confidence"]) == pytest.approx(powers[0] / sum(powers), abs=1e-3)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"probabilities at its temperature {temperature:.4g}, fitted on 36 validation images") == 1

    evaluated, _ = command("evaluate", f"ckpt={calibrated}", "precision=32-true")
    undone, _ = command("evaluate", f"ckpt={calibrated}", "precision=32-true", "temperature=1")
    one, other = (json.loads((folder / "evaluation.json").read_text()) for folder in (evaluated, undone))
    assert (one["acc"], one["loss"], one["ece"]) == (other["acc"], other["loss"], other["ece"])
    assert one["loss"] == pytest.approx(loss(1.0), abs=1e-2)
    assert one["calibrated"]["loss"] == pytest.approx(loss(temperature), abs=1e-2)
    rows = zip(read_table(evaluated / "predictions.csv"), read_table(found / "predictions.csv"), strict=True)
    assert all(mine["confidence"] == theirs["confidence"] for mine, theirs in rows)
    text = " ".join(capsys.readouterr().out.split())
    assert "in sample for these. Those above are without it, as val/loss of the run" in text


def test_predictions_are_accepted_by_their_confidence_or_by_the_precision_of_the_held_out_ones(
    calibrated: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ckpt = f"source={calibrated.parent}/photos/val", f"ckpt={calibrated}"
    plain, code = command("predict", ckpt, source, "min_confidence=0.5")
    assert code == 0
    table = read_table(plain / "predictions.csv")
    assert [row["accepted"] for row in table] == [str(int(float(row["confidence"]) >= 0.5)) for row in table]
    record = _record(calibrated)
    assert record.confidences is not None
    assert record.correct is not None
    share = float(record.correct.double().mean())
    capsys.readouterr()
    chosen, code = command("predict", ckpt, source, f"target_precision={share - 0.01:.3f}")
    assert code == 0
    assert f"({int(record.correct.sum())} of 36; 95 %:" in " ".join(capsys.readouterr().out.split())
    marks = [row["accepted"] for row in read_table(chosen / "predictions.csv")]
    assert marks.count("1") >= 35  # of the very images: all, but for one whose last digit is another here
    _, code = command("predict", ckpt, source, "target_precision=1")
    assert code == 2
    assert "No threshold that accepts 20 held-out images or more reaches target_precision=1." in capsys.readouterr().err


def test_a_checkpoint_without_held_out_predictions_has_no_threshold(
    best_checkpoint: str, photos: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("predict", best_checkpoint, f"source={photos}/val", "target_precision=0.9")
    assert code == 2
    assert "(12 held-out images are fewer than the 30 that a temperature takes)" in capsys.readouterr().err


def test_predict_and_evaluate_agree(best_checkpoint: str, photos: Path, command: Command) -> None:
    predicted, _ = command("predict", best_checkpoint, f"source={photos}/val")
    evaluated, _ = command("evaluate", best_checkpoint)
    theirs = {f"{photos}/{r['path']}": (r["label"], r["confidence"]) for r in read_table(evaluated / "predictions.csv")}
    for row in read_table(predicted / "predictions.csv"):
        assert theirs[row["path"]][0] == row["label"]
        assert float(theirs[row["path"]][1]) == pytest.approx(float(row["confidence"]), abs=0.01)


def test_interrupted_predict_keeps_its_rows_under_another_name(
    best_checkpoint: str,
    photos: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 4)
    run, calls = prediction._run, []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(prediction, "_run", stop)
    folder, code = command("predict", best_checkpoint, f"source={photos}/val")
    assert code == 130
    assert "the rows so far are in" in capsys.readouterr().err
    assert not (folder / "predictions.csv").exists()
    assert len(read_table(folder / "predictions.csv.part")) == 8


@pytest.mark.slow
def test_predict_ten_thousand_files_in_flat_memory(photos: Path, tmp_path: Path) -> None:
    """The peak of 10,000 pictures, 260 MiB of pixels if they were kept, is that of 500 but for the noise of a process."""
    FineTuner("squeezenet1_1", classes=3, weights="none", preprocess={"size": 96}).save(tmp_path / "model.ckpt")
    one = f"{photos}/val/cat/00.png"

    def peak(n: int, name: str) -> int:
        (tmp_path / f"{n}.txt").write_text(f"{one}\n" * n)
        argv = [f"ckpt={tmp_path}/model.ckpt", f"source={tmp_path}/{n}.txt", f"hydra.run.dir={tmp_path}/{name}"]
        process = subprocess.Popen([sys.executable, "-m", "finetune.predict", *argv], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert (tmp_path / name / "predictions.csv").read_text().count("\n") == n + 1
        return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    # what is kept shows in every run, the noise of a process does not
    few = max(peak(500, f"few{i}") for i in range(2))
    assert any(peak(10_000, f"many{i}") < few + (40 << 20) for i in range(2))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["source=a.jpg", "b.jpg"], "'b.jpg' is not key=value, as every argument is"),
        (["source=a.jpg", "source=b.jpg"], "source is given more than once"),
        (["--source", "a.jpg"], "Arguments have no dashes here: source=..."),
        (["source=x", "embeddings=flase"], "embeddings must be true or false, got flase"),
        (["source=x", "sorce=y"], "Did you mean source"),
        (["source=x", "copy_to=list.txt"], "copy_to=list.txt is a file; give a folder."),
        (["source=-"], "no path came"),
    ],
)
def test_predict_answers_habits_and_slips(
    argv: list[str],
    message: str,
    best_checkpoint: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.txt").touch()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert command("predict", best_checkpoint, *argv)[1] == 2
    error = capsys.readouterr().err
    assert message in error
    assert "adds a new one" not in error


def test_predict_takes_the_folder_of_a_run_and_names_with_nul(
    trained: Path, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/val/cat/00.png\0{photos}/val/dog/00.png\0"))
    folder, code = command("predict", f"ckpt={trained}", "source=-")
    assert code == 0
    assert len(read_table(folder / "predictions.csv")) == 2


@pytest.mark.slow
def test_ctrl_c_is_heard_while_a_pipe_of_names_says_nothing(trained: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune.predict", f"ckpt={trained}", "source=-", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write("".join(f"{photos}/val/cat/00.png\n" for _ in range(40)))
    process.stdin.flush()  # and it stays open
    table = tmp_path / "run" / "predictions.csv.part"
    deadline = time.monotonic() + 60
    while not (table.is_file() and len(table.read_text().splitlines()) == 33) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130, errors[-2000:]
    assert "the rows so far are in" in errors
