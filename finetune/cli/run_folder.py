"""Choose, claim and describe the folder of a run."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.cli.arguments import SWEEP_RECORD, drop_sweep_words, override_key, unquote_path
from finetune.cli.points import read_asked
from finetune.runtime import process, timing
from finetune.runtime.mappings import select
from finetune.runtime.passwords import without_password, without_passwords


@dataclass
class CommandState:
    """Remember the command that this process runs."""

    argv: list[str] = field(default_factory=list)
    """Arguments as they were typed."""
    overrides: list[str] = field(default_factory=list)
    """Overrides as Hydra records them in the folder of a run."""
    from_arguments: bool = True
    """Whether they say all: a configuration may have been changed since, or composed by others."""
    folders: dict[tuple[str, str], str] = field(default_factory=dict)
    """Folders that `unique_dir` has made, by its arguments."""
    goes_on: bool = False
    """Whether this is a point of a sweep that was stopped in the middle."""
    sweep_folder: Path | None = None
    """Of the sweep that this process has started."""
    lock: FileLock | None = None
    """Keeps other sweeps out of that folder."""
    record_before: bytes | None = None
    """What the sweep there before was started with."""
    began: float = field(default_factory=time.monotonic)
    """When the command, or in a sweep its current point, began, by `time.monotonic`."""
    is_first: bool = True
    """Whether no command has begun in this process yet."""
    is_new: bool = False
    """Whether no run of the command has begun yet."""

    def start(self, argv: Sequence[str], overrides: Sequence[str], from_arguments: bool = True) -> None:
        """Forget the command before, and remember this one."""
        self.from_arguments = from_arguments
        self.argv[:] = argv
        self.overrides[:] = [word for word in overrides if not word.startswith(("-", "hydra.", "hydra/"))]
        self.folders.clear()
        self.goes_on, self.sweep_folder = False, None
        self.began = timing.command_began() if self.is_first else time.monotonic()
        self.is_first, self.is_new = False, True

    def begin_run(self, alone: bool) -> None:
        """Count the time of a run from now on; where it is the only one of its command, from the command's start on."""
        if not (alone and self.is_new):
            self.began = time.monotonic()
        self.is_new = False

    def claim_sweep(self, folder: Path) -> None:
        """Keep other processes from running a sweep in a folder.

        Raises:
            Timeout: one does.
        """
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
        self.sweep_folder, self.lock = folder, lock
        record = folder / SWEEP_RECORD
        self.record_before = record.read_bytes() if record.is_file() else None

    def restore_record(self) -> None:
        """Put back what another sweep was started with, where this one has failed before its first point."""
        if self.sweep_folder is not None and self.record_before is not None and not read_asked(self.sweep_folder):
            (self.sweep_folder / SWEEP_RECORD).write_bytes(self.record_before)

    def release(self) -> None:
        """Let other processes have the folder of the sweep."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None


# The only mutable state of the command line. It is global because Hydra stands between those who write it and those who
# read it: it calls the resolver `unique_dir` with strings alone, and the function of a command with `cfg` alone
STATE = CommandState()


def command_line(name: str) -> list[str]:
    """Return the words that repeat this command, without passwords; in a sweep, those that repeat the current run alone."""
    hydra_config = HydraConfig.get()
    if not STATE.from_arguments:
        path = str(Path(hydra_config.runtime.output_dir, "config.yaml"))
        imports = f"from omegaconf import OmegaConf; from finetune.{name} import {name}"
        return ["python", "-c", f"{imports}; {name}(OmegaConf.load({path!r}))"]
    words = STATE.argv if hydra_config.mode != RunMode.MULTIRUN else drop_sweep_words(hydra_config.overrides.task)
    return ["python", "-m", f"finetune.{name}", *map(without_password, words)]


def train_words() -> list[str]:
    """Return the words of `finetune.rank` that `finetune.train` takes too: those that say which images, and where.

    Without augmentation: the ranking has none, and its features are those of plain images.
    """
    hydra_config = HydraConfig.get()
    words = STATE.argv if hydra_config.mode != RunMode.MULTIRUN else list(hydra_config.overrides.task)
    augmentation = ("data.augment", "data/augment", "data.random_erasing", "data.flip")
    common = [
        unquote_path(word)
        for word in words
        if override_key(word).split(".")[0].split("/")[0] in ("data", "trainer", "paths")
        and override_key(word) not in augmentation
    ]
    names = [*common] if any(override_key(word) == "data" for word in common) else ["data=imagefolder", *common]
    return [*_config_dir(words), *names]


def _config_dir(words: Sequence[str]) -> list[str]:
    """Return the flag that names a folder of YAML files, with its value."""
    for i, word in enumerate(words):
        if word in ("--config-dir", "-cd"):
            return list(words[i : i + 2])
        if word.startswith("--config-dir="):
            return [word]
    return []


def begin_run(cfg: DictConfig, name: str) -> Path:
    """Claim the run folder of a command, before torch is imported, and return it.

    Raises:
        FileExistsError: the folder holds another run.
        ValueError: a sweep over several devices, or another number of processes than the run takes.
    """
    STATE.begin_run(alone=HydraConfig.get().mode != RunMode.MULTIRUN)
    _require_processes(cfg, name)
    if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
        _require_one_device(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    claim_folder(cfg, folder)
    return folder


def began() -> float:
    """Return when the current run began, by `time.monotonic`."""
    return STATE.began


def _require_processes(cfg: DictConfig, name: str) -> None:
    """Refuse several processes for a run that takes one, and a batch script without srun, where Lightning waits for ever."""
    nodes, devices = OmegaConf.select(cfg, "trainer.num_nodes") or 1, OmegaConf.select(cfg, "trainer.devices") or 1
    tasks = process.slurm_tasks()
    if process.slurm_job() and not process.is_slurm_task() and not process.is_launched():
        if "trainer" in cfg and max(tasks, nodes) > 1:
            raise ValueError(
                f"This is the script of a batch job (tasks: {tasks}, trainer.num_nodes={nodes}) and not one of its tasks; "
                f"srun starts them: srun python -m finetune.{name} ... A run on one device has one task: "
                "#SBATCH --ntasks=1 --cpus-per-task=CORES"
            )
        return
    processes = int(os.environ.get("WORLD_SIZE", tasks))
    if processes > 1 and nodes == 1 and str(devices) == "1":
        several = "; trainer=ddp trainer.devices=N is for several" if name == "train" else ""
        raise ValueError(
            f"{processes} processes were started for one that runs on one device{several}. For several runs there are "
            "sweeps (-m seed=0,1) and job arrays."
        )


def _require_one_device(cfg: DictConfig) -> None:
    """Refuse several devices: their processes are started with the sweep's arguments and would start it again."""
    if (devices := cfg.trainer.get("devices")) in (1, "1", None) and cfg.trainer.get("num_nodes", 1) == 1:
        return
    raise ValueError(
        f"A sweep takes one device a run, not trainer.devices={devices}. For runs over several, let the shell sweep: "
        "for seed in 0 1 2; do python -m finetune.train seed=$seed trainer=ddp ...; done"
    )


