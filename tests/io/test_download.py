"""Test `finetune.io.download`."""

from __future__ import annotations

import hashlib
import http.server
import io
import subprocess
import sys
import threading
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.io import download, paths
from finetune.io.download import Archive, extract_zip, fetch, tree_digest


def zip_of(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


GOOD = zip_of({"set/train/a/1.png": b"one" * 5000, "set/train/b/2.png": b"two" * 5000})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server whose next responses are programmed: bytes to send, how many of them, or a status."""
    state = SimpleNamespace(content=GOOD, cut=[], status=[], ranges=[], hits=0, length=None, stall=False, to=[])
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(state.status.pop(0) if state.status else 200)
            self.end_headers()

        def do_GET(self) -> None:
            state.hits += 1
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.status:
                self.send_error(state.status.pop(0))
                return
            if state.to:
                self.send_response(302)
                self.send_header("Location", state.to.pop(0))
                self.end_headers()
                return
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if first >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[first:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", state.length or str(len(body)))
            self.end_headers()
            if state.stall:
                self.wfile.write(body[:10])
                self.wfile.flush()
                released.wait(60)
                return
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

        def log_message(self, *args: Any) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))  # seconds until it sees that it is to end
    thread.start()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    state.url = f"http://127.0.0.1:{http_server.server_port}/set.zip"
    yield state
    released.set()
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_fetch_checks_extracts_and_leaves_only_the_data(server: SimpleNamespace, tmp_path: Path) -> None:
    source = Archive(server.url, sha1=hashlib.sha1(GOOD).hexdigest(), sha256=hashlib.sha256(GOOD).hexdigest())
    fetch(source, tmp_path / "photos")
    assert (tmp_path / "photos" / "train" / "a" / "1.png").read_bytes() == b"one" * 5000
    assert left(tmp_path) == ["photos"]
    fetch(source, tmp_path / "photos")
    assert server.hits == 1


def test_fetch_resumes_where_the_connection_broke(server: SimpleNamespace, tmp_path: Path) -> None:
    server.cut = [40, 60]
    fetch(Archive(server.url, sha1=hashlib.sha1(GOOD).hexdigest()), tmp_path / "photos")
    assert server.ranges == [None, "bytes=40-", "bytes=100-"]


def test_fetch_tries_again_after_a_server_error_and_not_after_404(server: SimpleNamespace, tmp_path: Path) -> None:
    server.status = [503, 503]
    fetch(Archive(server.url), tmp_path / "photos")
    assert server.hits == 3
    server.status = [404]
    with pytest.raises(FileNotFoundError, match=r"other does not exist and http.*404.*data\.root=FOLDER"):
        fetch(Archive(server.url), tmp_path / "other")
    assert server.hits == 4
    assert left(tmp_path) == ["photos"]


def test_fetch_starts_again_when_the_part_on_disk_is_too_long(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / ".photos.download").write_bytes(bytes(len(GOOD) + 10))
    fetch(Archive(server.url, sha1=hashlib.sha1(GOOD).hexdigest()), tmp_path / "photos")
    assert (tmp_path / "photos").is_dir()


@pytest.mark.parametrize("key", ["sha1", "sha256", "tree_sha256"])
def test_fetch_wrong_digest_keeps_nothing(key: str, server: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Nothing was kept"):
        fetch(Archive(server.url, **{key: "0" * 40}), tmp_path / "photos")
    assert left(tmp_path) == []


def test_fetch_without_a_network_says_which_folder_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(FileNotFoundError, match=r"photos does not exist.*unpack it so that .*photos is its folder"):
        fetch(Archive("http://127.0.0.1:9/set.zip"), tmp_path / "photos")


def test_fetch_by_several_at_once_downloads_once(server: SimpleNamespace, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fetch(Archive(server.url), tmp_path / "photos"), range(4)))
    assert server.hits == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.txt", "outside its folder"),
        ("/evil.txt", "outside its folder"),
        ("a/../../evil.txt", "outside"),
        ("C:/evil.txt", "outside"),
        ("..\\evil.txt", "outside"),
    ],
)
def test_extract_refuses_paths_that_leave_the_target(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"good.txt": b"x", name: b"x"}))
    with pytest.raises(ValueError, match=message):
        extract_zip(tmp_path / "a.zip", tmp_path / "in" / "target")
    assert not (tmp_path / "in").exists()


def test_extract_refuses_links_and_bombs(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="a link or a device"):
        extract_zip(tmp_path / "link.zip", tmp_path / "target")
    (tmp_path / "bomb.zip").write_bytes(zip_of({"zeros": bytes(300 << 20)}))
    with pytest.raises(ValueError, match="not credible"):
        extract_zip(tmp_path / "bomb.zip", tmp_path / "target")
    assert not (tmp_path / "target").exists()


# ids: a zip has the time in it, and so no name that stays
@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", GOOD[: len(GOOD) // 2], b""], ids=["another file", "half", "nothing"]
)
def test_extract_not_a_whole_zip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole zip file"):
        extract_zip(tmp_path / "a.zip", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_tree_digest_sees_names_and_contents_and_not_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(b"x")
    first = tree_digest(tmp_path)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    assert tree_digest(tmp_path) == first
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "2")
    assert tree_digest(tmp_path) != first


@pytest.mark.real
def test_tree_digest_of_the_real_hymenoptera_is_the_one_in_its_yaml(shared: Path) -> None:
    from omegaconf import OmegaConf

    expected = OmegaConf.load(paths.CONF / "data" / "hymenoptera.yaml").tree_sha256
    assert tree_digest(shared / "data" / "hymenoptera_data") == expected


# --- servers that misbehave --------------------------------------------------------------------------------------


def test_fetch_from_a_server_that_stalls_gives_up(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    server.stall = True
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(timed out\)"):
        fetch(Archive(server.url), tmp_path / "set")
    assert server.hits == download.ATTEMPTS
    assert not (tmp_path / "set").exists()
    server.stall = False
    fetch(Archive(server.url, sha256=hashlib.sha256(GOOD).hexdigest()), tmp_path / "set")  # goes on with the 40 bytes
    assert server.ranges[-1] == "bytes=40-"


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("99999999999999999", "99999999999999999 bytes long, which is not credible"),
        (str(len(GOOD) // 2), "is not a whole zip file"),  # and sends more, which nobody reads
    ],
)
def test_fetch_from_a_server_that_lies_about_the_length(
    length: str, message: str, server: SimpleNamespace, tmp_path: Path
) -> None:
    server.length = length
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        fetch(Archive(server.url), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_fetch_from_a_server_that_says_too_much_has_the_whole_file(server: SimpleNamespace, tmp_path: Path) -> None:
    server.length = str(len(GOOD) + 1000)
    fetch(Archive(server.url, sha256=hashlib.sha256(GOOD).hexdigest()), tmp_path / "set")
    assert server.ranges == [None, f"bytes={len(GOOD)}-"]


def test_fetch_follows_redirects_and_ends_in_a_circle(server: SimpleNamespace, tmp_path: Path) -> None:
    server.to = [server.url]
    fetch(Archive(server.url), tmp_path / "set")
    server.to = [server.url] * 100
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        fetch(Archive(server.url), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_fetch_never_leaves_https() -> None:
    handler = download._NoDowngrade()
    request = urllib.request.Request("https://example.org/set.zip")
    with pytest.raises(ValueError, match=r"redirects to http://example\.org/set\.zip, which is not https"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/set.zip")
    assert handler.redirect_request(request, None, 302, "", {}, "https://example.org/b.zip").full_url.endswith("b.zip")


def test_fetch_that_is_killed_while_unpacking_leaves_nothing_that_is_used(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "extract_zip", lambda archive, target: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch(Archive(server.url), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    fetch(Archive(server.url), tmp_path / "set")
    assert server.hits == 2  # the archive was there: only its end was asked for
    assert len(list((tmp_path / "set").rglob("*.png"))) == 2


FETCH = "import sys; from pathlib import Path; from finetune.io.download import *;"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data set", "weights"])
def test_processes_that_start_together_download_once(what: str, server: SimpleNamespace, tmp_path: Path) -> None:
    digest = hashlib.sha256(GOOD).hexdigest()
    code = {
        "data set": FETCH + f"fetch(Archive({server.url!r}), Path('set'))",
        "weights": FETCH + f"fetch_file({server.url!r}, Path('set/w-{digest[:8]}.pth'), {digest[:8]!r})",
    }[what]
    four = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(4)]
    assert [process.wait(120) for process in four] == [0] * 4
    assert server.hits == 1
    assert left(tmp_path) == ["set"]
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(files) == (2 if what == "data set" else 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[: len(GOOD) // 2], r"what came is not the file: its SHA-256 is \w+"),
        (b"<html>not found</html>", "what came is not the file"),
        (b"", "what came is not the file"),
    ],
    ids=["half", "another file", "nothing"],
)
def test_fetch_file_keeps_nothing_that_is_wrong(
    content: bytes, message: str, server: SimpleNamespace, tmp_path: Path
) -> None:
    server.content = content or b"x"
    with pytest.raises(download.DownloadError, match=message):
        download.fetch_file(server.url, tmp_path / "w.pth", hashlib.sha256(GOOD).hexdigest()[:8])
    assert left(tmp_path) == []


def test_fetch_file_that_is_there_needs_neither_network_nor_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.pth").write_bytes(GOOD)
    monkeypatch.setattr(download, "FileLock", lambda path: (_ for _ in ()).throw(PermissionError(path)))
    download.fetch_file("http://127.0.0.1:9/w.pth", tmp_path / "w.pth", "0000")


@pytest.mark.parametrize(
    "members",
    [{"a": b"1", "a/b": b"2"}, {"x" * 300: b"1"}],
    ids=["file and folder", "long name"],
)
def test_extract_of_names_that_cannot_be_is_one_error(members: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.write_bytes(zip_of(members))
    with pytest.raises(ValueError, match=r"a\.zip is not a whole zip file"):
        extract_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_address_is_reachable_or_not(server: SimpleNamespace) -> None:
    assert download.is_reachable(server.url)
    server.status = [404]
    assert not download.is_reachable(server.url)
    assert not download.is_reachable("http://127.0.0.1:9/nothing")
