"""Run a network in parts: from images or features to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def count_parameters(network: nn.Module, names: set[str] | None = None) -> int:
    """Number of parameters, of all or of some names."""
    return sum(p.numel() for n, p in network.named_parameters() if names is None or n in names)
