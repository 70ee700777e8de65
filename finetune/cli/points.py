"""Keep the state of each point of a sweep in its folder, so that a sweep that is repeated goes on where it stopped.

Importing this does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.io.files import write_json
from finetune.io.paths import LAST_CHECKPOINT, absolute_paths
from finetune.runtime.timing import format_duration

STATUS_FILE = "status.json"

NEW, RUNNING, DONE, FAILED, INTERRUPTED = "new", "running", "done", "failed", "interrupted"

_NOT_OF_THE_CONFIGURATION = ("logger", "sweep", "report", "resume")
_NOT_OF_THE_DATA = ("num_workers", "cache_images")
"""Keys that change nothing in what is trained."""

_OF_A_RUN = (
    "config.yaml", "checkpoints", "plots", "metrics.csv", "metrics.json", "report.html", "split.csv",
    "suspicious_labels.csv", "tensorboard", "wandb", "tracking.json",
)  # fmt: skip
"""What a run writes into its folder, beside its log."""


@dataclass(frozen=True)
class Point:
    """Hold the state of one point of a sweep."""

    folder: Path
    """Of its run."""
    state: str = NEW
    """`new`, `running` (or killed), `done`, `failed` or `interrupted`."""
    configuration: str = ""
    """Hash of its configuration, by which it is recognised."""
    value: float | None = None
    """What a sweeper optimizes; None if it is not known."""
    error: str | None = None
    """Why it failed."""
    began: float | None = None
    """When it was begun, or passed over, the last time, in seconds since 1970."""
    ended: float | None = None
    """When it ended."""

    def write(self, **changes: Any) -> Point:
        """Return the point with other values, and keep them in its folder."""
        point = replace(self, **changes)
        write_json({key: value for key, value in asdict(point).items() if key != "folder"}, self.folder / STATUS_FILE)
        return point

    def end(self, state: str, **changes: Any) -> Point:
        """Write down how the point ended, and when."""
        return self.write(state=state, ended=time.time(), **changes)

    @property
    def can_go_on(self) -> bool:
        """Return whether it was stopped in the middle, and has saved something."""
        return self.state in (RUNNING, INTERRUPTED) and bool(saved_states(self.folder))

    def clear(self) -> None:
        """Remove what an earlier try left."""
        for path in (*(self.folder / name for name in _OF_A_RUN), *self.folder.glob("hpc_ckpt_*.ckpt")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def saved_states(folder: Path) -> list[Path]:
    """Return the files from which the run in a folder can go on: its own, and those of a requeued job of Slurm."""
    return [*folder.glob("hpc_ckpt_*.ckpt"), *folder.glob(str(LAST_CHECKPOINT))]


def read_point(folder: Path) -> Point:
    """Return the state of the point in a folder; a new one where there is none, or where it cannot be read."""
    try:
        values = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
        numbers = [values.get(name) for name in ("value", "began", "ended")]
        if not all(number is None or isinstance(number, int | float) for number in numbers):
            raise ValueError("a time or a value is no number")
        return Point(folder, **values)
    except (OSError, ValueError, TypeError, AttributeError):
        return Point(folder)


def read_points(sweep: Path) -> list[Point]:
    """Return the points of a sweep that have a state, in the order of their numbers."""
    found = [read_point(path.parent) for path in sweep.glob(f"*/{STATUS_FILE}")]
    return sorted(found, key=lambda point: (not point.folder.name.isdecimal(), point.folder.name.zfill(9)))


def configuration_id(cfg: DictConfig) -> str:
    """Return a hash of what a configuration trains, whatever it logs and wherever it writes."""
    kept = [str(key) for key in cfg if key not in ("hydra", *_NOT_OF_THE_CONFIGURATION)]
    values = _resolved(OmegaConf.to_container(OmegaConf.masked_copy(cfg, kept), resolve=False), "", cfg)
    values.pop("paths", None)
    values["data"] = {key: value for key, value in values.get("data", {}).items() if key not in _NOT_OF_THE_DATA}
    return hashlib.sha256(json.dumps(absolute_paths(values), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _resolved(value: Any, key: str, cfg: DictConfig) -> Any:
    """Return nested values with what they refer to; not the time and the folder of this very run."""
    if isinstance(value, dict):
        return {
            str(name): _resolved(inner, f"{key}.{name}" if key else str(name), cfg) for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_resolved(inner, f"{key}[{i}]", cfg) for i, inner in enumerate(value)]
    if not isinstance(value, str) or "${" not in value or "hydra:" in value or "now:" in value:
        return value
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def point_dir(number: int, *, _root_: DictConfig) -> str:
    """Claim the folder of a point within that of its sweep, and return its name: its number, as a rule.

    A point that is there already is recognised by its configuration; a number that another configuration has is passed
    over.
    """
    if _root_.hydra.mode != RunMode.MULTIRUN:
        return str(number)
    sweep, configuration = Path(str(_root_.hydra.sweep.dir)), configuration_id(_root_)
    for point in read_points(sweep):
        if point.configuration == configuration:
            return point.folder.name
    taken = max((int(path.name) for path in sweep.glob("*") if path.name.isdecimal()), default=-1)
    name = number if number > taken or not (sweep / str(number)).exists() else taken + 1
    while True:
        try:
            (sweep / str(name)).mkdir(parents=True)
        except FileExistsError:
            name += 1
            continue
        Point(sweep / str(name), configuration=configuration).write()
        return str(name)


# the YAML files name it
OmegaConf.register_new_resolver("point_dir", point_dir, replace=True)


@contextmanager
def held(folder: Path, sweep: Path) -> Iterator[bool]:
    """Keep other processes from running the point in a folder; yield whether none does.

    Raises:
        ValueError: it is the folder of the sweep itself, in which the points would overwrite each other.
    """
    if folder.resolve() == sweep.resolve():
        raise ValueError(f"hydra.sweep.subdir must name a folder for each point, and all would be {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


# --- the sweep -----------------------------------------------------------------------------------------------------

SWEEP_FILE = "sweep.json"


def write_sweep(sweep: Path, points: int | None) -> None:
    """Write down that a sweep begins, and how many points it will have; None where that is not known."""
    write_json({"points": points, "began": time.time()}, sweep / SWEEP_FILE)


def read_asked(sweep: Path) -> list[Point]:
    """Return the points that the sweep has come to since it was started the last time."""
    began = _read_sweep(sweep).get("began")
    found = read_points(sweep)
    return [p for p in found if began is None or (p.began is not None and p.began >= began)]


def _read_sweep(sweep: Path) -> dict[str, Any]:
    try:
        record = json.loads((sweep / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    points, began = (record.get(name) if isinstance(record, dict) else None for name in ("points", "began"))
    return {
        "points": points if isinstance(points, int) else None,
        "began": began if isinstance(began, int | float) else None,
    }


def describe_progress(sweep: Path) -> str:
    """Return how far a sweep is: "3 of 12, 1 failed, about 4 min left"."""
    record = _read_sweep(sweep)
    ended = [point for point in read_asked(sweep) if point.state in (DONE, FAILED)]
    failed = sum(point.state == FAILED for point in ended)
    total = record.get("points")
    words = [f"{len(ended)} of {total}" if total else f"{len(ended)} ended"]
    if failed:
        words.append(f"{failed} failed")
    return ", ".join([*words, *_time_left(ended, total, record.get("began"))])


def _time_left(ended: Sequence[Point], total: int | None, began: float | None) -> list[str]:
    """Return about how long the rest takes, from how fast points have ended since the sweep was started."""
    if not total or not began or len(ended) >= total:
        return []
    now = [point for point in ended if point.ended is not None and point.ended >= began]
    if not now:
        return []
    return [f"about {format_duration((time.time() - began) / len(now) * (total - len(ended)))} left"]
