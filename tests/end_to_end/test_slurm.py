"""Train in batch jobs of a real Slurm, with the batch files of the documentation.

With FINETUNE_SLURM=1, which starts one on this machine (`benchmarks/slurm/slurm.sh`, which can install it too).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.helpers import RunUntil, assert_same_run, metrics_rows, read_metrics
from tests.helpers import TINY, Start

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "slurm" / "slurm.sh"
BATCH_FILES = ROOT / "docs" / "slurm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("FINETUNE_SLURM") != "1", reason="FINETUNE_SLURM=1 tries it on a real Slurm"),
]

# sbatch's own arguments count more than those in the file; this machine is smaller than what that asks for
SMALL = ("--cpus-per-task=1", "--mem=2G")
LONG = ("strategy=finetune", "optimizer.lr=0.001", "data.augment=basic", "trainer.max_epochs=50")
ON_CPU = (*(word for word in TINY if word != "trainer=cpu"), "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this machine: the environment in which its commands find it."""
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True, check=True)
    was_there = "it runs already" in started.stderr
    yield {
        **os.environ,
        "SLURM_CONF": started.stdout.strip().rpartition("=")[2],
        "MASTER_ADDR": "127.0.0.1",  # no name server knows the names of its nodes
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    if not was_there:
        subprocess.run([SCRIPT, "stop"], check=True)


class Cluster:
    """Submit jobs in a folder, and have them requeued."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder = env, folder

    def call(self, *argv: str | Path) -> str:
        return subprocess.run(argv, env=self.env, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def submit(self, *argv: str | Path) -> str:
        """The id of a job of sbatch's arguments."""
        return self.call("sbatch", "--parsable", "--output=%j.out", *SMALL, *argv).strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, ...; COMPLETED and the like only for a while."""
        return self.call("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}").strip()

    def wait(self, what: str, is_so: Callable[[], object], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: {self.output()}"
            time.sleep(0.05)

    def wait_for(self, pattern: str) -> None:
        self.wait(pattern, lambda: list(self.folder.glob(pattern)))

    def signal(self, job: str, name: str = "USR1") -> None:
        """What Slurm does shortly before the time of a job is up; the job is started again, without Slurm's two minutes."""
        self.call("scancel", f"--signal={name}", job)
        self.wait("the job is not requeued", lambda: self.state(job) == "PENDING")
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
        self.wait("the job is not started again", lambda: self.state(job) != "PENDING")

    def finish(self, job: str) -> None:
        """Wait for the end of a job that succeeds."""
        self.wait("the job does not end", lambda: set(self.state(job).split()) <= {"COMPLETED", "FAILED"})
        assert set(self.state(job).split()) == {"COMPLETED"}, self.output()

    def output(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.out"))

    def runs(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "runs" / "train").iterdir())


@pytest.fixture
def cluster(slurm: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(slurm, tmp_path)
    yield cluster
    cluster.call("scancel", "--user=root", "--full")
    cluster.wait("jobs are left", lambda: not cluster.call("squeue", "--noheader"))


@pytest.mark.parametrize("moment", ["runs/train/*", "runs/train/*/checkpoints/last.ckpt"])
def test_a_run_goes_on_where_its_time_was_up(
    moment: str, cluster: Cluster, run_until: RunUntil, photos: Path, tmp_path: Path
) -> None:
    """Also where it had not begun to train."""
    whole = run_until(*LONG)
    job = cluster.submit(BATCH_FILES / "run.sbatch", *TINY, *LONG, f"data.root={photos}")
    cluster.wait_for(moment)
    cluster.signal(job)
    cluster.finish(job)
    assert cluster.runs() == [f"slurm_{job}"]
    assert_same_run(whole, tmp_path / "runs" / "train" / f"slurm_{job}")


def test_an_array_has_a_folder_for_each_of_its_runs(cluster: Cluster, photos: Path, tmp_path: Path) -> None:
    job = cluster.submit("--array=0-1", BATCH_FILES / "array.sbatch", *TINY, f"data.root={photos}")
    cluster.finish(job)
    assert cluster.runs() == [f"slurm_{job}_0", f"slurm_{job}_1"]
    commands = [read_metrics(tmp_path / "runs" / "train" / name)["command"] for name in cluster.runs()]
    assert [command.rpartition("seed=")[2] for command in commands] == ["0", "1"]


def test_a_sweep_goes_on_where_its_time_was_up(
    cluster: Cluster, run_until: RunUntil, photos: Path, tmp_path: Path
) -> None:
    whole = run_until(*LONG, "seed=1")
    words = (*TINY, *LONG, f"data.root={photos}", "seed=0,1,2")
    job = cluster.submit(BATCH_FILES / "sweep.sbatch", *words)
    sweep = tmp_path / "runs" / "train" / "sweeps" / f"slurm_{job}"
    cluster.wait_for("runs/train/sweeps/*/1/checkpoints/last.ckpt")
    first = (sweep / "0" / "metrics.json").stat().st_mtime_ns
    cluster.signal(job)
    cluster.finish(job)
    assert (sweep / "0" / "metrics.json").stat().st_mtime_ns == first
    assert [path.name for path in sweep.parent.iterdir()] == [sweep.name]
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "2"]
    assert_same_run(whole, sweep / "1")
    assert len((sweep / "leaderboard.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("options", [["--nodes=1", "--ntasks-per-node=2"], ["--ntasks-per-node=1"]])
def test_several_tasks_are_one_run_that_goes_on(
    options: list[str], cluster: Cluster, photos: Path, tmp_path: Path
) -> None:
    """On one node and on two. The folders of other tasks than the first are temporary ones."""
    job = cluster.submit(*options, BATCH_FILES / "two_nodes.sbatch", *ON_CPU, *LONG, f"data.root={photos}")
    cluster.wait_for("runs/train/*/checkpoints/last.ckpt")
    cluster.signal(job)
    cluster.finish(job)
    assert cluster.runs() == [f"slurm_{job}"]
    folder = tmp_path / "runs" / "train" / f"slurm_{job}"
    assert sum(map(sum, json.loads((folder / "metrics.json").read_text())["confusion_matrix"])) == 12
    assert [row["epoch"] for row in metrics_rows(folder)] == [str(epoch) for epoch in range(1, 51)]
    assert not list(Path("/tmp").glob("finetune_rank*"))


@pytest.mark.parametrize(
    ("options", "command", "sentence"),
    [
        (["--ntasks-per-node=2"], "python", "not one of its tasks; srun starts them"),
        (["--ntasks-per-node=2"], "srun python", "2 processes were started for one that runs on one device"),
    ],
)
def test_tasks_that_would_wait_or_train_the_same_are_refused(
    options: list[str], command: str, sentence: str, cluster: Cluster, photos: Path
) -> None:
    words = " ".join((*TINY, f"data.root={photos}"))
    job = cluster.submit("--nodes=1", *options, f"--wrap={command} -m finetune.train {words}")
    cluster.wait("the job does not end", lambda: cluster.state(job) == "FAILED")
    assert sentence in cluster.output()


def test_a_sweep_of_jobs_goes_on_where_the_time_of_one_was_up(
    cluster: Cluster, run_until: RunUntil, start: Start, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra launchers is not installed")
    whole = run_until(*LONG, "seed=1")
    words = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
    sweep = start(*LONG, "-m", "seed=0,1", *words, env=cluster.env)
    cluster.wait_for("runs/train/sweeps/*/1/checkpoints/last.ckpt")
    job = next(line for line in cluster.call("squeue", "--noheader", "--array", "--format=%i").split() if "_1" in line)
    cluster.signal(job, "USR2")  # submitit's own
    output, errors = sweep.communicate(timeout=180)
    assert sweep.returncode == 0, errors
    assert "Validation accuracy" in output
    folder = next((tmp_path / "runs" / "train" / "sweeps").iterdir())
    points = [path.parent for path in folder.glob("*/config.yaml")]
    assert len(points) == 2
    requeued = next(path for path in points if "seed: 1\n" in (path / "config.yaml").read_text())
    assert_same_run(whole, requeued)
