"""Create networks with their weights, their preprocessing and a new head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from finetune.checkpoints.heads import StoredHead
from finetune.images.transforms import Preprocess
from finetune.io.paths import weights_path
from finetune.models.adaptation import RGB, adapt_channels, resize_positions
from finetune.models.head_layers import require_fitting_head
from finetune.models.libraries import default_preprocess, find_library, split_options, transforms_input
from finetune.models.probe import modules_after_head
from finetune.models.specs import Family, NetworkRequest
from finetune.models.weights import load_weights, read_model_record
from finetune.runtime.suggestions import unknown_name

HEAD_INITS: dict[str, Callable[[Tensor], object] | None] = {
    "default": None,  # what the layer's own constructor does
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "zero": nn.init.zeros_,
}


@dataclass
class Backbone:
    """Hold a network, where its weights came from, and the preprocessing that belongs to them.

    `Backbone.create("resnet18")` gives torchvision's network with its ImageNet head. `replace_head` fits it to other
    classes.

    >>> backbone = Backbone.create("resnet18", weights="none")
    >>> backbone.replace_head(num_classes=2)
    >>> backbone.network.fc, backbone.head_names
    (Linear(in_features=512, out_features=2, bias=True), ['fc.weight', 'fc.bias'])
    """

    name: str
    network: nn.Module
    family: Family
    preprocess: Preprocess
    weights_source: str
    """Which weights were loaded, as a text for people."""
    transform_input: bool = False
    """Whether the network re-normalises its input (inception and googlenet)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of its library's constructor that it was built with."""
    head_names: list[str] = field(default_factory=list)
    """Names of the new parameters: those of the head and of the new part of auxiliary branches."""
    has_own_head: bool = False
    """Whether its head is layers of the user's own, and not a new one like that of the family."""
    stored_head: StoredHead | None = None
    """The head of the checkpoint that the weights came from, for the classes that stay."""

    @classmethod
    def create(
        cls,
        name: str,
        weights: str | None = "default",
        transform_input: bool | None = None,
        size: int | None = None,
        in_channels: int = RGB,
        options: Mapping[str, Any] | None = None,
    ) -> Backbone:
        """Build a network by name.

        Args:
            name: a name of the table, for example "resnet18", or "timm:NAME" with or without a tag.
            weights: "default", "none", a name of the model's weights enum ("IMAGENET1K_V2"), "package" for those that a
                Python package carries, or a local file.
            transform_input: overrides the flag of inception and googlenet, which no state dict holds.
            size: side in pixels of the images; that of a vision transformer is a multiple of its patches' size. None
                takes that of its preprocessing. The position embeddings of weights for another size are interpolated.
            in_channels: of the images. For another number than three the first convolution is adapted, see
                `adaptation.adapt_weight`, and so is the preprocessing. Inception and googlenet do not re-normalise such
                images: the preprocessing does what their `transform_input` did.
            options: further arguments of the library's constructor, {"drop_path_rate": 0.1} for example; those of the
                training stay where the weights are a checkpoint of this package.

        Raises:
            ValueError: the name, the weights or an option are unknown, a file does not fit, or the channels cannot be adapted.
            FileNotFoundError: there is no such file, or the weights cannot be downloaded.
        """
        library, weights = find_library(name), str(weights or "none")
        path = weights_path(weights)
        record = read_model_record(path) if path else None
        options = {**(record.model_options if record is not None else {}), **(options or {})}
        rest, size, in_channels = split_options(name, options, size, in_channels)
        require_channels(in_channels)
        preprocess = default_preprocess(name, weights, in_channels, transform_input)
        transform = transforms_input(name, weights, transform_input) and in_channels == RGB
        named = "none" if path else weights
        request = NetworkRequest(
            name, named, size or (preprocess.size if named == "none" else None), in_channels, transform, rest
        )
        built = library.build(request)
        network, family, source = built.network, built.family, built.weights_source
        preprocess = preprocess.updated({"size": size})
        head = None
        if path:
            source, head = load_weights(network, path, family, partial(library.convert, request))
        return cls(name, network, family, preprocess, source, transform, rest, stored_head=head)

    def replace_head(
        self, num_classes: int, init: str = "default", classes: Sequence[str] = (), layers: nn.Module | None = None
    ) -> None:
        """Replace the last layers of the head and of the auxiliary heads by new ones with `num_classes` outputs.

        Args:
            num_classes: outputs of the new layers.
            init: a name of `HEAD_INITS`, for layers that are made here.
            classes: their names. Where the weights came from a checkpoint, the classes that it has too keep their rows.
            layers: take the place of the head; one layer or several.

        Raises:
            ValueError: `init` is none of `HEAD_INITS`, the head is neither a Linear nor a Conv2d layer, or `layers` do
                not fit.
        """
        made_here = [path for path in self.family.last_layers if layers is None or path != self.family.head]
        for path in made_here:
            replace_layer(self.network, path, num_classes, init)
        if layers is not None:
            self.insert_head(layers, num_classes)
        if hasattr(self.network, "num_classes"):
            self.network.num_classes = num_classes  # type: ignore[assignment]
        self.head_names = names_under(self.network, self.family.new)
        if self.stored_head is not None and layers is None:
            kept = self.stored_head.take_over(self.network, self.family.last_layers, classes)
            if kept:  # in place of the remark on heads that were ignored
                self.weights_source = f"{self.weights_source.rpartition(' (')[0]} and {kept} classes of its head"

    def insert_head(self, layers: nn.Module, num_classes: int) -> None:
        """Put layers in the place of the head, on its device.

        Raises:
            ValueError: they take other features than the network gives, or have not `num_classes` outputs.
        """
        old = self.network.get_submodule(self.family.head)
        require_fitting_head(layers, old, num_classes)
        self.has_own_head = True
        parameter = next(old.parameters(), next(self.network.parameters()))
        self.network.set_submodule(self.family.head, layers.to(parameter.device, parameter.dtype))
        self.head_names = names_under(self.network, self.family.new)

    def probe(self, num_classes: int) -> None:
        """Find the layers after the head of a network of your own, which are new too, and check what it returns.

        Raises:
            ValueError: its output is not a number for each class.
        """
        channels = len(self.preprocess.mean)
        after = modules_after_head(self.network, self.family.head, num_classes, channels, self.preprocess.size)
        self.family = replace(self.family, aux_new=(*after, *self.family.aux_new))
        self.head_names = names_under(self.network, self.family.new)


