from __future__ import annotations

import csv
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import FineTuner, load, predict
from finetune.images.decode import BadImageError
from finetune.inference import inputs, prediction

Command = Callable[..., tuple[Path, int]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def best(trained: Path) -> str:
    return f"ckpt={trained}/checkpoints/best.ckpt"


def picture(path: Path, colour: tuple[int, int, int] = (10, 200, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 50), colour).save(path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good and bad files, with subfolders and odd names."""
    root = tmp_path / "mixed"
    for i, name in enumerate(("b.png", "a/ü 猫.jpg", "a/x,y=(1).png", "c/d/e.jpeg", os.fsdecode(b"raw\xff.png"))):
        picture(root / name, (40 * i, 100, 255 - 40 * i))
    (root / "a" / "empty.jpg").touch()
    (root / "c" / "text.png").write_text("not an image")
    (root / "notes.txt").write_text("ignored")
    (root / ".hidden.png").write_text("ignored")
    whole = picture(root / "c" / "cut.jpg").read_bytes()
    (root / "c" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return root


# --- sources -----------------------------------------------------------------------------------------------------


def test_predict_a_folder_answers_in_order_and_names_bad_files(
    best: str, mixed: Path, trained: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = command("predict", best, f"source={mixed}", "report=true")
    assert code == 3
    table = rows(folder / "predictions.csv")
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
def test_predict_top_k_is_sorted_and_clipped(best: str, photos: Path, command: Command) -> None:
    folder, code = command("predict", best, f"source={photos}/val/cat", "top_k=9")
    assert code == 0
    for row in rows(folder / "predictions.csv"):
        assert {row["label"], row["label_2"], row["label_3"]} == {"cat", "dog", "emu"}
        values = [float(row[c]) for c in ("confidence", "confidence_2", "confidence_3")]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-4)
    one, _ = command("predict", best, f"source={photos}/val/cat", "top_k=1")
    assert list(rows(one / "predictions.csv")[0]) == ["path", "label", "confidence", "status", "error"]


def test_find_each_kind_of_source(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = photos / "val" / "cat" / "00.png"
    assert list(inputs.find_inputs(str(one)).names) == [str(one)]
    assert inputs.find_inputs(str(photos)).total == 36
    assert inputs.find_inputs(f"{photos}/val/**/*.png").total == 12
    (tmp_path / "list.txt").write_text(f"{one}\n\nnone.png\n{one}\n")
    assert list(inputs.find_inputs(str(tmp_path / "list.txt")).names) == [str(one), "none.png", str(one)]
    (tmp_path / "table.csv").write_text("label,path\ncat,x.png\ndog,http://h/y.png\n")
    assert list(inputs.find_inputs(str(tmp_path / "table.csv")).names) == [f"{tmp_path}/x.png", "http://h/y.png"]
    assert list(inputs.find_inputs("https://example.org/a.jpg").names) == ["https://example.org/a.jpg"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.png\n\nb c.png\n"))
    found = inputs.find_inputs("-")
    assert (list(found.names), found.total) == (["a.png", "b c.png"], None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "there is no such file or folder"),
        ("*.nothing", "No file matches"),
        ("empty", "there are no images in it. Images are .bmp"),
        ("empty.txt", "there are no images in it"),
        ("columns.csv", "needs a column path, got a, b"),
        ("binary.txt", "is not a list in UTF-8"),
    ],
)
def test_predict_source_that_holds_nothing_is_an_error(
    source: str, message: str, best: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    _, code = command("predict", best, f"source={source}")
    assert code == 2
    assert message in capsys.readouterr().err


def test_predict_reads_paths_from_standard_input(
    best: str, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"{photos}/val/cat/00.png\nnone.png\n{photos}/val/dog/00.png\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    folder, code = command("predict", best, "source=-")
    assert code == 3
    assert [r["status"] for r in rows(folder / "predictions.csv")] == ["ok", "error", "ok"]
    assert rows(folder / "predictions.csv")[1]["error"] == "there is no such file"


@pytest.mark.slow
def test_console_predicts_from_a_pipe(trained: Path, photos: Path, tmp_path: Path) -> None:
    given = f"{photos}/val/cat/00.png\nnone.png\n{photos}/val/dog/00.png\n"
    argv = ["predict", f"ckpt={trained}/checkpoints/best.ckpt", "source=-", f"hydra.run.dir={tmp_path}/out"]
    code = f"import sys; sys.argv = ['finetune', *{argv!r}]; from finetune.cli import console; console()"
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert [r["status"] for r in rows(tmp_path / "out" / "predictions.csv")] == ["ok", "error", "ok"]
    assert rows(tmp_path / "out" / "predictions.csv")[1]["error"] == "there is no such file"


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(photos: Path) -> Iterator[str]:
    """A picture, something else, a page that is not there, a picture that is too long, one that never ends."""
    content = (photos / "val" / "cat" / "00.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            if name == "trickle.png":  # headers without an end
                for i in range(100):
                    try:
                        self.wfile.write(b"HTTP/1.0 200 OK\r\n" if i == 0 else b"X-A: b\r\n")
                        self.wfile.flush()
                    except OSError:
                        return
                    time.sleep(0.02)
                return
            if name == "none.png":
                self.send_error(404)
                return
            body = {"page.png": b"<html>", "long.png": bytes(3000)}.get(name, content)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (10 if name == "cut.png" else 0)))
            self.end_headers()
            for byte in body if name == "slow.png" else [body]:
                try:
                    self.wfile.write(byte if isinstance(byte, bytes) else bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return
                if name == "slow.png":
                    time.sleep(0.02)

        def log_message(self, *args: Any) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def test_read_from_an_address(server: str, photos: Path) -> None:
    assert torch.equal(inputs.read_input(f"{server}/a.png"), inputs.read_input(f"{photos}/val/cat/00.png"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.png", r"none\.png: cannot be fetched .*404"),
        ("page.png", r"page\.png: is not an image"),
        ("long.png", r"long\.png: cannot be fetched .more than 0 MiB"),
        ("slow.png", r"slow\.png: cannot be fetched .it took more than 0 s"),
        ("trickle.png", r"trickle\.png: cannot be fetched .it took more than 0 s"),
        ("cut.png", r"cut\.png: cannot be fetched"),
    ],
)
def test_read_from_an_address_has_limits(name: str, message: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "long.png":
        monkeypatch.setattr(inputs, "MAX_BYTES", 2000)
    if name in ("slow.png", "trickle.png"):
        monkeypatch.setattr(inputs, "TIMEOUT_S", 0.1)
    with pytest.raises(BadImageError, match=message) as error:
        inputs.read_input(f"{server}/{name}")
    assert str(error.value).startswith(f"{server}/{name}: ")


@pytest.mark.parametrize("name", ["my photo.jpg", "a\0.jpg", "x" * 9])
def test_names_that_break_the_library_get_a_row_of_their_own(name: str, server: str) -> None:
    items = [i for b in inputs.read_inputs([f"{server}/{name}", f"{name}"], lambda pixels: pixels, 4) for i in b]
    assert len(items) == 2
    assert items[1].image is None
    assert items[1].error


def test_pictures_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    Image.new("L", (1, 30000)).save(tmp_path / "thin.png")
    with pytest.raises(BadImageError, match="one side is over 200 times the other"):
        inputs.read_input(str(tmp_path / "thin.png"))
    whole = picture(tmp_path / "large.jpg").read_bytes()
    at = whole.index(b"\xff\xc0") + 5  # height and width in the frame's header
    (tmp_path / "large.jpg").write_bytes(whole[:at] + b"\xff\xdc\xff\xdc" + whole[at + 4 :])
    with pytest.raises(BadImageError, match="has more than 89478485 pixels; shrink"):
        inputs.read_input(str(tmp_path / "large.jpg"))
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(BadImageError, match="not an image"):
        inputs.read_input(str(tmp_path / "page.png"))


@pytest.mark.slow
def test_sweep_goes_on_after_pictures_that_failed(
    best: str, mixed: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        predict.main(["-m", best, f"source={mixed},{photos}/val", f"hydra.sweep.dir={tmp_path}/sweep", "report=false"])
    assert stop.value.code == 3
    assert len(rows(tmp_path / "sweep" / "1" / "predictions.csv")) == 12


@pytest.mark.parametrize("argv", [["source=x", "top_k=null"], ["source=null"], ["source="], []])
def test_predict_says_what_must_be_given(
    argv: list[str], best: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", best, *argv)[1] == 2
    error = capsys.readouterr().err
    assert "source is missing: give it as source=..." in error or "top_k must not be null" in error


def test_read_from_an_address_where_nobody_listens() -> None:
    with pytest.raises(BadImageError, match=r"127\.0\.0\.1:9/a\.png: cannot be fetched"):
        inputs.read_input("http://127.0.0.1:9/a.png")


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_formats_say_the_same(best: str, mixed: Path, command: Command) -> None:
    tables = {}
    for suffix in ("csv", "jsonl", "parquet"):
        folder, code = command("predict", best, f"source={mixed}", f"format={suffix}", "report=false")
        assert code == 3
        tables[suffix] = folder / f"predictions.{suffix}"
    as_json = [json.loads(line) for line in tables["jsonl"].read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tables["parquet"]).to_pylist()
    for a, b, c in zip(rows(tables["csv"]), as_json, parquet, strict=True):
        assert list(a) == list(b) == list(c)
        assert {k: v or None for k, v in a.items()} == {k: None if v is None else str(v) for k, v in b.items()}
        assert {**b, "path": ""} == {**c, "path": ""}


def test_parquet_without_its_package_names_the_extra(
    best: str, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, code = command("predict", best, f"source={photos}", "format=parquet")
    assert code == 2
    assert "pip install 'finetune-lightning[parquet]'" in capsys.readouterr().err


def test_predict_embeddings_have_a_row_for_every_row(best: str, mixed: Path, trained: Path, command: Command) -> None:
    folder, _ = command("predict", best, f"source={mixed}", "embeddings=true")
    found, table = np.load(folder / "embeddings.npy"), rows(folder / "predictions.csv")
    assert (found.shape, found.dtype) == ((8, 512), np.float32)
    assert [bool(np.isnan(row).all()) for row in found] == [r["status"] == "error" for r in table]
    good = [r["path"] for r in table if r["status"] == "ok"]
    expected = load(trained / "checkpoints" / "best.ckpt", device="cpu").features(good)
    assert np.allclose(found[~np.isnan(found[:, 0])], expected.numpy(), rtol=0.05, atol=0.02)


def test_predict_embeddings_where_bad_files_come_first_or_alone(best: str, command: Command, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for i in range(40):  # more than a batch
        (root / f"{i:02d}.png").parent.mkdir(exist_ok=True)
        (root / f"{i:02d}.png").write_text("bad")
    folder, code = command("predict", best, f"source={root}", "embeddings=true")
    assert (np.load(folder / "embeddings.npy").shape, code) == ((40, 0), 3)
    picture(root / "z.png")
    folder, _ = command("predict", best, f"source={root}", "embeddings=true")
    found = np.load(folder / "embeddings.npy")
    assert found.shape == (41, 512)
    assert np.isnan(found[:40]).all()
    assert not np.isnan(found[40]).any()


def test_predict_copies_into_folders_by_label(best: str, mixed: Path, command: Command, tmp_path: Path) -> None:
    picture(mixed / "c" / "b.png", (1, 2, 3))  # a name that is there twice
    target = tmp_path / "sorted"
    for _ in range(2):  # again: nothing is copied twice
        folder, _ = command("predict", best, f"source={mixed}", f"copy_to={target}")
        table = [r for r in rows(folder / "predictions.csv") if r["status"] == "ok"]
        copies = sorted(p for p in target.rglob("*") if p.is_file())
        assert len(copies) == len(table) == 6
        assert {p.parent.name for p in copies} == {r["label"] for r in table}
    contents = {p.read_bytes() for p in copies}
    assert contents == {Path(r["path"]).read_bytes() for r in table}


def test_predict_refuses_to_copy_into_its_source(
    best: str, mixed: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("predict", best, f"source={mixed}", f"copy_to={mixed}/sorted")
    assert code == 2
    assert "lies in the source" in capsys.readouterr().err
    assert not (mixed / "sorted").exists()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("../../up", "_.._up"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "_"),
        ("", "_"),
        ("  x. ", "x"),
        ("a?b*", "a_b_"),
    ],
)
def test_folder_name_leads_nowhere_else(label: str, name: str) -> None:
    assert prediction.folder_name(label) == name


@pytest.mark.slow
def test_predict_temperature_softens_and_keeps_the_label(best: str, photos: Path, command: Command) -> None:
    plain, _ = command("predict", best, f"source={photos}/val")
    soft, _ = command("predict", best, f"source={photos}/val", "temperature=4")
    for a, b in zip(rows(plain / "predictions.csv"), rows(soft / "predictions.csv"), strict=True):
        assert a["label"] == b["label"]
        assert float(b["confidence"]) <= float(a["confidence"])


def test_predict_and_evaluate_agree(best: str, photos: Path, command: Command) -> None:
    predicted, _ = command("predict", best, f"source={photos}/val")
    evaluated, _ = command("evaluate", best)
    theirs = {f"{photos}/{r['path']}": (r["label"], r["confidence"]) for r in rows(evaluated / "predictions.csv")}
    for row in rows(predicted / "predictions.csv"):
        assert theirs[row["path"]][0] == row["label"]
        assert float(theirs[row["path"]][1]) == pytest.approx(float(row["confidence"]), abs=0.01)


def test_interrupted_predict_keeps_its_rows_under_another_name(
    best: str, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 4)
    run, calls = prediction._run, []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(prediction, "_run", stop)
    folder, code = command("predict", best, f"source={photos}/val")
    assert code == 130
    assert "the rows so far are in" in capsys.readouterr().err
    assert not (folder / "predictions.csv").exists()
    assert len(rows(folder / "predictions.csv.part")) == 8


def test_gallery_keeps_the_most_and_the_least_certain() -> None:
    gallery = prediction.Gallery()
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for value in torch.randperm(100).tolist():
        gallery.add(value / 100, f"{value}", image)
    assert sorted(int(entry[2]) for entry in gallery._most) == list(range(92, 100))
    assert sorted(int(entry[2]) for entry in gallery._least) == list(range(8))


def test_load_keeps_order_and_does_not_run_ahead(photos: Path) -> None:
    taken: list[str] = []

    def names() -> Iterator[str]:
        for i in range(500):
            taken.append(f"{photos}/val/cat/{i % 4:02d}.png" if i % 5 else f"none{i}.png")
            yield taken[-1]

    batches = inputs.read_inputs(names(), lambda pixels: pixels, 10)
    for k in range(10):
        for i, item in enumerate(next(batches), start=10 * k):
            assert item.name == taken[i]
            assert (item.image is None) == (i % 5 == 0)
        assert len(taken) <= 10 * (k + 3)  # this batch, the next one, and the names of the one after
    batches.close()  # type: ignore[attr-defined]


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
    assert min(peak(10_000, f"many{i}") for i in range(2)) < few + (40 << 20)


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
    best: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.txt").touch()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert command("predict", best, *argv)[1] == 2
    error = capsys.readouterr().err
    assert message in error
    assert "adds a new one" not in error


def test_predict_takes_the_folder_of_a_run_and_names_with_nul(
    trained: Path, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos}/val/cat/00.png\0{photos}/val/dog/00.png\0"))
    folder, code = command("predict", f"ckpt={trained}", "source=-")
    assert code == 0
    assert len(rows(folder / "predictions.csv")) == 2
