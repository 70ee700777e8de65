"""Check that a checkpoint belongs to the run that goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.checkpoints.format import Checkpoint, model_record, read_checkpoint
from finetune.checkpoints.metadata import DataRecord, ModelRecord
from finetune.images.depth import UINT16, is_same
from finetune.runtime.console import echo, field_line
from finetune.runtime.mappings import select
from finetune.runtime.process import is_first_process
from finetune.training.interface import TrainableClassifier
from finetune.training.run_length import resolve_max_epochs
from finetune.training.strategy import Strategy

_RESTORED = ("optimizer", "scheduler")
"""Keys whose values a resumed run takes from its checkpoint, whatever is given now."""

_DEFAULTS = {"scheduler.interval": "auto", "data.sampler": "none", "loss._target_": "torch.nn.CrossEntropyLoss"}
"""Values of runs that were older than the key."""

_HARMLESS = (
    "ckpt_path",
    "resume",
    "preset",
    "report",
    "time_limit",
    "paths",
    "logger",
    "sweep",
    "trainer.max_epochs",
    "data.root",
    "data.num_workers",
)
"""Keys that do not change the training, or that other messages are about."""


def check_resumable(path: Path, module: TrainableClassifier, data: DataRecord) -> None:
    """Check that a checkpoint belongs to this run, and print what goes on and what changes.

    Args:
        path: of the checkpoint.
        module: of this run, with its configuration.
        data: of this run.

    Raises:
        ValueError: it is not a checkpoint of a run, or of another model, other data, or another way to train.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.is_resumable:
        raise ValueError(
            f"ckpt_path={path} holds weights but not the state of a run; to start from it, give model.weights={path}."
        )
    try:
        _ = checkpoint.progress, [state.items() for state in checkpoint.scheduler_states]
        Strategy.load(checkpoint.model.strategy)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"ckpt_path={path} is damaged: what it says of the run's progress makes no sense.") from error
    differences = list(_differences(checkpoint, module, data))
    if differences:
        raise ValueError(
            f"ckpt_path={path} is of another run: {'; '.join(differences)}. Give the same choices as then "
            f"(resume=RUN repeats them), or start a new run from its weights with model.weights={path}."
        )
    if is_first_process():
        _print_changes(checkpoint, module.metadata.config, path)


def require_same_model(entries: Mapping[str, Any], module: TrainableClassifier) -> None:
    """Check that upgraded entries are of a run of this model, as a run from Python does.

    Raises:
        ValueError: they are of another model, or of another way to train it; names the differences.
    """
    stored = model_record(entries)
    differences = list(_model_differences(stored, module)) if stored is not None else []
    if differences:
        raise ValueError(
            f"The checkpoint is of another run: {'; '.join(differences)}. Give the same choices as then, or start a new run "
            "from its weights with FineTuner.load_from_checkpoint."
        )


def _differences(checkpoint: Checkpoint, module: TrainableClassifier, data: DataRecord) -> Iterator[str]:
    yield from _model_differences(checkpoint.model, module)
    stored_data = checkpoint.metadata.data
    if stored_data.digest not in (None, data.digest):
        yield f"its data are not these ({_data_difference(stored_data, data)})"
    elif stored_data.content is not None and data.content is not None and stored_data.content != data.content:
        yield "its training images have other pixels"
    stored_config, config = checkpoint.metadata.config, module.metadata.config
    for key in (
        "optimizer._target_",
        "optimizer.base._target_",
        "scheduler._target_",
        "scheduler.interval",
        "loss._target_",
        "monitor",
    ):
        default = _DEFAULTS.get(key)
        stored, given = select(stored_config, key) or default, select(config, key) or default
        if stored_config and stored != given:
            yield f"its {key} is {stored}, this run's is {given}"
    callbacks = (config.get("callbacks") or {}).values()
    targets = [str(callback.get("_target_")) for callback in callbacks]
    averages = any("averaging" in target.lower() or target.endswith(".RestartSoup") for target in targets)
    if checkpoint.averages_weights and not averages:
        yield "it keeps an average of the weights; give +callbacks=ema"
    names = [target.rpartition(".")[2] for target in targets]
    kinds = {"EMA", "EpochAveraging", "RestartSoup", "EMAWeightAveraging"}
    if checkpoint.averages_weights and averages and not checkpoint.callback_names & kinds & {*names}:
        kept = ", ".join(sorted(checkpoint.callback_names & kinds))
        yield f"its average of the weights is that of {kept or 'another callback'}, not of {', '.join(sorted(kinds & {*names}))}"
    if averages and not checkpoint.averages_weights:
        yield "it keeps no average of the weights; leave +callbacks=ema out"
    planned, max_epochs = checkpoint.run.max_epochs, _max_epochs(config)
    if planned != max_epochs and any("total_steps" in state for state in checkpoint.scheduler_states):
        yield f"its one-cycle schedule was made for {planned} epochs and cannot be stretched; give trainer.max_epochs={planned}"
    if checkpoint.progress[1] and stored_config:
        for key in ("data.batch_size", "data.sampler", "trainer.accumulate_grad_batches", "seed"):
            default = _DEFAULTS.get(key)
            stored, given = select(stored_config, key) or default, select(config, key) or default
            if stored != given:
                yield f"it was written within an epoch, with {key}={stored}, not {given}"


