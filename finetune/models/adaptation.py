"""Adapt a network, with its weights, to images of another number of channels."""

from __future__ import annotations

from torch import Tensor, nn

RGB = 3


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
