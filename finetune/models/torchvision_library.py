"""Build torchvision's networks, with weights that are verified."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from finetune.images.transforms import Preprocess
from finetune.io import download
from finetune.io.paths import WEIGHT_FILES
from finetune.models.adaptation import adapt_channels, resize_positions
from finetune.models.specs import FAMILIES, BuiltNetwork, Family, NetworkRequest
from finetune.runtime.suggestions import unknown_name


class TorchvisionLibrary:
    """The networks of torchvision, with the facts of `specs.FAMILIES`."""

    factory = "torchvision.models.get_model"

    reserved: ClassVar = {
        "num_classes": "there is an output for each class", "weights": "give model.weights",
        "image_size": "give data.image_size", "aux_logits": "loss.aux=0 switches the auxiliary loss off",
        "transform_input": "it follows the weights, or FineTuner(transform_input=)",
        "init_weights": "random weights are initialised",
    }  # fmt: skip

    def preprocess(self, name: str, weights: str) -> Preprocess:
        """Return the preprocessing of an entry of the model's weights enum."""
        return Preprocess.from_transforms(find_weights(name, weights).transforms())

    def transforms_input(self, name: str) -> bool:
        """Return whether it is inception or googlenet."""
        return FAMILIES[name].transform_input

    def build(self, request: NetworkRequest) -> BuiltNetwork:
        """Build a network, with position embeddings and first convolution fitted to the images."""
        name, family, source = request.name, FAMILIES[request.name], "random weights"
        if request.weights == "none":
            network = _make(request, family)
        else:
            enum = find_weights(name, request.weights)
            check_cached_weights(enum)
            network = _download(request, family, enum)
            source = f"{type(enum).__name__}.{enum.name}"
            if request.size is not None:
                source += resize_positions(network, request.size, name)
        adapt_channels(network, request.in_channels)
        return BuiltNetwork(network, family, source)

    def arguments(self, request: NetworkRequest, network: nn.Module) -> dict[str, Any]:
        """Return the arguments of `get_model`, of which no flag is in a state dict."""
        family = FAMILIES[request.name]
        arguments = dict(request.options)
        if family.aux:
            arguments |= {"aux_logits": True, "transform_input": request.transform_input, "init_weights": False}
        size = getattr(network, "image_size", None)
        if family.size_argument and size is not None:
            arguments[family.size_argument] = size
        return arguments

    def make(self, name: str, **arguments: Any) -> nn.Module:
        """Build a network as torchvision does."""
        network: nn.Module = torchvision.models.get_model(name, **arguments)
        return network

    def convert(self, request: NetworkRequest, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return None: torchvision has one naming."""
        return None

    def row(self, name: str, counts: bool) -> list[str]:
        """Return what the default weights are and whether their file is here."""
        weights = find_weights(name, "default")
        top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        size = weights.transforms().crop_size[0]
        state = "here" if cached_weights(weights).exists() else "to fetch"
        return [f"{weights.meta['num_params'] / 1e6:.1f} M", str(size), f"{top1:.1f}", FAMILIES[name].head, state]


def find_weights(name: str, weights: str) -> Any:
    """Return an entry of a torchvision model's weights enum.

    Raises:
        ValueError: there is no such entry; the message names those that exist.
    """
    enum = torchvision.models.get_model_weights(name)
    if weights == "default":
        return enum.DEFAULT
    if weights in enum.__members__:
        return enum[weights]
    known = ["default", "none", *enum.__members__]
    raise ValueError(
        unknown_name(f"model.weights for {name}", weights, known, f"Or give a local file ({' '.join(WEIGHT_FILES)}).")
    )


def cached_weights(weights: Any) -> Path:
    """Return the path where torchvision keeps the file of a weights enum entry, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(weights.url).path)


def check_cached_weights(weights: Any) -> None:
    """Check the SHA-256 of a file of weights that was downloaded earlier.

    Torch checks a file only when it downloads it. A file damaged later would fail in every run, with a message that does
    not name it.

    Raises:
        ValueError: the file exists and its digest is not the one in its name.
    """
    path = cached_weights(weights)
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.exists() or expected is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected[1]):
        raise ValueError(
            f"The weights file {path} is damaged (its SHA-256 should begin with {expected[1]}). "
            "Delete it, and it is downloaded again."
        )


def _make(request: NetworkRequest, family: Family, weights: Any = None) -> nn.Module:
    options = dict(request.options)
    if family.size_argument and weights is None and request.size is not None:
        options[family.size_argument] = request.size
    if family.aux:
        options |= {"aux_logits": True, "transform_input": request.transform_input}
        if weights is None:
            options["init_weights"] = True
    try:
        network: nn.Module = torchvision.models.get_model(request.name, weights=weights, **options)
    except AssertionError as error:  # torchvision raises it for a size that is no multiple of the patches' size
        raise ValueError(
            f"{request.name} cannot be built for images of {request.size} pixels: the size must be a multiple of its "
            f"patches' size ({error})."
        ) from error
    except TypeError as error:
        raise ValueError(
            f"{request.name} cannot be built with model.options={dict(request.options)}: {error}."
        ) from error
    return network


def _download(request: NetworkRequest, family: Family, weights: Any) -> nn.Module:
    digest = re.search(r"-([0-9a-f]{8,})\.", weights.url)  # the first digits of the file's SHA-256
    try:
        if digest is not None:
            download.fetch_file(weights.url, cached_weights(weights), digest[1])
        return _make(request, family, weights)
    except OSError as error:
        raise FileNotFoundError(
            f"The weights of {request.name} are not on this machine and could not be downloaded ({error}). Download "
            f"{weights.url} elsewhere and put it at {cached_weights(weights)} (TORCH_HOME moves that folder), or give "
            "model.weights=FILE, or start from random weights with model.weights=none."
        ) from error
