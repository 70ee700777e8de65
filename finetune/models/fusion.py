"""Fuse BatchNorm layers with the convolutions before them, in a copy of a network that is only evaluated."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finetune.models.partition import forward_to


def fuse_conv_bn(network: nn.Module, split_point: str, images: Tensor) -> nn.Module:
    """Return a copy of a network with its frozen BatchNorms fused into convolutions; the network itself if none can be.

    A BatchNorm is fused if its input is the output of a convolution that no other module has taken. One batch shows
    which those are, so no knowledge of the network is needed. The network itself is returned too if the copy gives other
    features for the same batch.

    Args:
        network: in evaluation mode where BatchNorms are to be fused.
        split_point: path of the module whose inputs are compared.
        images: (N, C, H, W).
    """
    pairs = _fusable_pairs(network, split_point, images)
    if not pairs:
        return network
    fused = copy.deepcopy(network)
    for conv_path, norm_path in pairs:
        conv: Any = fused.get_submodule(conv_path)
        norm: Any = fused.get_submodule(norm_path)
        fused.set_submodule(conv_path, fuse_conv_bn_eval(conv, norm))
        # timm's norm layers have dropout and activation in them
        rest = [m for name in ("drop", "act") if isinstance(m := getattr(norm, name, None), nn.Module)]
        fused.set_submodule(norm_path, nn.Sequential(*rest) if rest else nn.Identity())
    fused.to(memory_format=torch.channels_last)
    expected, features = forward_to(network, split_point, images), forward_to(fused, split_point, images)
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    return fused if torch.allclose(features, expected, rtol=1e-3, atol=tolerance) else network


def _fusable_pairs(network: nn.Module, split_point: str, images: Tensor) -> list[tuple[str, str]]:
    """Find (convolution, BatchNorm) where the output of one is the input of the other and both are called once."""
    conv_of_output: dict[int, str] = {}
    pairs: dict[str, str] = {}
    calls: dict[str, int] = {}
    outputs: list[Tensor] = []  # while a tensor lives, no other has its id
    handles = []

    def make_hook(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(network.get_submodule(path), nn.Conv2d):
                outputs.append(output)
                conv_of_output[id(output)] = path
            elif id(inputs[0]) in conv_of_output:
                pairs[path] = conv_of_output[id(inputs[0])]

        return hook

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not module.training:
            handles.append(module.register_forward_hook(make_hook(path)))
    try:
        forward_to(network, split_point, images[:1])
    finally:
        for handle in handles:
            handle.remove()
    convs = list(pairs.values())
    return [(c, n) for n, c in pairs.items() if convs.count(c) == 1 and calls[c] == 1 and calls[n] == 1]
