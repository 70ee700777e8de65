"""Where a network looked: Grad-CAM, from the package captum, for every network that has maps before its head."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib import colormaps
from torch import Tensor, nn

from finetune.inference.classifier import Classifier

BATCH = 8

STRENGTH = 0.55
"""Of the colours over the picture where the map is highest."""


def available() -> bool:
    """Whether the package is installed."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        return False
    return True


def target_layer(backbone: nn.Module, head: nn.Module, images: Tensor) -> nn.Module | None:
    """The last module before the head that puts out maps, (N, C, H, W).

    None where there is none, or where it is followed by half of the network, as in a ViT: the only maps there are its
    patches.

    Args:
        images: as the network takes them.
    """
    learning = [m for m in backbone.modules() if next(m.parameters(recurse=False), None) is not None]
    called: list[nn.Module] = []
    found: list[tuple[nn.Module, int]] = []
    reached = False

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal reached
        reached = reached or module is head
        if reached:
            return
        if module in learning:
            called.append(module)
        maps = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1
        if maps and not isinstance(module, nn.Dropout):
            found.append((module, len(called)))

    hooks = [m.register_forward_hook(note) for m in backbone.modules() if m is not backbone]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1][0] if found and 2 * found[-1][1] > len(called) else None


def gradcam(model: Classifier, images: Tensor, classes: Tensor) -> Tensor | None:
    """How much each place spoke for a class, (N, size, size) in 0..1; None where `layer` is.

    Source: Selvaraju et al., "Grad-CAM", 2017.

    Args:
        model: without autocast here, in the precision of its weights.
        images: uint8 (N, 3, size, size).
        classes: (N,).

    Raises:
        ImportError: captum is not installed.
    """
    from captum.attr import LayerGradCam

    module, device = model.module, model.device
    dtype = next(module.backbone.parameters()).dtype
    where = target_layer(module.backbone, module.head, module.preprocess.normalize(images[:1].to(device)).to(dtype))
    if where is None:
        return None
    gradcam, parts = LayerGradCam(module.backbone, where), []
    for start in range(0, len(images), BATCH):
        batch = module.preprocess.normalize(images[start : start + BATCH].to(device)).to(dtype)
        target = classes[start : start + BATCH].to(device)
        parts.append(gradcam.attribute(batch, target=target, relu_attributions=True).detach().float().cpu())
    found = nn.functional.interpolate(torch.cat(parts), images.shape[-2:], mode="bilinear", antialias=False)[:, 0]
    peaks = found.amax(dim=(1, 2), keepdim=True)
    return found / torch.where(peaks > 0, peaks, 1)


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A picture with its map over it, uint8 (3, H, W).

    Args:
        image: uint8 (3, H, W).
        heat: (H, W) in 0..1.
    """
    colours = torch.from_numpy(colormaps["turbo"](heat.numpy())[..., :3]).permute(2, 0, 1) * 255
    share = (STRENGTH * heat).clamp(0, 1)
    return (image * (1 - share) + colours * share).round().to(torch.uint8)