def unique_dir(base: str, name: str) -> str:
    """Make a folder that no other run has, and return it: `base/name`, or with _1, _2, ... appended.

    The same arguments give the same folder until the next command, because Hydra asks several times. A batch job of Slurm
    gets one with its id, and when it is requeued the folder that it had before.
    """
    key = (base, name)
    if key not in STATE.folders:
        make = _make_unique_dir if process.is_first_process() else _make_temporary_dir
        STATE.folders[key] = str(make(Path(base), process.slurm_job() or name))
    return STATE.folders[key]


# the YAML files name it
OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True)


def _make_unique_dir(base: Path, name: str) -> Path:
    for path in _numbered(base, name):
        if process.is_requeued() and _holds_this_command(path):
            return path
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("the numbers have no end")


def _numbered(base: Path, name: str) -> Iterator[Path]:
    yield base / name
    yield from (base / f"{name}_{number}" for number in itertools.count(1))


def _make_temporary_dir(base: Path, name: str) -> Path:
    """Make a folder for another process than the first of a run, which is removed when it ends.

    Processes that srun or torchrun has started compose for themselves, and Hydra wants a folder for each. What they print is
    all that they have to say.
    """
    path = Path(tempfile.mkdtemp(prefix=f"finetune_rank{process.process_rank()}_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def first_folder(cfg: DictConfig, folder: Path) -> Path:
    """Return the folder in which a requeued run has saved what it goes on from: that of its first process.

    Args:
        cfg: of the run.
        folder: of this process.
    """
    for (base, name), made in STATE.folders.items():
        if made == str(folder) and not process.is_first_process():
            # not by `_holds_this_command`: the first process may be writing that file again
            for path in itertools.takewhile(Path.exists, _numbered(Path(base), process.slurm_job() or name)):
                if _holds_configuration(path, cfg):
                    return path
    return folder


def _holds_this_command(folder: Path) -> bool:
    """Return whether a folder of a requeued job is that of this command: a job may train several times.

    A folder without a record is one whose command was stopped before Hydra had written it.
    """
    if not folder.exists():
        return False
    for record, key in ((folder / ".hydra" / "overrides.yaml", ""), (folder / "multirun.yaml", "hydra.overrides.task")):
        if record.is_file():
            recorded: Any = OmegaConf.load(record)
            return list(OmegaConf.select(recorded, key) if key else recorded) == STATE.overrides
    return True


def _holds_configuration(folder: Path, cfg: DictConfig) -> bool:
    """Return whether a folder is that of a run of this configuration, wherever its loggers write."""
    record = folder / "config.yaml"
    if not record.is_file():
        return False
    both = (OmegaConf.load(record), cfg)
    recorded, wanted = (without_passwords(OmegaConf.to_container(each, resolve=True)) for each in both)
    if select(wanted, "optimizer.lr") == "auto":  # the record has the rate that was found
        recorded["optimizer"] = {**recorded["optimizer"], "lr": "auto"} if recorded.get("optimizer") else None
    return {**recorded, "logger": None} == {**wanted, "logger": None}


def goes_on() -> bool:
    """Return whether a run goes on with what its own folder holds: after a requeue by Slurm, or in a repeated sweep."""
    return process.is_requeued() or STATE.goes_on


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `config.yaml`, without passwords, into a run folder that no other run uses.

    Raises:
        FileExistsError: another run has it.
    """
    if not process.is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(without_password(OmegaConf.to_yaml(cfg, resolve=True)))
    except FileExistsError as error:
        if STATE.goes_on or (process.is_requeued() and _holds_configuration(folder, cfg)):
            for incomplete in (folder / "checkpoints").glob(".*.tmp"):
                incomplete.unlink(missing_ok=True)
            return
        raise FileExistsError(
            f"{folder} holds another run; give another hydra.run.dir, or none for a folder with the date."
        ) from error
