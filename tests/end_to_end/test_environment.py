"""Run commands in odd places: no home, little shared memory, other languages, links, a full disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.helpers import finished, wait_for
from tests.helpers import TINY, Start, write_images

pytestmark = pytest.mark.slow


def run(*argv: str, cwd: Path, before: tuple[str, ...] = (), python: tuple[str, ...] = (), **environment: str) -> Any:
    """The command in a process of its own, with only these variables beside PATH."""
    kept = {key: os.environ[key] for key in ("PATH", "XDG_CACHE_HOME", "PYTHONPATH") if key in os.environ}
    environment = {key: value for key, value in {**kept, **environment}.items() if value}
    words = [*before, sys.executable, *python, "-m", *argv]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, errors="replace"
    )


def assert_well(done: Any) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stderr.strip() == ""


def mounts_work() -> bool:
    """Whether we may make file systems of our own."""
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"]
    return subprocess.run(words, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not mounts_work(), reason="file systems cannot be mounted here")


SMALL_SHM = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh")


def test_without_a_home_to_write_to(photos: Path, tmp_path: Path) -> None:
    words = [w for w in TINY if w != "report=false"]
    done = run("finetune.train", *words, f"data.root={photos}", cwd=tmp_path, HOME="/proc/none", XDG_CACHE_HOME="")
    assert_well(done)
    assert "computed again in every step" in done.stdout  # features cannot be kept
    assert list(tmp_path.glob("runs/train/*/report.html"))


def test_in_plain_c_with_spaces_and_letters_of_all_kinds_and_a_link_as_root(tmp_path: Path) -> None:
    root = tmp_path / "my pictures, été (2024) = 100%"
    write_images(root, {"train": {"Käfer": 8, "猫 🐈": 8}, "val": {"Käfer": 2, "猫 🐈": 2}})
    (tmp_path / "link to them").symlink_to(root)
    here = tmp_path / "là"
    here.mkdir()
    words = [w for w in TINY if w != "report=false"]
    done = run(
        "finetune.train", *words, f"data.root={tmp_path}/link to them", cwd=here, LANG="C", LC_ALL="C", HOME=str(here)
    )
    assert_well(done)
    folder = next(here.glob("runs/train/*"))
    assert (folder / "report.html").exists()
    done = run(
        "finetune.predict", f"ckpt={folder}", f"source={root}/val", cwd=here, LANG="C", LC_ALL="C", HOME=str(here)
    )
    assert_well(done)
    table = next(here.glob("runs/predict/*/predictions.csv")).read_text(encoding="utf-8")
    assert "Käfer" in table
    assert "猫 🐈" in table


def test_lists_with_windows_line_ends(photos: Path, tmp_path: Path, trained: Path) -> None:
    rows = [
        (f"{split}/{name}/0{i}.png", name, split)
        for split in ("train", "val")
        for name in ("cat", "dog")
        for i in range(4)
    ]
    table = "\r\n".join(["\ufeffpath,label,split", *(",".join(row) for row in rows), ""])
    shutil.copytree(photos, tmp_path / "p")
    (tmp_path / "p" / "table.csv").write_bytes(table.encode())
    assert_well(run("finetune.train", *TINY, "data=csv", f"data.root={tmp_path}/p/table.csv", cwd=tmp_path))
    (tmp_path / "list.txt").write_bytes(b"\r\n".join(f"{photos}/{path}".encode() for path, _, _ in rows) + b"\r\n")
    assert_well(run("finetune.predict", f"ckpt={trained}", f"source={tmp_path}/list.txt", "report=false", cwd=tmp_path))


def test_with_all_warnings_as_errors(photos: Path, tmp_path: Path) -> None:
    words = [w for w in TINY if w != "report=false"]
    done = run(
        "finetune.train", *words, f"data.root={photos}", cwd=tmp_path, python=("-W", "error"), HOME=str(tmp_path)
    )
    assert_well(done)


@needs_mounts
def test_with_one_mebibyte_of_shared_memory(photos: Path, tmp_path: Path) -> None:
    words = (*TINY, f"data.root={photos}", "data.batch_size=24")
    done = run("finetune.train", *words, "data.num_workers=auto", cwd=tmp_path, before=SMALL_SHM)
    assert_well(done)
    assert "/dev/shm is too small for workers" in " ".join(done.stdout.split())
    # 24 x 3 x 224 x 224 bytes do not fit
    asked = ("data.num_workers=2", "data.image_size=224", "data.augment=basic", "strategy=finetune")
    done = run("finetune.train", *words, *asked, cwd=tmp_path, before=SMALL_SHM)
    assert done.returncode == 2, done.stderr[-3000:]
    assert (
        re.search(r"data.num_workers=2 needs \d+ MiB of shared memory, and /dev/shm has 1 left: data", done.stderr)
        is not None  # how many depends on the machine's batches of evaluation
    )
    assert "Traceback" not in done.stderr


def test_a_worker_outlives_signals_and_ends_with_the_main_process(tmp_path: Path) -> None:
    """Also where the main process has lost sight of it, and multiprocessing waits for it at exit."""
    code = """
