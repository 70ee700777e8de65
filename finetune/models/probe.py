"""Find out about a network of a user's own what the table of families says about others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.head_layers import weighted_layers

MIN_WEIGHTS = 64
"""Layers with fewer weights say too little about how they were drawn."""


def modules_after_head(network: nn.Module, head: str, num_classes: int, channels: int, size: int) -> list[str]:
    """Return the paths of the modules with parameters that a network calls after its head.

    Args:
        network: run once on images of zeros, in evaluation mode.
        head: path of its last layers.
        num_classes: outputs that it must have.
        channels: of its images.
        size: of its images, in pixels.

    Returns:
        Paths in the order of their calls; none where the network cannot be run on such images.

    Raises:
        ValueError: the network's output is not one number for each class.
    """
    called: list[str] = []

    def recording(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: called.append(path)

    handles = [
        module.register_forward_pre_hook(recording(path))
        for path, module in network.named_modules()
        if path == head or next(module.parameters(recurse=False), None) is not None
    ]
    own_size: Any = getattr(network, "image_size", None)  # of torchvision's transformers
    size = own_size if isinstance(own_size, int) else size
    modes = [(module, module.training) for module in network.modules()]
    parameter = next(network.parameters())
    try:
        network.eval()
        with torch.no_grad():
            output = network(torch.zeros(2, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    # a network of a user's own can raise anything
    except Exception as error:
        if head not in called:
            return []  # the first step of a training will say why
        raise ValueError(
            f"{type(network).__name__} cannot go on after the new head at {head!r} ({type(error).__name__}: {error!s:.120}): "
            "head= names its last layer."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor) or output.shape != (2, num_classes):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"With the new head at {head!r}, {type(network).__name__} returns {shape} for 2 images, not (2, {num_classes}): "
            f"head= names the last layer. It calls, at the end, {', '.join(called[-3:])}."
        )
    after = called[called.index(head) + 1 :] if head in called else []  # a network may use its weights alone
    return [path for path in dict.fromkeys(after) if not path.startswith(f"{head}.")]


def looks_untrained(network: nn.Module, without: tuple[str, ...]) -> bool:
    """Return whether a network's weights are as they are drawn before any training.

    Norms that were trained are no longer all ones and zeros. Of a network without norms, biases of zero are recognised,
    and torch's own initialisation: uniform within one over the square root of the fan-in.

    Args:
        network: of any kind.
        without: paths of modules that are new, and are not looked at.
    """
    trunk = [
        (path, m) for path, m in network.named_modules() if not any(f"{path}.".startswith(f"{w}.") for w in without)
    ]
    norms = [m for _, m in trunk if isinstance(getattr(m, "weight", None), Tensor) and _is_norm(m)]
    if norms:
        return all(_is_initial(norm) for norm in norms)
    layers: list[Any] = [m for _, m in trunk if m in set(weighted_layers(m)) and m.weight.numel() >= MIN_WEIGHTS]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    zero_biases = bool(biases) and not any(bias.detach().any() for bias in biases)
    return bool(layers) and (zero_biases or all(_is_uniform(layer.weight.detach().float()) for layer in layers))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)


def _is_initial(norm: Any) -> bool:
    values = [norm.weight - 1, norm.bias, getattr(norm, "running_mean", None)]
    return all(value is None or not value.detach().any() for value in values)


def _is_uniform(weight: Tensor) -> bool:
    bound = 1 / math.sqrt(weight[0].numel())
    within = float(weight.abs().max()) <= bound * (1 + 1e-4)
    return within and abs(float(weight.std()) * math.sqrt(3) / bound - 1) < 0.2
