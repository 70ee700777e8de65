"""Find, verify and load pretrained weights."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from finetune.checkpoints.format import model_record
from finetune.checkpoints.heads import StoredHead
from finetune.checkpoints.metadata import ModelRecord
from finetune.images.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from finetune.io.paths import WEIGHT_FILES, weights_path
from finetune.io.tensors import read_tensors
from finetune.models.adaptation import POSITIONS, RGB, adapt_weight, first_convolution, fit_positions
from finetune.models.specs import Family, find_family
from finetune.runtime.suggestions import unknown_name

# --- torchvision -----------------------------------------------------------------------------------------------


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


def default_preprocess(
    name: str, weights: str | None = "default", in_channels: int = RGB, transform_input: bool | None = None
) -> Preprocess:
    """Return the preprocessing of a model's weights, without building or downloading anything.

    A checkpoint of this package has its own. For any other local file, and for weights="none", it is that of the
    architecture's default weights.

    Args:
        name: of the model.
        weights: see `Backbone.create`.
        in_channels: of the images; mean and standard deviation are adapted, see `Preprocess.with_channels`.
        transform_input: see `transforms_input`.

    Raises:
        ValueError: the model or the weights are unknown, or a checkpoint is damaged.
        FileNotFoundError: there is no such file.
    """
    preprocess = _own_preprocess(name, str(weights or "none"))
    if in_channels in (RGB, preprocess.channels) and find_family(name).build is not None:
        return preprocess
    if in_channels != RGB and transforms_input(name, weights, transform_input):
        preprocess = _with_input_transform(preprocess)
    return preprocess.with_channels(in_channels)


def _own_preprocess(name: str, weights: str) -> Preprocess:
    family = find_family(name)
    if family.build is not None:
        return family.preprocess or Preprocess()
    path = weights_path(weights)
    record = read_model_record(path) if path else None
    if record is not None and isinstance(record.preprocess, dict):
        return Preprocess().updated(record.preprocess)
    enum = find_weights(name, "default" if path or weights == "none" else weights)
    return Preprocess.from_transforms(enum.transforms())


def transforms_input(name: str, weights: str | None, given: bool | None = None) -> bool:
    """Return whether a network re-normalises its input (inception and googlenet), which no state dict says.

    Args:
        name: of the model.
        weights: see `Backbone.create`.
        given: what the caller says; None follows the weights.
    """
    weights = str(weights or "none")
    if given is None and (path := weights_path(weights)) is not None:
        record = read_model_record(path)
        given = record.transform_input if record is not None else None
    return find_family(name).transform_input and weights != "none" if given is None else given


def _with_input_transform(preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing of which nothing is left to re-normalise.

    torchvision's `_transform_input` turns x, normalised with ImageNet's M and S, into (x S + M - 0.5) / 0.5, and knows
    three channels alone. Here, x is (p - m) / s.
    """
    both = list(zip(preprocess.mean, preprocess.std, IMAGENET_MEAN, IMAGENET_STD, strict=True))
    mean = tuple(m - (imagenet_mean - 0.5) * s / imagenet_std for m, s, imagenet_mean, imagenet_std in both)
    return replace(preprocess, mean=mean, std=tuple(0.5 * s / imagenet_std for _, s, _, imagenet_std in both))


def read_model_record(path: Path) -> ModelRecord | None:
    """Return what a checkpoint of this package says of its model; None for any other file."""
    return _read_model_record(path, path.stat().st_mtime_ns) if path.suffix == ".ckpt" else None


@lru_cache(8)  # three ask for it while a network is made, and the file may be large
def _read_model_record(path: Path, changed: int) -> ModelRecord | None:
    return model_record(read_tensors(path))


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


# --- local files -----------------------------------------------------------------------------------------------


_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "network.")

_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")  # torchvision's own old files


def _strip_wrappers(name: str, known: set[str]) -> str:
    """Return a parameter's name without the prefixes of wrappers, in torchvision's present spelling."""
    while name not in known and (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)):
        name = name[len(prefix) :]
    old = _OLD_DENSENET.match(name)
    return f"{old[1]}{old[2]}" if old else name


