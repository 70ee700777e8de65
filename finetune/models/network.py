"""Run a classifier from images, or from features of its frozen part, to logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from finetune.images.transforms import Preprocess
from finetune.models import partition


class ClassifierNetwork:
    """A backbone with its preprocessing, run as a whole or in parts.

    A plain object and no module: the parameters are registered once, under `FineTuner.backbone`.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, head: str, head_is_last: bool) -> None:
        """Name the parts.

        Args:
            module: the whole network.
            preprocess: normalises its images.
            head: path of its last layer.
            head_is_last: whether nothing follows the head; that is known of torchvision's networks alone.
        """
        self.module, self.preprocess, self.head_path = module, preprocess, head
        self._head_is_last = head_is_last

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
            log_probabilities = self.logits(images.flatten(0, 1), exact_head).float().log_softmax(dim=1)
            return log_probabilities.view(n, views, -1).logsumexp(dim=1) - math.log(views)
        images = channels_last(self.normalize(images))
        if self._runs_exact_head(images, exact_head):
            return self._exact_head(partition.forward_to(self.module, self.head_path, images))
        return self.logits_and_aux(images)[0]

    def logits_from(self, features: Tensor, split_point: str, exact_head: bool = False) -> Tensor:
        """Compute the main logits (N, classes) from what enters a split point.

        Args:
            features: (N, ...).
            split_point: path of a module, see `partition.split_points`.
            exact_head: see `logits`.
        """
        modules = partition.modules_after(self.module, split_point)
        if not self._runs_exact_head(features, exact_head):
            return partition.run_to_logits(modules, features)
        first = partition.first_leaf(self.head)
        return self._exact_head(partition.forward_from(modules[: modules.index(first)], features))

    def head_inputs(self, images: Tensor) -> Tensor:
        """Compute what enters the head for images (N, C, H, W), as rows (N, D)."""
        return self.pool(partition.forward_to(self.module, self.head_path, self.normalize(images)))

    def pool(self, values: Tensor) -> Tensor:
        """Return what enters the head as rows (N, D) float32; maps (SqueezeNet's) are averaged over their pixels."""
        spatial = values.ndim == 4 and isinstance(partition.first_leaf(self.head), nn.Conv2d)
        return values.float().mean(dim=(2, 3)) if spatial else values.float().flatten(1)

    def _runs_exact_head(self, values: Tensor, exact_head: bool) -> bool:
        return exact_head and self._head_is_last and torch.is_autocast_enabled(values.device.type)

    def _exact_head(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return partition.run_to_logits(partition.modules_after(self.module, self.head_path), values.float())


def channels_last(images: Tensor) -> Tensor:
    """Return images in channels_last, which doubles the speed of convolutions on CPUs and changes no value."""
    return images.contiguous(memory_format=torch.channels_last)


def count_parameters(network: nn.Module, names: set[str] | None = None) -> int:
    """Count the parameters, all or those of some names."""
    return sum(p.numel() for n, p in network.named_parameters() if names is None or n in names)
