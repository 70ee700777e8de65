"""Check and convert the arguments of `FineTuner`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def class_names(classes: Sequence[str] | int) -> list[str]:
    """Return class names; a number names them "0", "1", ...

    Raises:
        ValueError: there are fewer than two, or two are the same.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if len(names) < 2:
        raise ValueError(f"A classifier needs at least two classes, got {names}. Pass classes=data.classes.")
    if len(set(names)) < len(names):
        raise ValueError(f"Class names must differ, got {names}.")
    return names


def cross_entropy(
    class_weights: Sequence[float] | None, label_smoothing: float, num_classes: int
) -> nn.CrossEntropyLoss:
    """Make the training loss.

    Raises:
        ValueError: there are not as many weights as classes.
    """
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    if class_weights is not None:
        if len(class_weights) != num_classes:
            raise ValueError(f"class_weights has {len(class_weights)} values for {num_classes} classes.")
        # not persistent: checkpoints hold the network and nothing else
        criterion.register_buffer("weight", torch.tensor(class_weights, dtype=torch.float), persistent=False)
    return criterion
