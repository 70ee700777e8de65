"""Choose, claim and describe the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.cli.arguments import drop_sweep_words, override_key, unquote_path
from finetune.runtime import process


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

    def start(self, argv: Sequence[str], overrides: Sequence[str], from_arguments: bool = True) -> None:
        """Forget the command before, and remember this one."""
        self.from_arguments = from_arguments
        self.argv[:] = argv
        self.overrides[:] = [word for word in overrides if not word.startswith(("-", "hydra.", "hydra/"))]
        self.folders.clear()


# The only mutable state of the command line. It is global because Hydra stands between those who write it and those who
# read it: it calls the resolver `unique_dir` with strings alone, and the function of a command with `cfg` alone
STATE = CommandState()


def command_line(name: str) -> list[str]:
    """Return the words that repeat this command; in a sweep, those that repeat the current run alone."""
    hydra_config = HydraConfig.get()
    if not STATE.from_arguments:
        path = str(Path(hydra_config.runtime.output_dir, "config.yaml"))
        imports = f"from omegaconf import OmegaConf; from finetune.{name} import {name}"
        return ["python", "-c", f"{imports}; {name}(OmegaConf.load({path!r}))"]
    words = STATE.argv if hydra_config.mode != RunMode.MULTIRUN else drop_sweep_words(hydra_config.overrides.task)
    return ["python", "-m", f"finetune.{name}", *words]


def train_words() -> list[str]:
    """Return the words of `finetune.rank` that `finetune.train` takes too: those that say which images, and where.

    Without augmentation: the ranking has none, and its features are those of plain images.
    """
    hydra_config = HydraConfig.get()
    words = STATE.argv if hydra_config.mode != RunMode.MULTIRUN else list(hydra_config.overrides.task)
    augmentation = ("data.augment", "data/augment", "data.random_erasing")
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
        ValueError: a sweep over several devices.
    """
    if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
        _require_one_device(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    claim_folder(cfg, folder)
    return folder


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

    The same arguments give the same folder until the next command, because Hydra asks several times. A requeued job of
    Slurm gets the folder that it had before.
    """
    key = (base, name)
    if key not in STATE.folders:
        STATE.folders[key] = str(_make_unique_dir(Path(base), _folder_name(base, name)))
    return STATE.folders[key]


# the YAML files name it
OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True)


def _folder_name(base: str, name: str) -> str:
    # the points of a sweep have folders within its own, which is a new one each time
    name = (None if base.endswith("sweeps") else process.slurm_job()) or name
    # torchrun's processes compose for themselves; the folder of the first is the run's
    return name if process.is_first_process() else f"{name}_rank{process.process_rank()}"


def _make_unique_dir(base: Path, name: str) -> Path:
    path, number = base / name, 0
    while not (process.is_requeued() and _holds_this_command(path)):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            path = base / f"{name}_{number}"
    return path


def _holds_this_command(folder: Path) -> bool:
    """Return whether a folder records the overrides of this command: a Slurm job may train several times."""
    record = folder / ".hydra" / "overrides.yaml"
    return record.is_file() and list(OmegaConf.load(record)) == STATE.overrides


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `config.yaml` into a run folder that no other run uses.

    Raises:
        FileExistsError: another run has it.
    """
    if not process.is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
    except FileExistsError as error:
        if process.is_requeued() and folder.name.startswith(str(process.slurm_job())):  # its overrides were compared
            for incomplete in (folder / "checkpoints").glob(".*.tmp"):
                incomplete.unlink(missing_ok=True)
            return
        raise FileExistsError(
            f"{folder} holds another run; give another hydra.run.dir, or none for a folder with the date."
        ) from error