def names_under(network: nn.Module, paths: tuple[str, ...]) -> list[str]:
    """Return the names of the parameters of the submodules at some paths."""
    return [n for n, _ in network.named_parameters() if any(n.startswith(f"{p}.") for p in paths)]


def replace_layer(network: nn.Module, path: str, num_classes: int, init: str = "default") -> None:
    """Replace the Linear or Conv2d at `path` by a new one with `num_classes` outputs.

    The new layer has a bias if the old one has, and its device and dtype.

    Raises:
        ValueError: there is no such layer, it is of another kind, or `init` is none of `HEAD_INITS`.
    """
    if init not in HEAD_INITS:
        raise ValueError(unknown_name("head_init", init, HEAD_INITS))
    try:
        old = network.get_submodule(path)
    except AttributeError:
        old = None
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        sizes: Any = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
        new = nn.Conv2d(old.in_channels, num_classes, **sizes, bias=old.bias is not None)
    else:
        layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        problem = f"is a {type(old).__name__}" if old is not None else "does not exist"
        raise ValueError(
            f"The head must be a Linear or Conv2d layer, but {path!r} {problem}. "
            f"The last such layers are {', '.join(layers[-3:])}."
        )
    fill = HEAD_INITS[init]
    if fill is not None:
        fill(new.weight)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
    new = new.to(old.weight.device, old.weight.dtype)
    network.set_submodule(path, new)