class LoadedWeights(NamedTuple):
    """What was loaded from a local file, and what is left of it."""

    source: str
    """How many tensors were loaded from where, as a text for people."""
    head: StoredHead | None
    """The heads of a checkpoint of this package, which names its classes; None for any other file."""


def load_weights(network: nn.Module, path: Path, family: Family) -> LoadedWeights:
    """Load a local file into a network's trunk; heads in the file are left out.

    The file may be a state dict, one under `state_dict` or `model`, one with wrappers' prefixes, or a trunk alone. One
    of a network for RGB images is adapted to the channels that this one takes, one of a vision transformer to its size.

    Raises:
        ValueError: trunk tensors are missing, have another shape, or belong to another network; the message names them.
    """
    data: Mapping[str, Any] = read_tensors(path)
    for key in ("state_dict", "model"):
        if isinstance(data.get(key), Mapping):
            data = data[key]
    state = network.state_dict()
    loaded = {_strip_wrappers(k, set(state)): v for k, v in data.items() if isinstance(v, Tensor)}
    heads = tuple(f"{p}." for p in (*family.new, *family.aux))
    trunk = {k: v for k, v in state.items() if not k.startswith(heads)}
    given = {k: v for k, v in loaded.items() if not k.startswith(heads)}
    _adapt_to_channels(network, given)
    remark = _adapt_to_size(network, given)
    # auxiliary branches are often dropped before saving, and old files lack BatchNorm's counters
    optional = tuple(f"{path}." for path in family.aux_roots)
    missing = [k for k in trunk if not (k in given or k.endswith("num_batches_tracked") or k.startswith(optional))]
    shapes = [
        f"{k} is {list(v.shape)}, needs {list(trunk[k].shape)}"
        for k, v in given.items()
        if k in trunk and v.shape != trunk[k].shape
    ]
    unknown = [k for k in given if k not in trunk]
    for problem, names in (("lacks", missing), ("has another shape:", shapes), ("also holds", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{path} does not fit {type(network).__name__}: it {problem} {', '.join(names[:3])}{more}. "
                + _advice(path, family, network, given)
            )
    state.update({k: v for k, v in given.items() if k in trunk})
    network.load_state_dict(state)  # by update: `state` has the version in it that torchvision's MNASNet asks for
    ignored = len(loaded) - len(given)
    source = f"{len(given)} trunk tensors from {path}{remark}"
    record = read_model_record(path)
    head = None
    if record is not None:
        head = StoredHead(record.classes, {k: v for k, v in loaded.items() if k.startswith(heads)}, path)
    return LoadedWeights(source + (f" ({ignored} of its heads ignored)" if ignored else ""), head)


def _adapt_to_channels(network: nn.Module, given: dict[str, Tensor]) -> None:
    """Adapt the first convolution of a file for RGB images to the channels that the network takes, in place."""
    found = first_convolution(network)
    name = f"{found[0]}.weight" if found is not None else ""
    if found is None or name not in given or given[name].ndim != 4:
        return
    if given[name].shape[1] == RGB != found[1].in_channels:
        given[name] = adapt_weight(given[name], found[1].in_channels)


def _adapt_to_size(network: nn.Module, given: dict[str, Tensor]) -> str:
    """Adapt the position embeddings of a vision transformer's file to the network's image size, in place."""
    positions = given.get(POSITIONS)
    if not isinstance(network, VisionTransformer) or positions is None or positions.ndim != 3:
        return ""
    if positions.shape[2] != network.hidden_dim:
        return ""  # of another network
    return fit_positions(given, network.image_size, network.patch_size)


def _advice(path: Path, family: Family, network: nn.Module, given: Mapping[str, Tensor]) -> str:
    """Return what to do with a file that does not fit."""
    record = read_model_record(path)
    if record is not None and record.model not in family.names:
        return f"It is a checkpoint of {record.model}: give model={record.model}."
    found = first_convolution(network)
    weight = given.get(f"{found[0]}.weight") if found is not None else None
    if found is not None and weight is not None and weight.ndim == 4 and weight.shape[1] != found[1].in_channels:
        channels = weight.shape[1]
        return f"It is of a network for images of {channels} channels: give model.in_channels={channels}."
    return (
        "Is it the file of another model?"
        if record is None
        else f"It is a checkpoint of {record.model}: give model={record.model}."
    )