def _model_differences(stored: ModelRecord, module: TrainableClassifier) -> Iterator[str]:
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (stored.model, module.model_name),
        "classes": (stored.classes, module.classes),
        "strategy": (_trained_by(stored.strategy), _trained_by(module.strategy.to_dict())),
        "in_channels": (stored.in_channels, module.preprocess.channels),
        "model.options": (stored.model_options, module._backbone.options),
    }
    pairs["preprocess.fit"] = ((stored.preprocess or {}).get("fit", "crop"), module.preprocess.fit)
    if module.family.size_argument:  # the network is built for it
        pairs["image size"] = ((stored.preprocess or {}).get("size"), module.preprocess.size)
    for name, (then, now) in pairs.items():
        if then != now:
            text = f"its {name} is {_short(then)}, this run's is {_short(now)}"
            same = ", with other groups than that name has in this version" if _short(then) == _short(now) else ""
            yield f"{text}{same}"
    depth = (stored.preprocess or {}).get("depth")
    if not is_same(depth, module.preprocess.depth):
        black, white = depth or UINT16
        floats = "" if depth else ", if its images are integers"
        text = f"its preprocess.depth is {depth}, this run's is {module.preprocess.to_dict()['depth']}"
        yield f"{text}: data.depth=[{black:.10g},{white:.10g}] goes on with it{floats}"


def _max_epochs(config: Mapping[str, Any]) -> int | None:
    return resolve_max_epochs(select(config, "trainer.max_epochs"))


def _data_difference(stored: DataRecord, data: DataRecord) -> str:
    for name in sorted({*stored.splits, *data.splits}):
        if (name in stored.splits) != (name in data.splits):
            return f"only one of the two has a {name} split"
        there, here = set(stored.splits[name].keys), set(data.splits[name].keys)
        if there != here:
            changes = [(there - here, "gone"), (here - there, "new")]
            parts = [f"{len(keys)} {change}, {min(keys)} for one" for keys, change in changes if keys]
            return f"of the {name} images {' and '.join(parts)}"
    return "other training images or labels"


def _print_changes(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Print which choices differ from the stored ones, whether that counts, and where the run goes on."""
    stored = checkpoint.metadata.config
    changed = sorted(_different_keys(stored, config)) if stored else []
    changed = [key for key in changed if not _is_of(key, _HARMLESS)]
    restored = [key for key in changed if _is_of(key, _RESTORED) and key != "scheduler.warmup"]
    effective = [key for key in changed if key not in restored]
    if restored:
        kept = ", ".join(f"{key} stays {select(stored, key)}" for key in restored)
        echo(field_line("Note", f"a resumed run goes on with what its checkpoint says: {kept}."))
    if effective:
        changes = ", ".join(f"{key}={select(config, key)} (was {select(stored, key)})" for key in effective)
        echo(field_line("Note", f"from here on {changes}: not the run that it would have been."))
    epoch, batches = checkpoint.progress
    max_epochs = _max_epochs(config)
    if max_epochs is not None and max_epochs <= epoch:
        text = f"{path} has finished epoch {epoch} of {max_epochs}: nothing is left to train"
        echo(field_line("Resumes", f"{text} (a larger trainer.max_epochs goes on)."))
    else:
        where = f"epoch {epoch + 1}" + (f" after {batches} batches" if batches else "")
        echo(field_line("Resumes", f"in {where}, from {path}"))


def _is_of(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _different_keys(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {*was, *now}:
        a, b = was.get(key), now.get(key)
        name = f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _different_keys(a, b, f"{name}.")
        elif a != b:
            yield name


def _trained_by(strategy: dict[str, Any]) -> dict[str, Any]:
    """Return a strategy without how it is computed; a field that is missing has its default."""
    fields = Strategy.load(strategy).to_dict()
    return {k: v for k, v in fields.items() if k not in ("cache", "cache_dtype")}


def _short(value: Any) -> str:
    text = str(value["name"] if isinstance(value, dict) and "name" in value else value)
    return text if len(text) < 120 else text[:117] + "..."
