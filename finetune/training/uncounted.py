"""Compute training steps that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def uncounted(module: Any) -> Iterator[None]:
    """Compute training steps that count nothing: no training metric, nothing that is logged, no running statistics.

    Args:
        module: a FineTuner, whose buffers are restored after the block, whatever happens in it.
    """
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    was_counting, module.train_metrics.is_counting = module.train_metrics.is_counting, False
    vars(module)["log"] = _log_nothing  # of a subclass, whose training_step may log
    try:
        yield
    finally:
        module.train_metrics.is_counting = was_counting
        if was_counting:  # one block may lie within another
            del vars(module)["log"]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass
