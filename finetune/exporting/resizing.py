"""Resize within an exported graph, by sums that give the same numbers in every runtime, and say how a model's images are resized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune.images.transforms import Preprocess

MAX_BITS = 22
"""The most bits that torch takes for weights; it takes fewer where the largest would need more than 15."""


class GraphResize(nn.Module):
    """Turn decoded images into what `Preprocess.eval_transform` makes of them, to the last bit, with plain operations.

    ONNX's own operator for resizing rounds otherwise than torch and not alike in all runtimes. Here a side of `n` pixels
    becomes one of `m` by a product with a matrix of whole numbers, as in torch: output pixel `i` takes input pixel `j` with the
    weight `f(x) / sum`, `x = |(2j + 1) m - (2i + 1) n| / (2 max(n, m))`, rounded to a multiple of `2**-bits`. The products are
    sums of whole numbers below 2**24, exact in 32 bits whatever their order.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        """Take sizes, filter and fit from a preprocessing."""
        super().__init__()
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 (N, C, size, size) in 0..255, of uint8 images (N, H, W, C).

        Three channels become one for a grey network.
        """
        p = self.preprocess
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        if p.channels == 1 and images.shape[-1] == 3:  # as Pillow; 24 bits hold the sums exactly
            weights = torch.tensor([19595.0, 38470.0, 7471.0]).view(3, 1, 1)
            pixels = (((pixels * weights).sum(dim=1, keepdim=True) + 0x8000) / 0x10000).floor()
        lengths = images.shape[1:3]
        sides = [torch.scalar_tensor(side, dtype=torch.float64) for side in lengths]
        rows, columns = (Axis(p, length, *self._fit(side, sides)) for length, side in zip(lengths, sides, strict=True))
        across = columns.resize(pixels)
        resized = rows.resize(across.transpose(2, 3)).transpose(2, 3)
        if p.fit != "pad":
            return resized
        colour = torch.tensor([float(round(255 * value)) for value in p.mean]).view(-1, 1, 1)
        inside = rows.inside[:, None] * columns.inside
        return resized * inside + (1 - inside) * colour

    def _fit(self, side: Tensor, sides: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what a side becomes, and where in it the square begins: before it, where that is below 0."""
        p = self.preprocess
        size = torch.tensor(float(p.size), dtype=torch.float64)
        if p.fit == "squash":
            return size, torch.zeros_like(size)
        if p.fit == "pad":
            resized = (side * (size / torch.maximum(*sides))).round().clamp(min=1)
            return resized, -((size - resized) / 2).floor()
        # + 0.5 changes no such quotient of whole numbers, but helps runtimes that multiply by a reciprocal
        resized = ((side * p.resize + 0.5) / torch.minimum(*sides)).floor()
        return resized, ((resized - size) / 2).round()


class Axis:
    """One side of an image, resized."""

    def __init__(self, preprocess: Preprocess, length: int, resized: Tensor, start: Tensor) -> None:
        """Compute the weights.

        Args:
            preprocess: for size and filter.
            length: of the side, in pixels.
            resized: what it becomes.
            start: where the square begins in that.
        """
        asked = torch.arange(preprocess.size) + start.to(torch.int64)
        out = torch.minimum(asked.clamp(min=0), resized.to(torch.int64) - 1)
        self.inside = (asked == out).to(torch.float32)
        """(size,): 1 where an output pixel lies inside the image, else 0."""
        self.weights, self.unit = _weights(preprocess.interpolation, length, resized, out)

    def resize(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, C, other, size) in whole numbers, of pixels (N, C, other, length)."""
        high = (self.weights / 256).floor()  # in two parts, whose sums stay below 2**24
        low = self.weights - 256 * high
        total = sum(
            scale * (pixels @ part.to(torch.float32).transpose(0, 1)).to(torch.float64)
            for scale, part in ((256, high), (1, low))
        )
        return ((total + self.unit / 2) / self.unit).floor().clamp(0, 255).to(torch.float32)


def _weights(interpolation: str, length: int, resized: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (size, length) of the input pixels for the output pixels `out`, whole numbers; and the number that is one."""
    place, side = torch.arange(length), torch.scalar_tensor(length, dtype=torch.float64)
    if interpolation == "nearest":  # torch computes the place in 32 bits
        ratio = side.to(torch.float32) / resized.to(torch.float32)
        chosen = (out.to(torch.float32) * ratio).floor().clamp(max=length - 1)
        return (place == chosen[:, None]).to(torch.float64), torch.ones_like(side)
    # of all output pixels: the largest weight, which may be one at a border, decides the bits
    every = torch.arange(resized.to(torch.int64).item())
    distance = ((2 * place + 1) * resized - ((2 * every + 1) * side)[:, None]).abs()
    x = distance / (2 * torch.maximum(side, resized))
    weights = _bicubic(x) if interpolation == "bicubic" else (1 - x).clamp(min=0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    powers = torch.tensor([2.0**bits for bits in range(MAX_BITS + 1)], dtype=torch.float64)
    too_large = (weights.max() * powers[1:] + 0.5).floor() >= 2**15
    unit = powers.index_select(0, MAX_BITS - too_large.sum().view(1))
    weights = weights.index_select(0, out) * unit
    return torch.where(weights < 0, (weights - 0.5).ceil(), (weights + 0.5).floor()), unit


def _bicubic(x: Tensor) -> Tensor:
    """Return Keys' filter with a = -0.5 at distances x, as Pillow and torch (antialiased) have it."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def describe_resize(p: Preprocess, inside: bool) -> dict[str, Any]:
    """Return how a model's images are made from files, as precisely as another program needs it.

    Args:
        p: the preprocessing.
        inside: whether the exported graph resizes.
    """
    filters = {"bilinear": "bilinear (triangle)", "bicubic": "bicubic (Keys, a = -0.5)", "nearest": "nearest"}
    antialias = p.interpolation != "nearest"
    scaled = "; its width grows with the scale where an image is made smaller (antialias)" if antialias else ""
    sizes = {
        "crop": f"the shorter side becomes {p.resize}, the longer floor({p.resize} * longer / shorter)",
        "squash": f"both sides become {p.size}",
        "pad": f"the longer side becomes {p.size}, the other round({p.size} * shorter / longer), at least 1",
    }
    places = {
        "crop": f"{p.size} x {p.size} from top = round((height - {p.size}) / 2), left = round((width - {p.size}) / 2); halves to even",
        "squash": "none",
        "pad": f"centred in {p.size} x {p.size} from top = ({p.size} - height) // 2, left = ({p.size} - width) // 2; beside it "
        f"the colour {[round(255 * value) for value in p.mean]}",
    }
    precision = ", which needs floats of 32 bits or more: OpenVINO takes fewer unless INFERENCE_PRECISION_HINT is f32"
    return {
        "by": f"the graph (resize=shared){precision}" if inside else "the program that runs the model (resize=own)",
        "orientation": "EXIF orientation applied first",
        "colour": "transparency over white; palette, grey and CMYK converted as Pillow does; ICC profiles not applied",
        "filter": f"{filters[p.interpolation]}{scaled}",
        "antialias": antialias,
        "size": sizes[p.fit],
        "crop": places[p.fit],
        "order": "the width first, then the height",
        "rounding": "to 8 bits after each; weights to multiples of 2**-bits, the largest below 2**15 (docs/exports.md)",
    }
