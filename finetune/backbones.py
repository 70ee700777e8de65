"""Networks with their weights and their preprocessing, and a new head."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from finetune import download
from finetune.checkpoint import read_tensors
from finetune.config import WEIGHT_FILES, weights_path
from finetune.families import FAMILIES as FAMILIES
from finetune.families import Family as Family
from finetune.families import find_family, unknown
from finetune.families import register as register
from finetune.preprocess import Preprocess

HEAD_INITS: dict[str, Callable[[Tensor], object] | None] = {
    "default": None,  # what the layer's own constructor does
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "zero": nn.init.zeros_,
}


@dataclass
class Backbone:
    """A network, where its weights came from, and the preprocessing that belongs to them.

    `Backbone.create("resnet18")` gives torchvision's network with its ImageNet head; `replace_head` fits it to
    other classes.

    >>> backbone = Backbone.create("resnet18", weights="none")
    >>> backbone.replace_head(num_classes=2)
    >>> backbone.network.fc, backbone.head_names
    (Linear(in_features=512, out_features=2, bias=True), ['fc.weight', 'fc.bias'])
    """

    name: str
    network: nn.Module
    family: Family
    preprocess: Preprocess
    source: str
    """What was loaded, in words."""
    transform_input: bool = False
    head_names: list[str] = field(default_factory=list)
    """Parameter names of what is new: the head and the new part of auxiliary branches."""

    @classmethod
    def create(
        cls,
        name: str,
        weights: str | None = "default",
        transform_input: bool | None = None,
        size: int | None = None,
    ) -> Backbone:
        """Build a network by name.

        Args:
            name: a name of the table, for example "resnet18".
            weights: "default", "none", a name of the model's weights enum ("IMAGENET1K_V2"), or a local file.
            transform_input: overrides the flag of inception and googlenet, which no state dict holds.
            size: pixels that a vision transformer without weights by name is built for; None is its preprocessing's.

        Raises:
            ValueError: unknown name or weights; a file that does not fit.
            FileNotFoundError: no such file, or weights that cannot be downloaded.
        """
        family = find_family(name)
        weights = str(weights or "none")
        path = weights_path(weights)
        if transform_input is None and path:
            transform_input = _own_words(path).get("transform_input")
        transform = family.transform_input and weights != "none" if transform_input is None else transform_input
        if family.build is not None:
            network = family.build()
            source = "as built by its family"
        elif path or weights == "none":
            network = _torchvision_network(
                name, family, None, transform, size or default_preprocess(name, weights).size
            )
            source = "random weights"
        else:
            enum = find_weights(name, weights)
            check_cached_weights(enum)
            network = _download(name, family, enum, transform)
            source = f"{type(enum).__name__}.{enum.name}"
        if path:
            source = load_weights(network, path, family)
        return cls(name, network, family, default_preprocess(name, weights), source, transform)

    def replace_head(self, num_classes: int, init: str = "default") -> None:
        """Put new last layers for `num_classes` in place of the head's and the auxiliary heads'."""
        for path in (self.family.head, *self.family.aux):
            replace_layer(self.network, path, num_classes, init)
        if hasattr(self.network, "num_classes"):
            self.network.num_classes = num_classes  # type: ignore[assignment]
        self.head_names = names_under(self.network, self.family.new)


def names_under(network: nn.Module, paths: tuple[str, ...]) -> list[str]:
    """Names of the parameters of some submodules."""
    return [n for n, _ in network.named_parameters() if any(n.startswith(f"{p}.") for p in paths)]


def replace_layer(network: nn.Module, path: str, num_classes: int, init: str = "default") -> None:
    """Replace the Linear or Conv2d at `path` by a new one with `num_classes` outputs.

    Bias, device and dtype are kept.

    Raises:
        ValueError: there is no such layer, it is of another kind, or `init` is unknown.
    """
    if init not in HEAD_INITS:
        raise ValueError(unknown("head_init", init, HEAD_INITS))
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
        found = f"is a {type(old).__name__}" if old is not None else "does not exist"
        raise ValueError(
            f"The head must be a Linear or Conv2d layer, but {path!r} {found}. "
            f"The last such layers are {', '.join(layers[-3:])}."
        )
    fill = HEAD_INITS[init]
    if fill is not None:
        fill(new.weight)
        if new.bias is not None:
            nn.init.zeros_(new.bias)
    new = new.to(old.weight.device, old.weight.dtype)
    network.set_submodule(path, new)


# --- torchvision -----------------------------------------------------------------------------------------------


def find_weights(name: str, weights: str) -> Any:
    """The entry of a torchvision model's weights enum.

    Raises:
        ValueError: no such entry; names those there are.
    """
    enum = torchvision.models.get_model_weights(name)
    if weights == "default":
        return enum.DEFAULT
    if weights in enum.__members__:
        return enum[weights]
    known = ["default", "none", *enum.__members__]
    raise ValueError(
        unknown(f"model.weights for {name}", weights, known, f"Or give a local file ({' '.join(WEIGHT_FILES)}).")
    )


def default_preprocess(name: str, weights: str | None = "default") -> Preprocess:
    """The preprocessing of a model's weights, without building or downloading anything.

    For a local file (and for none), that of the architecture's default weights; for a checkpoint of ours, its own.
    """
    family = find_family(name)
    if family.build is not None:
        return family.preprocess or Preprocess()
    weights = str(weights or "none")
    path = weights_path(weights)
    if path and isinstance(stored := _own_words(path).get("preprocess"), dict):
        return Preprocess().updated(stored)
    enum = find_weights(name, "default" if path or weights == "none" else weights)
    return Preprocess.from_transforms(enum.transforms())


def _own_words(path: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of its network; nothing for any other file."""
    return _read_own_words(path, path.stat().st_mtime_ns) if path.suffix == ".ckpt" else {}