import multiprocessing, os, signal
from finetune.data import loaders
batches = [[(0, i)] for i in range(9)]
class Numbers:
    def __getitem__(self, index): return index[1]
    def __len__(self): return 9
options = dict(batch_sampler=batches, num_workers=2, collate_fn=list, worker_init_fn=loaders.ignore_signals)
iterator = iter(loaders.WorkerDataLoader(Numbers(), **options))
assert [next(iterator), next(iterator)] == [[0], [1]]  # both workers are at work
for worker in multiprocessing.active_children():
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
assert list(iterator) == [[i] for i in range(2, 9)]
iterator = iter(loaders.WorkerDataLoader(Numbers(), **options))
iterator._shutdown_workers = lambda: None
print(*(worker.pid for worker in multiprocessing.active_children()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.split()) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in done.stdout.split())


@pytest.mark.parametrize("which", [0, -1])
def test_a_worker_process_that_is_killed_ends_the_run_with_a_hint(which: int, start: Start, tmp_path: Path) -> None:
    words = ("trainer.max_epochs=5000", "strategy=finetune", "data.num_workers=2", "data.augment=basic")
    process = start(*words, "hydra.run.dir=out")
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[which]), signal.SIGKILL)
    errors = finished(process, 2, timeout=60)
    assert "a process that decodes images has died" in errors
    assert "data.num_workers=0" in errors
    assert "Traceback" not in errors
    assert torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)


@needs_mounts
def test_on_a_disk_that_is_full(photos: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    before = (
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=4m tmpfs {disk} && "$@"; code=$?; ls -A {disk}/run/checkpoints; exit $code',
        "sh",
    )
    done = run("finetune.train", *TINY, f"data.root={photos}", f"hydra.run.dir={disk}/run", cwd=tmp_path, before=before)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "No space left on device" in done.stderr
    assert "MiB are free in" in done.stderr
    assert "Traceback" not in done.stderr
    assert ".tmp" not in done.stdout  # what was half written is gone


def test_on_a_disk_that_may_only_be_read(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in (
        (f"{tmp_path}/file/run", "Not a directory"),
        ("/proc/none/run", "No such file or directory"),
    ):
        done = run("finetune.train", *TINY, f"data.root={photos}", f"hydra.run.dir={folder}", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
        assert "Data" not in done.stdout  # before anything is read


def test_an_error_about_a_name_that_is_no_text_is_logged(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\nB\xe4r.png,cat\nx.png,dog\n")
    done = run("finetune.train", *TINY, "data=csv", f"data.root={tmp_path}/t.csv", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 2
    assert "Logging error" not in done.stderr
    assert r"path is 'B\udce4r.png', and there is no file" in " ".join(done.stderr.split())
    assert r"B\udce4r.png" in (tmp_path / "out" / "train.log").read_text()
