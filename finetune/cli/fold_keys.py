"""Validate the keys of cross-validation."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from finetune.cli.contradictions import only_solves_head
from finetune.runtime.mappings import select


def find_fold_faults(cfg: DictConfig) -> Iterator[str]:
    """Find folds that are not there, and keys that contradict them."""
    folds, fold, val = (select(cfg, f"data.{key}") for key in ("folds", "fold", "val"))
    if isinstance(fold, int) and isinstance(folds, int) and 2 <= folds <= fold:
        yield f"data.fold is counted from 0: with data.folds={folds} it is one of 0 to {folds - 1}, got {fold}."
    if isinstance(fold, int) and fold > 0 and folds is None:
        yield f"data.fold={fold} needs data.folds, the number of folds."
    if folds is not None and val not in (None, "val"):
        yield (
            f"data.val={val} says what to validate on, and data.folds={folds} validates on a fold of train: leave one "
            "of them out."
        )
    yield from _find_kfold_faults(cfg)


def _find_kfold_faults(cfg: DictConfig) -> Iterator[str]:
    """Find why the folds of a solved head cannot say how good the run is."""
    if select(cfg, "eval") != "kfold":
        return
    if not only_solves_head(cfg):
        yield (
            "eval=kfold is for a head that is solved and not trained, strategy=linear_probe, whose folds cost nothing. Other "
            "strategies take a run for each fold, -m data.folds=5 'data.fold=range(5)', and one for the model of all "
            "images, data.val=none monitor=train/loss."
        )
    for key, what in (("val", "says what to validate on"), ("folds", "holds a fold out")):
        if select(cfg, f"data.{key}") not in (None, "none"):
            yield f"data.{key}={select(cfg, f'data.{key}')} {what}, and eval=kfold holds nothing out: leave one of them out."
    if select(cfg, "strategy.views") not in (None, 1):
        yield f"eval=kfold evaluates each image once, as it is: strategy.views=1, got {select(cfg, 'strategy.views')}."
