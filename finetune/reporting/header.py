"""Print and write what is known of a run before its first epoch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from finetune.data.datamodule import ImageDataModule
from finetune.inspection.data_words import data_words
from finetune.inspection.finding import Finding
from finetune.models import network
from finetune.reporting.data_files import write_bad_files, write_split
from finetune.runtime import hardware
from finetune.runtime.console import echo, field_line
from finetune.training.module import FineTuner
from finetune.training.time_limit import find_time_limit


def print_header(
    trainer: Trainer,
    module: FineTuner,
    data: ImageDataModule,
    findings: Sequence[Finding],
    folder: Path,
) -> None:
    """Print what is trained on which data, and write `split.csv` and `bad_files.csv`.

    Args:
        trainer: before `fit`.
        module: the network.
        data: prepared.
        findings: what may spoil the result.
        folder: of the run.
    """
    if not trainer.is_global_zero:
        return
    # Lightning would do this in a moment: workers depend on the device, and what is trainable on the run's length
    data.trainer = trainer
    module.schedule.attach(trainer)
    lines = [*data_lines(data), *finding_lines(findings, data), *model_lines(module)]
    if module.schedule.max_epochs is None:
        ends = "time_limit" if find_time_limit(trainer) is not None else "Ctrl-C"
        lines.append(field_line("Note", f"no end was given (trainer.max_epochs=-1): {ends} ends the run and saves it."))
    echo("\n".join([*lines, field_line("Device", f"{describe_device(trainer)} {_explain_device(trainer, data)}")]))
    write_split(data, folder / "split.csv")
    if data.bad_files:
        write_bad_files(data.bad_files, folder / "bad_files.csv")


def data_lines(data: ImageDataModule) -> list[str]:
    """Describe the data for the terminal."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    counts = data.splits["train"].counts(data.classes)
    listed = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:8])
    more = f", ... {len(counts) - 8} more" if len(counts) > 8 else ""
    lines = [
        field_line("Data", f"{data.root or ''} - {sizes} images"),
        field_line("Classes", f"{len(counts)}, with training images: {listed}{more}"),
    ]
    if data.bad_files:
        lines.append(field_line("Left out", f"{len(data.bad_files)} unreadable files (bad_files.csv lists them):"))
        lines += [field_line("", f"{path}: {reason}") for path, reason in sorted(data.bad_files.items())[:5]]
    return lines + [field_line("Note", note) for note in data.notes]


def finding_lines(findings: Sequence[Finding], data: ImageDataModule) -> list[str]:
    """Describe what may spoil the result, for the terminal; the last line is a command to be pasted, and so not wrapped."""
    lines = [field_line(finding.severity.capitalize(), finding.message) for finding in findings]
    if lines and data.root is not None and data.dataset is None:
        command = shlex.join(["python", "-m", "finetune.check", *data_words(data)])
        lines.append(f"{'':<10}see them: {command}")
    return lines


def model_lines(module: FineTuner) -> list[str]:
    """Describe the model for the terminal."""
    total = network.count_parameters(module.backbone)
    trainable = network.count_parameters(module.backbone, module.schedule.ever_trainable_names())
    size = module.preprocess.size
    ignored = "" if module.strategy.pretrained else f" (strategy {module.strategy.name} ignores model.weights)"
    text = f"{module.model_name}, {size} x {size} pixels; {trainable:,} of {total:,} parameters trainable"
    return [field_line("Model", text), field_line("Weights", module.weights_source + ignored)]


def describe_device(trainer: Trainer) -> str:
    """Return where and how the run computes."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    ranks = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    return f"{name}{threads}{ranks}, precision {trainer.precision}"


def _explain_device(trainer: Trainer, data: ImageDataModule) -> str:
    """Say why the precision was chosen, and which processes decode."""
    device = trainer.strategy.root_device.type
    native = hardware.native_precision(device)
    if str(trainer.precision) != native:
        reason = f"{native} is native here" if native != "32-true" else "no 16-bit arithmetic is native here"
    else:
        reason = "native here" if native != "32-true" else "nothing shorter is native here"
    workers = data.workers()
    if workers:
        return f"({reason}); {workers} worker processes decode"
    if data.num_workers == "auto" and hardware.free_shared_memory() < hardware.SHARED_BYTES:
        return f"({reason}); images are decoded in the main process (/dev/shm is too small for workers)"
    few = " (the cores are for the network)" if device == "cpu" and data.num_workers == "auto" else ""
    return f"({reason}); images are decoded in the main process{few}"