def make_backbone(
    model: str | nn.Module | Backbone,
    weights: str | None,
    head: str | None,
    feature_boundary: str | None,
    transform_input: bool | None,
    preprocess: Mapping[str, Any] | None,
    in_channels: int = RGB,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return a Backbone for whatever names or is a network; the arguments are those of `FineTuner`.

    Raises:
        ValueError: a name or a field is unknown, or the head of a network of your own is not given.
        FileNotFoundError: weights that are not there and cannot be downloaded.
    """
    require_channels(in_channels)
    if options and not isinstance(model, str):
        raise ValueError("model_options are for a model that is built by name.")
    if isinstance(model, Backbone):
        backbone = model
        if in_channels not in (RGB, model.preprocess.channels):
            raise ValueError(
                f"The Backbone was made for images of {model.preprocess.channels} channels, got in_channels={in_channels}: "
                "make it with Backbone.create(..., in_channels=...)."
            )
    elif isinstance(model, str):
        if model == "custom":
            raise ValueError(
                "This checkpoint is of a network of your own; give it: load_from_checkpoint(path, model=network)."
            )
        backbone = Backbone.create(
            model, weights, transform_input, (preprocess or {}).get("size"), in_channels, options
        )
        if head not in (None, backbone.family.head):
            raise ValueError(
                f"head={head!r}: the head of {model} is {backbone.family.head}. To put layers of your own there, give a module."
            )
    elif head is None:
        layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        raise ValueError(
            f"Say which layer of {type(model).__name__} is its head, for example head={layers[-1:] or ['fc']}."
        )
    else:
        backbone = wrap_module(model, head, feature_boundary, in_channels=in_channels)
    return with_preprocess(backbone, preprocess)


def require_channels(in_channels: Any) -> None:
    """Refuse anything but a whole number from 1 on.

    Raises:
        ValueError: it is none.
    """
    if type(in_channels) is not int or in_channels < 1:
        raise ValueError(f"in_channels must be a whole number from 1 on, got {in_channels!r}.")


def wrap_module(
    network: nn.Module,
    head: str,
    feature_boundary: str | None = None,
    name: str = "custom",
    in_channels: int = RGB,
) -> Backbone:
    """Return a network of your own as a Backbone.

    Args:
        network: with its head and its weights.
        head: path of its last Linear or Conv2d layer.
        feature_boundary: path of the first module that is random in training; None is the head.
        name: for messages and files.
        in_channels: of the images. For another number than three, the first convolution of the network takes as many, or
            it takes three and is adapted in place.

    Raises:
        ValueError: the first convolution takes another number of channels.
    """
    family = Family(names=(), head=head, feature_boundary=feature_boundary or head, min_size=1)
    if in_channels != RGB:
        adapt_channels(network, in_channels)
    preprocess = Preprocess().with_channels(in_channels)
    return Backbone(name, network, family, preprocess, "the weights that the module came with")


def with_preprocess(backbone: Backbone, changes: Mapping[str, Any] | None) -> Backbone:
    """Return the same network with some preprocessing fields changed; a vision transformer follows a given size.

    Raises:
        ValueError: a field is unknown, its value is out of range or no multiple of a vision transformer's patches, or mean
            and std are of other channels.
    """
    preprocess, channels = backbone.preprocess.updated(changes), backbone.preprocess.channels
    if preprocess.channels != channels:
        raise ValueError(
            f"preprocess.mean has {preprocess.channels} numbers, and {backbone.name} takes images of {channels} channels: "
            f"give one number or {channels}, or in_channels={preprocess.channels}."
        )
    source = backbone.weights_source
    if (changes or {}).get("size") is not None:
        source += resize_positions(backbone.network, preprocess.size, backbone.name)
    return replace(backbone, preprocess=preprocess, weights_source=source)
