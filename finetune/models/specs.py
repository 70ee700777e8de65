"""Specify every family of architectures in one table, without importing torch.

A row says where the head, the auxiliary heads and the feature boundary of a group of networks are. Nothing else in the
package tests the name of a model: a new family is a new row, not a new branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.runtime.suggestions import unknown_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Specify a group of networks: all that replacing its head and freezing its trunk need to know."""

    names: tuple[str, ...]
    """Model names, as torchvision spells them (or your own), or timm's with their prefix."""
    head: str
    """Path of the last layer, a Linear or a Conv2d, as in `named_modules()`."""
    feature_boundary: str
    """Path of the first module, in forward order, that is random in training or new while everything before it is frozen.

    What enters it is the features of an image, which are constant while the trunk is frozen."""
    split_points: tuple[str, ...] = ()
    """Paths of modules before the feature boundary, in forward order, at which the network can be split too.

    From such a module on, the rest of the network is its modules one after another (`features.*` is every child of
    features). While only modules after a split point are trainable, what enters it is computed once."""
    more_heads: tuple[str, ...] = ()
    """Paths of further last layers, whose output the network averages with the head's (distilled transformers)."""
    aux: tuple[str, ...] = ()
    """Paths of the last layers of the auxiliary heads."""
    aux_new: tuple[str, ...] = ()
    """Paths of the new modules of the auxiliary branches, where they are more than `aux` (googlenet's come untrained)."""
    aux_weight: float = 0.0
    """Weight of each auxiliary loss in training."""
    transform_input: bool = False
    """Whether the network re-normalises its input when its weights are pretrained (a flag outside the state dict)."""
    min_size: int = 32
    """Smallest training image in pixels."""
    fixed_size: bool = False
    """Whether the network takes images of its weights' own size only."""
    size_argument: str | None = None
    """Name of the constructor's argument for the image size, where the network is built for one."""
    build: Callable[[], nn.Module] | None = None
    """For families of your own: a function that returns the network with its head and its weights."""
    preprocess: Any = None
    """For families of your own: the `Preprocess` of those weights (whose module imports torch)."""

    @property
    def new(self) -> tuple[str, ...]:
        """Return the paths of the modules that start untrained: the heads and what is new in auxiliary branches."""
        return (self.head, *self.more_heads, *(self.aux_new or self.aux))

    @property
    def last_layers(self) -> tuple[str, ...]:
        """Return the paths of all layers with an output for each class."""
        return (self.head, *self.more_heads, *self.aux)

    @property
    def aux_roots(self) -> tuple[str, ...]:
        """Return the paths of the whole auxiliary branches."""
        return tuple(dict.fromkeys(path.split(".")[0] for path in self.aux))


@dataclass(frozen=True)
class NetworkRequest:
    """Which network a library builds, with which weights, for which images."""

    name: str
    """With the prefix of its library."""
    weights: str = "none"
    """"default", "none", or a name that the library knows; never a file."""
    size: int | None = None
    """Side of the images in pixels, for networks that are built for a size; None is that of the weights."""
    in_channels: int = 3
    transform_input: bool = False
    """Whether it re-normalises its input (inception and googlenet)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the library's own constructor."""

    @property
    def bare_name(self) -> str:
        """Return the name as the library spells it."""
        return self.name.partition(":")[2] or self.name


@dataclass(frozen=True)
class BuiltNetwork:
    """A network that a library has built, with the head of its weights."""

    network: nn.Module
    family: Family
    weights_source: str
    """Which weights were loaded, as a text for people."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# `num_classes` reaches only head and aux in all of these; tests/models/test_specs.py proves it by building each twice.
# Smallest sizes: found by running each family (inception: its auxiliary head in training mode needs 299).
_TABLE = [
    Family(
        _names(
            "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d "
            "wide_resnet50_2 wide_resnet101_2"
        ),
        head="fc", feature_boundary="fc", split_points=("layer2", "layer3", "layer4"), min_size=8,
    ),
    Family(
        _names(
            "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf "
            "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
            "regnet_y_128gf"
        ),
        head="fc", feature_boundary="fc", split_points=("trunk_output.*",), min_size=8,
    ),
    Family(
        _names("shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
        head="fc", feature_boundary="fc", min_size=8,
    ),
    Family(
        ("googlenet",), head="fc", feature_boundary="dropout", aux=("aux1.fc2", "aux2.fc2"),
        aux_new=("aux1", "aux2"), aux_weight=0.3, transform_input=True, min_size=32,
    ),
    Family(
        ("inception_v3",), head="fc", feature_boundary="dropout", aux=("AuxLogits.fc",),
        aux_weight=0.4, transform_input=True, min_size=299,
    ),
    Family(
        _names("densenet121 densenet161 densenet169 densenet201"),
        head="classifier", feature_boundary="classifier", min_size=29,
    ),
    Family(
        ("alexnet",), head="classifier.6", feature_boundary="classifier.0", split_points=("features.*",), min_size=63
    ),
    Family(
        _names("vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn"),
        head="classifier.6", feature_boundary="classifier.2", split_points=("features.*",),
    ),
    Family(
        _names("convnext_tiny convnext_small convnext_base convnext_large"),
        head="classifier.2", feature_boundary="classifier.2", split_points=("features.*",),
    ),
    Family(
        _names(
            "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
            "efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"
        ),
        head="classifier.1", feature_boundary="classifier.0", split_points=("features.*",), min_size=8,
    ),
    Family(
        _names("mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2"),
        head="classifier.1", feature_boundary="classifier.0", min_size=8,
    ),
    Family(
        ("squeezenet1_0", "squeezenet1_1"),
        head="classifier.1", feature_boundary="classifier.0", split_points=("features.*",), min_size=21,
    ),
    Family(
        ("mobilenet_v3_small", "mobilenet_v3_large"),
        head="classifier.3", feature_boundary="classifier.2", split_points=("features.*",), min_size=8,
    ),
    Family(
        ("maxvit_t",),
        head="classifier.5", feature_boundary="classifier.5", split_points=("blocks.*",), min_size=224, fixed_size=True,
    ),
    Family(
        _names("swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"),
        head="head", feature_boundary="head", split_points=("features.*",), min_size=32,
    ),
    Family(
        _names("vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14"),
        head="heads.head", feature_boundary="heads.head", min_size=32, size_argument="image_size",
    ),
]  # fmt: skip


FAMILIES: dict[str, Family] = {name: family for family in _TABLE for name in family.names}


def register(family: Family) -> None:
    """Add a family of your own to the table, so that its names work wherever a model is named.

    Raises:
        ValueError: a name is taken, or `build` is missing.
    """
    if family.build is None:
        raise ValueError(f"Family {family.names} needs build=: a function without arguments that returns the network.")
    taken = [name for name in family.names if name in FAMILIES]
    if taken:
        raise ValueError(f"The table of families already has {', '.join(taken)}; choose another name.")
    FAMILIES.update(dict.fromkeys(family.names, family))


def find_family(name: str) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: there is no such model; the message names the nearest three.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    raise ValueError(unknown_name("model", name, FAMILIES, "`python -m finetune.models` lists all."))
