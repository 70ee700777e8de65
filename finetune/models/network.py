"""Run a classifier from images, or from features of its frozen part, to logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.images.transforms import Preprocess
from finetune.models import partition


class ClassifierNetwork:
    """A backbone with its preprocessing, run as a whole or in parts.

    A plain object and no module: the parameters are registered once, under `FineTuner.backbone`.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, heads: Sequence[str]) -> None:
        """Name the parts.

        Args:
            module: the whole network.
            preprocess: normalises its images.
            heads: path of its last layer, and those of others whose outputs are averaged with it.
        """
        self.module, self.preprocess = module, preprocess
        self.head_path, self._head_paths = heads[0], heads

    @property
    def head(self) -> nn.Module:
        """Return the last layer."""
        return self.module.get_submodule(self.head_path)

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images as the floats that the network expects; floats as they are.

        Raises:
            ValueError: they are no images of the network's channels.
        """
        channels = self.preprocess.channels
        fits = images.ndim == 4 and images.shape[1] == channels
        if not fits or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(
                f"Images are (N, {channels}, H, W), uint8 or normalised floats, got {images.dtype} {tuple(images.shape)}."
            )
        if images.dtype != torch.uint8:
            return images
        return self.preprocess.normalize(images).to(next(self.module.parameters()).dtype)

    def logits_and_aux(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the main logits (N, classes), and those of the auxiliary heads where they run.

        Args:
            images: normalised floats (N, C, H, W).
        """
        output = self.module(channels_last(images))
        logits, *aux = output if isinstance(output, tuple) else (output,)
        return logits, aux

    def logits(self, images: Tensor, exact_head: bool = False) -> Tensor:
        """Compute the main logits (N, classes).

        Args:
            images: (N, C, H, W), uint8 or normalised floats; or V views of each image (N, V, C, H, W), whose
                probabilities are averaged.
            exact_head: run the head in 32 bits where autocast has 16: bf16 has three digits, so logits would tie.
        """
        if images.ndim == 5:
            n, views = images.shape[:2]
            return average_views(self.logits(images.flatten(0, 1), exact_head).float().view(n, views, -1))
        images = channels_last(self.normalize(images))
        if not (exact_head and torch.is_autocast_enabled(images.device.type)):
            return self.logits_and_aux(images)[0]
        with self._heads_in_32_bits():
            output = self.module.forward(images)  # not compiled: a compiled call has the layers as they were
        return output[0] if isinstance(output, tuple) else output

    def logits_from(self, features: Tensor, split_point: str, exact_head: bool = False) -> Tensor:
        """Compute the main logits (N, classes) from what enters a split point.

        Args:
            features: (N, ...).
            split_point: path of a module, see `partition.split_points`.
            exact_head: see `logits`.
        """
        modules = partition.modules_after(self.module, split_point)
        if not (exact_head and torch.is_autocast_enabled(features.device.type)):
            return partition.run_to_logits(modules, features)
        with self._heads_in_32_bits():
            return partition.run_to_logits(modules, features)

    def head_inputs(self, images: Tensor) -> Tensor:
        """Compute what enters the head for images (N, C, H, W), as rows (N, D); of several heads, side by side."""
        images = self.normalize(images)
        if len(self._head_paths) == 1:
            return self.pool(partition.forward_to(self.module, self.head_path, images))
        entered: list[Tensor] = []
        heads = [partition.first_leaf(self.module.get_submodule(path)) for path in self._head_paths]
        handles = [head.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])) for head in heads]
        try:
            self.module.forward(images)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([self.pool(values) for values in entered], dim=1)

    def pool(self, values: Tensor) -> Tensor:
        """Return what enters the head as rows (N, D) float32; maps (SqueezeNet's) are averaged over their pixels."""
        spatial = values.ndim == 4 and isinstance(partition.first_leaf(self.head), nn.Conv2d)
        return values.float().mean(dim=(2, 3)) if spatial else values.float().flatten(1)

    @contextmanager
    def _heads_in_32_bits(self) -> Iterator[None]:
        heads = [self.module.get_submodule(path) for path in self._head_paths]
        layers = list(dict.fromkeys(layer for head in heads for layer in partition.leaves(head)))
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:  # in place of `forward`: a hook would call it again, on what it may have changed in place
            vars(layer)["forward"] = partial(_in_32_bits, layer.forward)
        try:
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                del vars(layer)["forward"]
                vars(layer).update({"forward": own} if own is not None else {})


def _in_32_bits(forward: Callable[..., Any], *inputs: Tensor, **options: Any) -> Any:
    """Call a layer on its inputs in 32 bits, whatever autocast says."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return forward(*(value.float() for value in inputs), **options)


def average_views(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the logarithm (N, classes) of the mean probability over V views, or the logits themselves where there is one.

    Args:
        logits: (N, V, classes) float32; each view's are divided by the temperature.
        temperature: above 0.
    """
    logits = logits / temperature
    views = logits.shape[1]
    return logits[:, 0] if views == 1 else logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(views)


def channels_last(images: Tensor) -> Tensor:
    """Return images in channels_last, which doubles the speed of convolutions on CPUs and changes no value."""
    return images.contiguous(memory_format=torch.channels_last)


def count_parameters(network: nn.Module, names: set[str] | None = None) -> int:
    """Count the parameters, all or those of some names."""
    return sum(p.numel() for n, p in network.named_parameters() if names is None or n in names)
