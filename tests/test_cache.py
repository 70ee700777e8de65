from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cache import main
from finetune.io.store import METADATA_FILE, Cache, default_cache_folder

GIB = 2**30


def fill(size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(size))

    return write


def add(cache: Cache, name: str, size: int, used: float) -> Path:
    path = cache.path("thing", {"name": name})
    with cache.locked(path):
        cache.make(path, {"description": name}, size, fill(size))
    if used < 1000:  # by a run that is over
        cache.in_use.discard(path)
    os.utime(path / METADATA_FILE, (used, used))
    return path


def names(cache: Cache) -> list[str]:
    return [e.metadata["description"] for e in cache.entries()]


def test_path_depends_on_every_part_of_the_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.path("a", {"x": 1, "y": [2]}) == cache.path("a", {"y": [2], "x": 1})
    assert len({cache.path("a", {"x": 1}), cache.path("a", {"x": 2}), cache.path("b", {"x": 1})}) == 3


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    paths = {n: add(cache, n, 1500, used=100 + i) for i, n in enumerate("abc")}
    cache.touch(paths["a"])
    cache.in_use.clear()
    add(cache, "d", 1500, used=time.time() + 1)
    assert names(cache) == ["c", "a", "d"]
    assert sum(e.bytes for e in cache.entries()) < 5200


def test_what_is_larger_than_the_limit_or_the_disk_is_refused_and_removes_nothing_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    add(cache, "a", 1500, used=100)
    with pytest.raises(OSError, match=r"more than paths.cache_gib="):
        add(cache, "b", 6000, used=101)
    assert names(cache) == ["a"]
    with pytest.raises(OSError, match=r"do not fit into the .* that are free"):
        Cache(tmp_path / "large", gib=2**40).make(tmp_path / "large" / "x", {}, 2**60, fill(1))


def test_what_this_run_needs_makes_no_room(tmp_path: Path) -> None:
    add(Cache(tmp_path), "old", 1500, used=100)
    cache, now = Cache(tmp_path, gib=5000 / GIB), time.time()
    add(cache, "train", 2500, used=now)
    add(cache, "val", 2000, used=now + 1)
    assert names(cache) == ["train", "val"]
    with pytest.raises(OSError, match="leaves beside what this run needs"):
        add(cache, "more", 2000, used=now + 2)
    assert names(cache) == ["train", "val"]


def test_other_things_in_the_folder_are_let_be(tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / METADATA_FILE).write_text("{}")
    (tmp_path / ".something.tmp").mkdir()
    cache = Cache(tmp_path, gib=2000 / GIB)
    add(cache, "a", 1500, used=100)
    add(cache, "b", 1500, used=101)
    cache.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".something.tmp", "photos"]


def test_entries_of_the_old_layout_are_removed_when_room_is_made_and_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def add_old(name: str) -> Path:
        path = add(cache, name, 10, used=100)
        (path / METADATA_FILE).rename(path / "about.json")
        return path

    old, other = add_old("old"), tmp_path / "photos"
    other.mkdir()
    (other / "about.json").write_text("{}")
    assert names(cache) == []
    add(cache, "new", 10, used=100)
    assert not old.exists()
    old = add_old("older")
    assert cache.clear()[0] == 2
    assert list(tmp_path.iterdir()) == [other]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.path("thing", {"name": "killed"})
    (tmp_path / f".{path.name}.tmp").mkdir()
    busy = cache.path("thing", {"name": "busy"})
    (tmp_path / f".{busy.name}.tmp").mkdir()
    with cache.locked(busy):
        add(cache, "a", 10, used=100)
        assert [p.name for p in tmp_path.glob(".*.tmp")] == [f".{busy.name}.tmp"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "data").write_bytes(b"half")
        raise OSError("No space left on device")

    path = cache.path("thing", {})
    with pytest.raises(OSError, match="No space left"):
        cache.make(path, {}, 10, fail)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    made = []

    def work() -> None:
        cache = Cache(tmp_path)
        path = cache.path("thing", {})
        with cache.locked(path):
            if not path.exists():
                made.append(threading.get_ident())
                cache.make(path, {}, 10, lambda folder: time.sleep(0.2))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_an_entry_with_damaged_metadata_is_still_listed_and_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = add(cache, "a", 10, used=100)
    (path / METADATA_FILE).write_text("{")
    assert len(cache.entries()) == 1
    assert cache.clear()[0] == 1
    assert cache.entries() == []


def test_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "finetune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "finetune"


def test_command_lists_and_clears(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dir", str(tmp_path / "none")])
    assert "Nothing is kept in" in capsys.readouterr().out
    cache = Cache(tmp_path)
    add(cache, "features of resnet18", 3 << 20, used=time.time() - 7300)
    add(cache, "pixels", 1000, used=time.time())
    main(["--dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "features of resnet18" in out
    assert "3.0 MiB" in out
    assert "2 hours ago" in out
    assert out.index("pixels") < out.index("features of")  # the last used first
    main(["clear", "--dir", str(tmp_path)])
    assert "Removed 2 entries, 3.0 MiB" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
