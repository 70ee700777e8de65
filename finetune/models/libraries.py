"""Find the library that builds a network of a name: torchvision, timm, or a family of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from finetune.images.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from finetune.io.paths import weights_path
from finetune.models import timm_catalog
from finetune.models.adaptation import RGB, adapt_channels
from finetune.models.specs import FAMILIES, BuiltNetwork, NetworkRequest, find_family
from finetune.models.timm_library import TimmLibrary
from finetune.models.torchvision_library import TorchvisionLibrary
from finetune.models.weights import read_model_record


class Library(Protocol):
    """Builds networks by name, and says what belongs to them."""

    factory: str
    """The function that builds a network for a user without this package; empty where there is none."""
    reserved: ClassVar[dict[str, str]]
    """Arguments of it that are no options here, with what to do instead."""

    def preprocess(self, name: str, weights: str) -> Preprocess:
        """Return the preprocessing of weights for RGB images, without building or fetching anything.

        Raises:
            ValueError: the library has no such network or no such weights.
        """

    def transforms_input(self, name: str) -> bool:
        """Return whether the network re-normalises its input when its weights are pretrained."""

    def build(self, request: NetworkRequest) -> BuiltNetwork:
        """Build a network with its weights.

        Raises:
            ValueError: the library has no such network, weights or option.
            FileNotFoundError: the weights are not there and cannot be fetched.
        """

    def arguments(self, request: NetworkRequest, network: nn.Module) -> dict[str, Any]:
        """Return the arguments of `factory`, beside name and classes, that make a network like one that was built."""

    def make(self, name: str, **arguments: Any) -> nn.Module:
        """Call `factory` with a name as the library spells it."""

    def convert(self, request: NetworkRequest, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the tensors of a file as a network has them that was built so; None where the library cannot say."""

    def row(self, name: str, counts: bool) -> list[str]:
        """Return what the table of models says of one, see `models.__main__.rows`; parameters if they are to be counted."""


