"""Find keys of a configuration that do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from omegaconf import DictConfig

from finetune.runtime.mappings import select


def find_contradictions(cfg: DictConfig) -> Iterator[str]:
    """Find values that do not go together."""
    yield from _find_solved_head_faults(cfg)
    if select(cfg, "quantize") is not None and select(cfg, "format") != "onnx":
        yield f"quantize={cfg.quantize} is for format=onnx, not for {select(cfg, 'format')}."
    if select(cfg, "resize") == "shared":
        if select(cfg, "format") not in ("onnx", "torch_export"):
            yield f"resize=shared is for format=onnx and torch_export, whose graphs can resize, not for {select(cfg, 'format')}."
        if select(cfg, "quantize") is not None:
            yield f"quantize={cfg.quantize} takes images that are resized already: leave resize=shared out, or quantize."
    given = select(cfg, "callbacks")
    targets = [str(select(c, "_target_")) for c in given.values()] if isinstance(given, Mapping) else []
    if select(cfg, "time_limit") is not None and any(target.endswith(".ProgressiveResizing") for target in targets):
        yield (
            "time_limit plans from epochs that take equally long, and those of +callbacks=progressive take longer and longer: "
            "leave one of them out."
        )
    own = next((key for key in ("max_lr", "base_lr") if select(cfg, f"scheduler.{key}") is not None), None)
    if own and select(cfg, "optimizer.lr") == "auto":
        yield (
            f"optimizer.lr=auto would change nothing: the scheduler has its own scheduler.{own}={cfg.scheduler[own]}; leave "
            "one of them out."
        )
    end, every = select(cfg, "trainer.max_epochs"), select(cfg, "trainer.check_val_every_n_epoch")
    monitors_val = str(select(cfg, "monitor")).startswith("val/")
    if monitors_val and isinstance(end, int) and isinstance(every, int) and 0 < end < every:
        yield (
            f"monitor={cfg.monitor} would never be measured: trainer.check_val_every_n_epoch={every} in {end} epochs; "
            "give monitor=train/loss, or validate more often."
        )
    for key, value in (("trainer.limit_val_batches", 0), ("data.val", "none")):
        if monitors_val and select(cfg, key) == value and select(cfg, "eval") != "kfold":
            yield f"monitor={cfg.monitor} would never be measured: {key}={value}; give monitor=train/loss."


def only_solves_head(cfg: DictConfig) -> bool:
    """Return whether a run solves the head, and trains nothing."""
    groups = select(cfg, "strategy.groups") or []
    trains = select(cfg, "strategy.layer_decay") is not None or any(
        isinstance(g, Mapping) and g.get("lr", 1) != 0 and g.get("start", 0) is not None for g in groups
    )
    return select(cfg, "strategy.solve_head") is True and not trains


def _find_solved_head_faults(cfg: DictConfig) -> Iterator[str]:
    """Find why a head cannot be solved."""
    if select(cfg, "strategy.solve_head") is not True:
        return
    loss = select(cfg, "loss._target_")
    if loss is not None and str(loss).rpartition(".")[2] != "CrossEntropyLoss":
        yield (
            f"strategy.solve_head=true solves a head for cross entropy, and the loss is {loss}: strategy=feature_extract "
            "trains one for it, strategy.solve_head=false leaves it out."
        )
    if select(cfg, "optimizer.lr") == "auto":
        yield (
            "optimizer.lr=auto: with strategy.solve_head=true nothing is trained in the first epoch, on which a rate could be "
            "tried: give a number, or strategy.solve_head=false."
        )
