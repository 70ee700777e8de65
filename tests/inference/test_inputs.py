"""Test `finetune.inference.inputs`."""

from __future__ import annotations

import http.server
import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from finetune.images.decode import BadImageError
from finetune.inference import inputs
from tests.helpers import write_image


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
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))  # seconds until it sees that it is to end
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
    whole = write_image(tmp_path / "large.jpg").read_bytes()
    at = whole.index(b"\xff\xc0") + 5  # height and width in the frame's header
    (tmp_path / "large.jpg").write_bytes(whole[:at] + b"\xff\xdc\xff\xdc" + whole[at + 4 :])
    with pytest.raises(BadImageError, match=r"are more than 89478485: give data\.max_pixels=4290250000"):
        inputs.read_input(str(tmp_path / "large.jpg"))
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(BadImageError, match="not an image"):
        inputs.read_input(str(tmp_path / "page.png"))


def test_read_from_an_address_where_nobody_listens() -> None:
    with pytest.raises(BadImageError, match=r"127\.0\.0\.1:9/a\.png: cannot be fetched"):
        inputs.read_input("http://127.0.0.1:9/a.png")


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
        assert len(taken) <= 10 * (k + 1)  # this batch and no more
    batches.close()  # type: ignore[attr-defined]


def test_an_archive_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").touch()
    with pytest.raises(ValueError, match=r"photos\.zip is an archive: unpack it and give its folder"):
        inputs.find_inputs(str(tmp_path / "photos.zip"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "label\tpath\ncat\timages/a.png\n\timages/b.png\n"),
        ("t.csv", "id;breed\na;cat\nb;\n"),  # without their ending, from the folder beside the table
        ("t.jsonl", '{"image": "images/a.png"}\n{"image": "images/b.png"}\n'),
        ("t.csv", 'path,remark\n"images\\a.png","x, y"\nimages/b.png,\n'),
    ],
)
def test_the_paths_of_a_table_are_found_as_in_training(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    files = [str(tmp_path / "images" / file) for file in ("a.png", "b.png")]
    for file in files:
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / name).write_text(text)
    found = inputs.find_inputs(str(tmp_path / name))
    assert (list(found.names), found.total) == (files, 2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.xlsx", "", r"source=.*t\.xlsx is no list that is read \(\.xlsx\): save it as \.csv"),
        ("t.json", "[]", r"source=.*t\.json is no list that is read"),
        ("t.csv", "breed,colour\ncat,red\n", r"source=.*t\.csv needs a column path, got breed, colour"),
        ("t.csv", "file,image\na,b\n", r"source=.*t\.csv needs a column path, got file, image"),
        ("t.csv", "a\0b", r"source=.*t\.csv is not .* a table in UTF-8"),
        ("t.csv", "path\n", r"source=.*t\.csv: there are no images in it"),
    ],
)
def test_tables_without_paths_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        inputs.find_inputs(str(tmp_path / name))
