"""Test `finetune.io.store`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune.io.store import METADATA_FILE, Cache, default_cache_folder
from tests.helpers import add_cache_entry, write_bytes_into

GIB = 2**30


def names(cache: Cache) -> list[str]:
    return [e.metadata["description"] for e in cache.entries()]


def test_path_depends_on_every_part_of_the_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.path("a", {"x": 1, "y": [2]}) == cache.path("a", {"y": [2], "x": 1})
    assert len({cache.path("a", {"x": 1}), cache.path("a", {"x": 2}), cache.path("b", {"x": 1})}) == 3


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    paths = {n: add_cache_entry(cache, n, 1500, used=100 + i) for i, n in enumerate("abc")}
    cache.touch(paths["a"])
    cache.in_use.clear()
    add_cache_entry(cache, "d", 1500, used=time.time() + 1)
    assert names(cache) == ["c", "a", "d"]
    assert sum(e.bytes for e in cache.entries()) < 5200


def test_what_is_larger_than_the_limit_or_the_disk_is_refused_and_removes_nothing_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    add_cache_entry(cache, "a", 1500, used=100)
    with pytest.raises(OSError, match=r"more than paths.cache_gib="):
        add_cache_entry(cache, "b", 6000, used=101)
    assert names(cache) == ["a"]
    with pytest.raises(OSError, match=r"do not fit into the .* that are free"):
        Cache(tmp_path / "large", gib=2**40).make(tmp_path / "large" / "x", {}, 2**60, write_bytes_into(1))


def test_what_this_run_needs_makes_no_room(tmp_path: Path) -> None:
    add_cache_entry(Cache(tmp_path), "old", 1500, used=100)
    cache, now = Cache(tmp_path, gib=5000 / GIB), time.time()
    add_cache_entry(cache, "train", 2500, used=now)
    add_cache_entry(cache, "val", 2000, used=now + 1)
    assert names(cache) == ["train", "val"]
    with pytest.raises(OSError, match="leaves beside what this run needs"):
        add_cache_entry(cache, "more", 2000, used=now + 2)
    assert names(cache) == ["train", "val"]


def test_other_things_in_the_folder_are_let_be(tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / METADATA_FILE).write_text("{}")
    (tmp_path / ".something.tmp").mkdir()
    cache = Cache(tmp_path, gib=2000 / GIB)
    add_cache_entry(cache, "a", 1500, used=100)
    add_cache_entry(cache, "b", 1500, used=101)
    cache.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".something.tmp", "photos"]


def test_entries_of_the_old_layout_are_removed_when_all_is_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def add_old(name: str) -> Path:
        path = add_cache_entry(cache, name, 10, used=100)
        (path / METADATA_FILE).rename(path / "about.json")
        return path

    old, other = add_old("old"), tmp_path / "photos"
    other.mkdir()
    (other / "about.json").write_text("{}")
    assert names(cache) == []
    add_cache_entry(cache, "new", 10, used=100)
    assert old.exists()  # a run of the version that knows them may use them
    assert cache.clear()[0] == 2
    assert list(tmp_path.iterdir()) == [other]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.path("thing", {"name": "killed"})
    (tmp_path / f".{path.name}.tmp").mkdir()
    busy = cache.path("thing", {"name": "busy"})
    (tmp_path / f".{busy.name}.tmp").mkdir()
    with cache.locked(busy):
        add_cache_entry(cache, "a", 10, used=100)
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
    path = add_cache_entry(cache, "a", 10, used=100)
    (path / METADATA_FILE).write_text("{")
    assert len(cache.entries()) == 1
    assert cache.clear()[0] == 1
    assert cache.entries() == []


def test_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "finetune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "finetune"


HOLD = """
import sys
from pathlib import Path
from finetune.io.store import Cache
cache = Cache(Path(sys.argv[1]))
cache.hold(Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_what_a_process_holds_is_not_removed_until_it_ends(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    held, other = (add_cache_entry(cache, name, 1500, used=100 + i) for i, name in enumerate(("held", "other")))
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.utime(held / METADATA_FILE, (1, 1))  # the oldest again
        add_cache_entry(cache, "new", 2500, used=200)
        assert (held.exists(), other.exists()) == (True, False)
        process.stdin.write("\n")
    add_cache_entry(cache, "newer", 1500, used=300)
    assert not held.exists()


def test_what_this_process_holds_outlives_a_fit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, gib=5000 / GIB)
    cache.hold(add_cache_entry(cache, "held", 1500, used=100))
    cache.clear()
    held = add_cache_entry(cache, "held", 1500, used=100)  # again, under the same name
    other = add_cache_entry(cache, "other", 1500, used=101)
    cache.hold(held)
    cache.in_use.clear()  # the end of a fit
    os.utime(held / METADATA_FILE, (1, 1))
    add_cache_entry(cache, "new", 2500, used=200)
    assert (held.exists(), other.exists()) == (True, False)


def test_an_entry_that_holds_folders_is_as_large_as_it_says(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.path("thing", {})

    def fill(folder: Path) -> None:
        (folder / "tree").mkdir()
        (folder / "tree" / "data").write_bytes(bytes(10**6))

    with cache.locked(path):
        cache.make(path, {"description": "x", "bytes": 10**6}, 10**6, fill)
    assert 10**6 <= cache.entries()[0].bytes < 10**6 + 10**4
