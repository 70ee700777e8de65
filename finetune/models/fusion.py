"""BatchNorm folded into the convolution before it, in a copy of a network that is only evaluated."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finetune.models.partition import forward_to


def fuse_conv_bn(network: nn.Module, until: str, images: Tensor) -> nn.Module:
    """A copy of a network with its frozen BatchNorms folded where that changes nothing, or the network itself.

    A BatchNorm is folded if its input is what a convolution has just given and nothing else has seen it. That is
    found by watching one batch, so it needs no knowledge of the network, and the copy is compared with the original on
    the same batch.

    Args:
        until: path of the module at which the comparison ends.
        images: (N, 3, H, W).
    """
    pairs = _fusable_pairs(network, until, images)
    if not pairs:
        return network
    twin = copy.deepcopy(network)
    for conv, norm in pairs:
        before: Any = twin.get_submodule(conv)
        after: Any = twin.get_submodule(norm)
        twin.set_submodule(conv, fuse_conv_bn_eval(before, after))
        twin.set_submodule(norm, nn.Identity())
    twin.to(memory_format=torch.channels_last)
    was, now = forward_to(network, until, images), forward_to(twin, until, images)
    return twin if torch.allclose(now, was, rtol=1e-3, atol=1e-4 * max(1.0, float(was.abs().max()))) else network


def _fusable_pairs(network: nn.Module, until: str, images: Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) whose one output is the other's input, both called once."""
    seen: dict[int, str] = {}
    pairs: dict[str, str] = {}
    calls: dict[str, int] = {}
    kept: list[Tensor] = []  # while a tensor lives, no other has its id
    handles = []

    def after(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(network.get_submodule(path), nn.Conv2d):
                kept.append(output)
                seen[id(output)] = path
            elif id(inputs[0]) in seen:
                pairs[path] = seen[id(inputs[0])]

        return hook

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not module.training:
            handles.append(module.register_forward_hook(after(path)))
    try:
        forward_to(network, until, images[:1])
    finally:
        for handle in handles:
            handle.remove()
    convs = list(pairs.values())
    return [(c, n) for n, c in pairs.items() if convs.count(c) == 1 and calls[c] == 1 and calls[n] == 1]
