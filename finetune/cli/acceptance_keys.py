"""Validate the keys that say which predictions are accepted."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from finetune.runtime.mappings import select


def find_acceptance_faults(cfg: DictConfig) -> Iterator[str]:
    """Find keys that contradict `target_precision`."""
    if select(cfg, "target_precision") is None:
        return
    if select(cfg, "min_confidence") is not None:
        yield "min_confidence and target_precision both say which predictions are accepted: leave one of them out."
    if select(cfg, "temperature") != "checkpoint":
        yield (
            f"target_precision={cfg.target_precision} chooses among confidences at the checkpoint's temperature, and "
            f"temperature={cfg.temperature} makes others: leave one of them out."
        )
