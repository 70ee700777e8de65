"""Whether a checkpoint belongs to the run that is to go on from it, and what is given otherwise than then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoints import format
from finetune.runtime.console import echo, field_line
from finetune.runtime.mappings import select
from finetune.runtime.process import is_first_process
from finetune.training.resume import resume_batches, resume_epoch
from finetune.training.strategy import Strategy

if TYPE_CHECKING:
    from finetune.training.module import FineTuner

_RESTORED = ("optimizer", "scheduler")
"""Keys that a resumed run has from its checkpoint, whatever is given now."""

_HARMLESS = ("ckpt_path", "resume", "report", "paths", "logger", "trainer.max_epochs", "data.root", "data.num_workers")
"""Keys that change nothing in what is learned, or of which more is said elsewhere."""


def check_resumable(path: Path, module: FineTuner, data: Mapping[str, Any]) -> None:
    """Compare a checkpoint with a module and its configuration, and say what goes on and what changes.

    Args:
        path: of the checkpoint.
        data: their description, see `ImageDataModule.description`.

    Raises:
        ValueError: it is not a checkpoint of a run, or of another model, other data, or another way to learn.
    """
    stored = format.read_checkpoint(path)
    if "optimizer_states" not in stored or "loops" not in stored:
        raise ValueError(
            f"ckpt_path={path} holds weights but not the state of a run; to start from it, give model.weights={path}."
        )
    try:
        resume_epoch(stored), resume_batches(stored), [state.items() for state in stored["lr_schedulers"]]
        Strategy.load(stored["hyper_parameters"]["strategy"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"ckpt_path={path} is damaged: what it says of the run's progress makes no sense.") from error
    faults = list(_differences(stored, module, data))
    if faults:
        raise ValueError(
            f"ckpt_path={path} is of another run: {'; '.join(faults)}. Give the same choices as then "
            f"(resume=RUN repeats them), or start a new run from its weights with model.weights={path}."
        )
    if is_first_process():
        _say_what_changed(stored, module.config, path)


def _differences(stored: Mapping[str, Any], module: FineTuner, data: Mapping[str, Any]) -> Iterator[str]:
    for key in ("model", "classes", "strategy"):
        was, now = stored["hyper_parameters"].get(key), module.hparams[key]
        if key == "strategy" and isinstance(was, dict):
            was, now = _what_learns(was), _what_learns(now)
        if was != now:
            yield f"its {key} is {_short(was)}, this run's is {_short(now)}"
    about = stored[format.METADATA]
    its_data = about["data"]
    if its_data.get("digest", data["digest"]) != data["digest"]:
        yield f"its data are not these ({_data_difference(its_data, data)})"
    before, config = about["config"], module.config
    for key in ("optimizer._target_", "scheduler._target_", "monitor"):
        was, now = select(before, key), select(config, key)
        if before and was != now:
            yield f"its {key} is {was}, this run's is {now}"
    callbacks = (config.get("callbacks") or {}).values()
    averages = any("Averaging" in str(callback.get("_target_")) for callback in callbacks)
    if "averaging_state" in stored and not averages:
        yield "it keeps an average of the weights; give +callbacks=ema"
    if "averaging_state" not in stored and averages:
        yield "it keeps no average of the weights; leave +callbacks=ema out"
    was, now = stored.get("max_epochs"), _end(config)
    if was != now and any("total_steps" in state for state in stored["lr_schedulers"]):
        yield f"its one-cycle schedule was made for {was} epochs and cannot be stretched; give trainer.max_epochs={was}"
    if resume_batches(stored) and before:
        for key in ("data.batch_size", "trainer.accumulate_grad_batches", "seed"):
            was, now = select(before, key), select(config, key)
            if was != now:
                yield f"it was written within an epoch, with {key}={was}, not {now}"


def _end(config: Mapping[str, Any]) -> int | None:
    """`trainer.max_epochs` as checkpoints have it: None is a run without an end."""
    given = select(config, "trainer.max_epochs")
    return given if given is not None and given >= 0 else None


def _data_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    held, found = was.get("splits", {}), now["splits"]
    for name in sorted({*held, *found}):
        if (name in held) != (name in found):
            return f"only one of the two has a {name} split"
        there, here = held[name]["keys"], found[name]["keys"]
        gone, new = set(there) - set(here), set(here) - set(there)
        if gone or new:
            parts = [
                f"{len(keys)} {what}, {min(keys)} for one" for keys, what in ((gone, "gone"), (new, "new")) if keys
            ]
            return f"of the {name} images {' and '.join(parts)}"
    return "other training images or labels"


def _say_what_changed(stored: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """What is given otherwise than then, and whether it counts."""
    before = stored[format.METADATA]["config"]
    changed = sorted(_different_keys(before, config)) if before else []
    changed = [key for key in changed if not _is_of(key, _HARMLESS)]
    restored = [key for key in changed if _is_of(key, _RESTORED) and key != "scheduler.warmup"]
    other = [key for key in changed if key not in restored]
    if restored:
        kept = ", ".join(f"{key} stays {select(before, key)}" for key in restored)
        echo(field_line("Note", f"a resumed run goes on with what its checkpoint says: {kept}."))
    if other:
        what = ", ".join(f"{key}={select(config, key)} (was {select(before, key)})" for key in other)
        echo(field_line("Note", f"from here on {what}: not the run that it would have been."))
    epoch, batches = resume_epoch(stored), resume_batches(stored)
    end = _end(config)
    if end is not None and 0 < end <= epoch:
        echo(
            field_line(
                "Resumes",
                f"{path} has finished epoch {epoch} of {end}: nothing is left to train "
                "(a larger trainer.max_epochs goes on).",
            )
        )
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


def _what_learns(strategy: dict[str, Any]) -> dict[str, Any]:
    """A strategy without how it is computed; a field that came later has its default."""
    fields = Strategy.load(strategy).to_dict()
    return {k: v for k, v in fields.items() if k not in ("cache", "cache_dtype")}


def _short(value: Any) -> str:
    text = str(value.get("name")) if isinstance(value, dict) else str(value)
    return text if len(text) < 120 else text[:117] + "..."