class OwnLibrary:
    """Families of the user's own, see `specs.register`; they come with their weights."""

    factory = ""
    reserved: ClassVar[dict[str, str]] = {}

    def preprocess(self, name: str, weights: str) -> Preprocess:
        """Return the preprocessing of the family."""
        preprocess: Preprocess = FAMILIES[name].preprocess or Preprocess()
        return preprocess

    def transforms_input(self, name: str) -> bool:
        """Return what the family says."""
        return FAMILIES[name].transform_input

    def build(self, request: NetworkRequest) -> BuiltNetwork:
        """Call the family's own function.

        Raises:
            ValueError: options are given, or its first convolution cannot be adapted.
        """
        family = FAMILIES[request.name]
        if request.options:
            raise ValueError(
                f"model.options={dict(request.options)}: {request.name} is built by your own function, without."
            )
        assert family.build is not None
        network = family.build()
        if request.in_channels not in (RGB, self.preprocess(request.name, "default").channels):
            adapt_channels(network, request.in_channels)
        return BuiltNetwork(network, family, "as built by its family")

    def arguments(self, request: NetworkRequest, network: nn.Module) -> dict[str, Any]:
        """Return nothing: its function takes no arguments."""
        return {}

    def make(self, name: str, **arguments: Any) -> nn.Module:
        """Call the family's own function."""
        return self.build(NetworkRequest(name)).network

    def convert(self, request: NetworkRequest, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return None: there is one naming."""
        return None

    def row(self, name: str, counts: bool) -> list[str]:
        """Return what is known without building it."""
        return ["-", "-", "-", FAMILIES[name].head, "your own"]


OWN, TORCHVISION, TIMM = OwnLibrary(), TorchvisionLibrary(), TimmLibrary()


def find_library(name: str) -> Library:
    """Return the library of a model's name; `timm:` begins the names of timm.

    Raises:
        ValueError: there is no such model; the message names the nearest three, and timm's where timm has it.
    """
    if name.startswith(f"{timm_catalog.PREFIX}:"):
        return TIMM
    try:
        return OWN if find_family(name).build is not None else TORCHVISION
    except ValueError as error:
        named = f"{timm_catalog.PREFIX}:{name.partition('.')[0]}"
        if named in timm_catalog.list_names():
            raise ValueError(
                f"There is no model {name!r} of torchvision, but timm has it: model=timm:{name}."
            ) from error
        raise


def library_versions(name: str) -> dict[str, str]:
    """Return the version of the package that has the code of a network, beside torch's and torchvision's."""
    return {"timm": timm_catalog.import_timm().__version__} if name.startswith(f"{timm_catalog.PREFIX}:") else {}


def default_preprocess(
    name: str,
    weights: str | None = "default",
    in_channels: int = RGB,
    transform_input: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Preprocess:
    """Return the preprocessing of a model's weights, without building or downloading anything.

    A checkpoint of this package has its own. For any other local file, and for weights="none", it is that of the
    architecture's default weights.

    Args:
        name: of the model.
        weights: see `Backbone.create`.
        in_channels: of the images; mean and standard deviation are adapted, see `Preprocess.with_channels`.
        transform_input: see `transforms_input`.
        options: see `Backbone.create`.

    Raises:
        ValueError: the model or the weights are unknown, or a checkpoint is damaged.
        FileNotFoundError: there is no such file.
    """
    _, size, in_channels = split_options(name, options, None, in_channels)
    preprocess = _own_preprocess(name, str(weights or "none"))
    if in_channels != RGB and transforms_input(name, weights, transform_input):
        preprocess = _with_input_transform(preprocess)
    if in_channels != RGB or name not in FAMILIES or FAMILIES[name].build is None:
        preprocess = preprocess.with_channels(in_channels)
    return preprocess.updated({"size": size})


def split_options(
    name: str, options: Mapping[str, Any] | None, size: int | None, in_channels: int
) -> tuple[dict[str, Any], int | None, int]:
    """Return the options of a constructor without image size and channels, and these two: they are arguments here too.

    Raises:
        ValueError: they are said twice and differ, or an option is said elsewhere.
    """
    options = options or {}
    for key, advice in find_library(name).reserved.items():
        if key in options:
            raise ValueError(f"model.options has {key}, which is no option here: {advice}.")
    rest = {key: value for key, value in options.items() if key not in ("img_size", "in_chans")}
    own_size, own_channels = options.get("img_size"), options.get("in_chans")
    if isinstance(own_size, list | tuple):
        if len(set(own_size)) != 1:
            raise ValueError(f"model.options.img_size={list(own_size)}: images are squares here, give one number.")
        own_size = own_size[0]
    if own_size is not None and type(own_size) is not int:
        raise ValueError(f"model.options.img_size takes a whole number of pixels, got {own_size!r}.")
    if own_size is not None and size not in (None, own_size):
        raise ValueError(
            f"model.options.img_size={own_size}, and the images have {size} pixels (data.image_size): say one."
        )
    if own_channels is not None and in_channels not in (RGB, own_channels):
        raise ValueError(f"model.options.in_chans={own_channels}, and model.in_channels={in_channels}: say one.")
    return rest, size if own_size is None else own_size, in_channels if own_channels is None else own_channels


def _own_preprocess(name: str, weights: str) -> Preprocess:
    library = find_library(name)
    path = weights_path(weights)
    record = read_model_record(path) if path else None
    if record is not None and isinstance(record.preprocess, dict):
        return Preprocess().updated(record.preprocess)
    return library.preprocess(name, "default" if path or weights == "none" else weights)


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
    return find_library(name).transforms_input(name) and weights != "none" if given is None else given


def _with_input_transform(preprocess: Preprocess) -> Preprocess:
    """Return the preprocessing of which nothing is left to re-normalise.

    torchvision's `_transform_input` turns x, normalised with ImageNet's M and S, into (x S + M - 0.5) / 0.5, and knows
    three channels alone. Here, x is (p - m) / s.
    """
    both = list(zip(preprocess.mean, preprocess.std, IMAGENET_MEAN, IMAGENET_STD, strict=True))
    mean = tuple(m - (imagenet_mean - 0.5) * s / imagenet_std for m, s, imagenet_mean, imagenet_std in both)
    return replace(preprocess, mean=mean, std=tuple(0.5 * s / imagenet_std for _, s, _, imagenet_std in both))
