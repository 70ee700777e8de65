"""Choose, claim and describe the folder of a run."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.runtime import process
from finetune.runtime.process import is_first_process, is_requeued, slurm_job

given_words: list[str] = []

recorded_overrides: list[str] = []
"""The words of this command as Hydra records them in a run's folder."""


def command_line(name: str) -> list[str]:
    """The command that this is, to be typed again; of a sweep's job, that job alone."""
    hydra_config = HydraConfig.get()
    words = given_words if hydra_config.mode != RunMode.MULTIRUN else list(hydra_config.overrides.task)
    return ["python", "-m", f"finetune.{name}", *words]


def begin_run(cfg: DictConfig, name: str) -> Path:
    """Claim the run folder of a command, before torch is imported.

    Raises:
        FileExistsError: the folder holds another run.
        ValueError: a sweep over several devices.
    """
    if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
        _one_device(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    claim_folder(cfg, folder)
    return folder


def _one_device(cfg: DictConfig) -> None:
    """The processes of a run are started with its own words: those of a sweep would start the sweep again."""
    if (devices := cfg.trainer.get("devices")) in (1, "1", None) and cfg.trainer.get("num_nodes", 1) == 1:
        return
    raise ValueError(
        f"A sweep takes one device a run, not trainer.devices={devices}. For runs over several, let the shell sweep: "
        "for seed in 0 1 2; do python -m finetune.train seed=$seed trainer=ddp ...; done"
    )


# --- run folders -------------------------------------------------------------------------------------------------

claimed_folders: dict[tuple[str, str], str] = {}


def unique_dir(base: str, name: str) -> str:
    """Make and return a folder that nobody else has: `base/name`, or with _1, _2, ... behind it.

    A job of Slurm that was requeued has the folder that it had before.
    """
    key = (base, name)
    if key not in claimed_folders:
        # the points of a sweep have folders within its own, which is a new one each time
        name = (None if base.endswith("sweeps") else process.slurm_job()) or name
        if not process.is_first_process():
            # torchrun's: each composes for itself, and the first one's folder is the run's
            name = f"{name}_rank{process.process_rank()}"
        number = 0
        while True:
            path = Path(base) / (f"{name}_{number}" if number else name)
            if process.is_requeued() and _is_this_command(path):
                break
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        claimed_folders[key] = str(path)
    return claimed_folders[key]


def _is_this_command(folder: Path) -> bool:
    """Whether a folder is of the same words: a job may train several times."""
    record = folder / ".hydra" / "overrides.yaml"
    return record.is_file() and list(OmegaConf.load(record)) == recorded_overrides


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `config.yaml` into a run folder that nobody else uses.

    Raises:
        FileExistsError: another run has it.
    """
    if not is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
    except FileExistsError as error:
        if is_requeued() and folder.name.startswith(str(slurm_job())):  # its words were compared
            for half in (folder / "checkpoints").glob(".*.tmp"):
                half.unlink(missing_ok=True)
            return
        raise FileExistsError(
            f"{folder} holds another run; give another hydra.run.dir, or none for a folder with the date."
        ) from error
