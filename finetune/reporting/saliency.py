"""Compute Grad-CAM maps with the package captum, for every network that has feature maps before its head."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib import colormaps
from torch import Tensor, nn

from finetune.training.module import FineTuner

BATCH = 8
"""Images at a time."""

OPACITY = 0.55
"""Opacity of the colours over the image where the map is highest."""


def available() -> bool:
    """Return whether the package captum is installed."""
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        return False
    return True


def target_layer(backbone: nn.Module, head: nn.Module, images: Tensor) -> nn.Module | None:
    """Return the last module before the head whose output is feature maps, (N, C, H, W).

    None where there is none, or where half of the network follows it, as in a ViT: its only maps are the patches.

    Args:
        backbone: the whole network.
        head: its last layers.
        images: normalized, (N, 3, H, W).
    """
    with_parameters = [m for m in backbone.modules() if next(m.parameters(recurse=False), None) is not None]
    called: list[nn.Module] = []
    candidates: list[tuple[nn.Module, int]] = []
    head_reached = False

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal head_reached
        head_reached = head_reached or module is head
        if head_reached:
            return
        if module in with_parameters:
            called.append(module)
        if _is_map(output) and not isinstance(module, nn.Dropout | nn.Identity | nn.Softmax):  # also of attentions
            candidates.append((module, len(called)))

    hooks = [m.register_forward_hook(record) for m in backbone.modules() if m is not backbone]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return candidates[-1][0] if candidates and 2 * candidates[-1][1] > len(called) else None


def _is_map(output: Any) -> bool:
    """Return whether an output is (N, C, H, W) for square images, and not (N, H, W, C), or (N, heads, tokens, C)."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    _, channels, height, width = output.shape
    return height == width > 1 and channels != height


def gradcam(module: FineTuner, images: Tensor, classes: Tensor) -> Tensor | None:
    """Compute how much each place of an image contributed to a class, (N, H, W) in 0..1.

    None where the network has no `target_layer`. Computed without autocast, in the precision of the weights.
    Source: Selvaraju et al., "Grad-CAM", 2017.

    Args:
        module: in evaluation mode, on the device that is to compute.
        images: uint8 (N, 3, H, W).
        classes: (N,).

    Raises:
        ImportError: captum is not installed.
    """
    from captum.attr import LayerGradCam

    device, dtype = module.device, next(module.backbone.parameters()).dtype
    layer = target_layer(module.backbone, module.head, module.preprocess.normalize(images[:1].to(device)).to(dtype))
    if layer is None:
        return None
    method, batches = LayerGradCam(module.backbone, layer), []
    for start in range(0, len(images), BATCH):
        batch = module.preprocess.normalize(images[start : start + BATCH].to(device)).to(dtype)
        target = classes[start : start + BATCH].to(device)
        batches.append(method.attribute(batch, target=target, relu_attributions=True).detach().float().cpu())
    maps = nn.functional.interpolate(torch.cat(batches), images.shape[-2:], mode="bilinear", antialias=False)[:, 0]
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(peaks > 0, peaks, 1)


def overlay(image: Tensor, saliency_map: Tensor) -> Tensor:
    """Draw a saliency map over its image, uint8 (3, H, W).

    Args:
        image: uint8 (3, H, W).
        saliency_map: (H, W) in 0..1.
    """
    colours = torch.from_numpy(colormaps["turbo"](saliency_map.numpy())[..., :3]).permute(2, 0, 1) * 255
    opacity = (OPACITY * saliency_map).clamp(0, 1)
    return (image * (1 - opacity) + colours * opacity).round().to(torch.uint8)
