"""Adapt a network, with its weights, to images of another number of channels or, a vision transformer, of another size."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

RGB = 3

POSITIONS = "encoder.pos_embedding"
"""Name of a vision transformer's position embeddings: one for the class token, and one for each patch, row by row."""


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the first convolution in registration order, and its path; None where there is none.

    In every network of the table the images enter it; tests/models/test_adaptation.py proves it.
    """
    return next(((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)


def adapt_channels(network: nn.Module, channels: int) -> None:
    """Let the first convolution take images of so many channels, with its weights adapted; see `adapt_weight`.

    Raises:
        ValueError: there is none, or it takes neither so many channels nor three.
    """
    found = first_convolution(network)
    name = type(network).__name__
    if found is None:
        raise ValueError(
            f"in_channels={channels}: {name} has no convolution that could be adapted. Build it for such images, and give "
            "it as a Backbone whose preprocess has as many channels."
        )
    path, conv = found
    if conv.in_channels == channels:
        return
    if conv.in_channels != RGB or conv.groups != 1:
        raise ValueError(
            f"in_channels={channels}: the first convolution of {name}, {path}, takes {conv.in_channels} channels. "
            f"Only one of {RGB} can be adapted."
        )
    learns = conv.weight.requires_grad
    conv.weight = nn.Parameter(adapt_weight(conv.weight.detach(), channels), requires_grad=learns)
    conv.in_channels = channels


def adapt_weight(weight: Tensor, channels: int) -> Tensor:
    """Return the weights (out, C, kH, kW) of a convolution over RGB for images of so many channels.

    For one channel they are summed over channels, so that a grey image gives what it gave as RGB. For more, they are
    repeated (R, G, B, R, ...) and scaled by 3/C, so that equal channels give what they gave. Source: timm's
    `adapt_input_conv`.

    Args:
        weight: (out, 3, kH, kW).
        channels: C.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [i % RGB for i in range(channels)]] * (RGB / channels)


def resize_positions(network: nn.Module, size: int, name: str) -> str:
    """Let a vision transformer take images of another size, its position embeddings interpolated; others are left alone.

    Args:
        network: with its weights.
        size: side of the images in pixels.
        name: of the model, for errors.

    Returns:
        What was done, as a remark on the weights; empty where nothing was.

    Raises:
        ValueError: the size is no multiple of the patches' size.
    """
    if not isinstance(network, VisionTransformer) or network.image_size == size:
        return ""
    if size % network.patch_size:
        raise ValueError(
            f"{name} cannot be built for images of {size} pixels: it looks at patches of {network.patch_size} x "
            f"{network.patch_size}, so the size must be a multiple of {network.patch_size}."
        )
    positions = network.encoder.pos_embedding
    state = {POSITIONS: positions.detach()}
    remark = fit_positions(state, size, network.patch_size)
    network.encoder.pos_embedding = nn.Parameter(state[POSITIONS], requires_grad=positions.requires_grad)
    network.image_size, network.seq_length = size, state[POSITIONS].shape[1]
    return remark


def fit_positions(state: dict[str, Tensor], size: int, patch_size: int) -> str:
    """Interpolate the position embeddings of a state for images of a size, in place, where they are of another one.

    Returns:
        What was done, as for `resize_positions`.
    """
    positions = state[POSITIONS]
    side = math.isqrt(positions.shape[1] - 1)
    if side * patch_size == size or side**2 + 1 != positions.shape[1]:
        return ""
    state[POSITIONS] = interpolate_embeddings(size, patch_size, OrderedDict({POSITIONS: positions}))[POSITIONS]
    return f", positions interpolated from {side * patch_size} to {size} pixels"