@lru_cache(8)  # three ask for it while a network is made, and the file may be large
def _read_own_words(path: Path, changed: int) -> dict[str, Any]:
    stored = read_tensors(path).get("hyper_parameters")
    return dict(stored) if isinstance(stored, dict) else {}


def _torchvision_network(
    name: str, family: Family, weights: Any, transform_input: bool, size: int | None = None
) -> nn.Module:
    options: dict[str, Any] = {}
    if family.size_argument and weights is None:
        options[family.size_argument] = size
    if family.aux:
        options = {"aux_logits": True, "transform_input": transform_input}
        if weights is None:
            options["init_weights"] = True
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=weights, **options)
    except AssertionError as error:  # torchvision's answer to a size that is no multiple of the patches'
        raise ValueError(f"{name} cannot be built for images of {size} pixels: {error}") from error
    return network


def _download(name: str, family: Family, weights: Any, transform_input: bool) -> nn.Module:
    begins = re.search(r"-([0-9a-f]{8,})\.", weights.url)
    try:
        if begins is not None:
            download.fetch_file(weights.url, cached_weights(weights), begins[1])
        return _torchvision_network(name, family, weights, transform_input)
    except OSError as error:
        raise FileNotFoundError(
            f"The weights of {name} are not on this machine and could not be downloaded ({error}). Download "
            f"{weights.url} elsewhere and put it at {cached_weights(weights)} (TORCH_HOME moves that folder), or give "
            "model.weights=FILE, or start from random weights with model.weights=none."
        ) from error


def cached_weights(weights: Any) -> Path:
    """Where torchvision keeps the file of a weights enum entry, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(weights.url).path)


def check_cached_weights(weights: Any) -> None:
    """Torch checks a download once; a file that was damaged since would fail for ever, and without its name.

    Raises:
        ValueError: the file is there and is not what its name says.
    """
    path = cached_weights(weights)
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.exists() or expected is None:
        return
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected[1]):
        raise ValueError(
            f"The weights file {path} is damaged (its SHA-256 should begin with {expected[1]}). "
            "Delete it, and it is downloaded again."
        )


# --- local files -----------------------------------------------------------------------------------------------


_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "network.")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")  # torchvision's own old files


def _clean(name: str, known: set[str]) -> str:
    """A parameter's name without what wrappers put before it."""
    while name not in known and (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)):
        name = name[len(prefix) :]
    old = _OLD_DENSENET.match(name)
    return f"{old[1]}{old[2]}" if old else name


def load_weights(network: nn.Module, path: Path, family: Family) -> str:
    """Load a local file into a network's trunk; heads in the file are ignored.

    The file may be a state dict, one under `state_dict` or `model`, one with wrappers' prefixes, or a trunk alone.

    Returns:
        What was loaded, in words.

    Raises:
        ValueError: trunk tensors are missing, have another shape, or belong to another network; names them.
    """
    data: Mapping[str, Any] = read_tensors(path)
    for key in ("state_dict", "model"):
        if isinstance(data.get(key), Mapping):
            data = data[key]
    own = network.state_dict()
    loaded = {_clean(k, set(own)): v for k, v in data.items() if isinstance(v, Tensor)}
    heads = tuple(f"{p}." for p in (*family.new, *family.aux))
    trunk = {k: v for k, v in own.items() if not k.startswith(heads)}
    given = {k: v for k, v in loaded.items() if not k.startswith(heads)}
    # auxiliary branches are often dropped before saving, and old files lack BatchNorm's counters
    optional = tuple(f"{path}." for path in family.aux_roots)
    missing = [k for k in trunk if not (k in given or k.endswith("num_batches_tracked") or k.startswith(optional))]
    shapes = [
        f"{k} is {list(v.shape)}, needs {list(trunk[k].shape)}"
        for k, v in given.items()
        if k in trunk and v.shape != trunk[k].shape
    ]
    foreign = [k for k in given if k not in trunk]
    for problem, names in (("lacks", missing), ("has another shape:", shapes), ("also holds", foreign)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            whose = _own_words(path).get("model")
            raise ValueError(
                f"{path} does not fit {type(network).__name__}: it {problem} {', '.join(names[:3])}{more}. "
                + (
                    f"It is a checkpoint of {whose}: give model={whose}."
                    if whose
                    else "Is it the file of another model?"
                )
            )
    own.update({k: v for k, v in given.items() if k in trunk})
    network.load_state_dict(own)  # by update: `own` has the version in it that torchvision's MNASNet asks for
    ignored = len(loaded) - len(given)
    return f"{len(given)} trunk tensors from {path}" + (f" ({ignored} of its heads ignored)" if ignored else "")


def from_module(network: nn.Module, head: str, tail: str | None = None, name: str = "custom") -> Backbone:
    """A network of your own as a Backbone; `head` is the path of its last Linear or Conv2d layer."""
    family = Family(names=(), head=head, tail=tail or head, min_size=1)
    return Backbone(name, network, family, Preprocess(), "the weights that the module came with")


def with_preprocess(backbone: Backbone, changes: Mapping[str, Any] | None) -> Backbone:
    """The same network with some preprocessing fields changed."""
    return replace(backbone, preprocess=backbone.preprocess.updated(changes))
