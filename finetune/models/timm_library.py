"""Build timm's networks; every fact about one is asked of timm."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finetune.images.transforms import INTERPOLATIONS, Preprocess
from finetune.io.paths import WEIGHT_FILES
from finetune.io.tensors import read_tensors
from finetune.models.adaptation import RGB
from finetune.models.packaged_weights import PACKAGE, PACKAGED, in_order
from finetune.models.specs import BuiltNetwork, Family, NetworkRequest
from finetune.models.timm_catalog import cached_file, find_config, import_timm, require_host
from finetune.runtime.suggestions import unknown_name

UNKNOWN_CLASSES = 2
"""Outputs of a head that is replaced at once, where the weights have none."""


class _MisfitError(ValueError):
    """Weights are there, and do not fit the network that was asked for."""


class TimmLibrary:
    """The classification networks of timm, described by their `pretrained_cfg`."""

    factory = "timm.create_model"

    reserved: ClassVar = {
        "num_classes": "there is an output for each class", "pretrained": "give model.weights",
        "pretrained_cfg": "the tag is part of the name, model.name=NAME.TAG, and model.preprocess changes the rest",
        "pretrained_cfg_overlay": "give model.weights or model.preprocess", "checkpoint_path": "give model.weights=FILE",
        "features_only": "a classifier has a head", "aux_logits": "the auxiliary heads of timm's networks are not trained",
    }  # fmt: skip

    def preprocess(self, name: str, weights: str) -> Preprocess:
        """Return the preprocessing that goes with a tag of weights; that of an architecture's first tag without one."""
        cfg = import_timm().data.resolve_data_config(pretrained_cfg=find_config(name).to_dict())
        size = int(cfg["input_size"][-1])
        return Preprocess(
            size=size,
            resize=max(size, math.floor(size / cfg["crop_pct"])),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"] if cfg["interpolation"] in INTERPOLATIONS else "bicubic",
        ).with_channels(RGB)

    def transforms_input(self, name: str) -> bool:
        """Return False: what a network of timm expects is in its preprocessing."""
        return False

    def build(self, request: NetworkRequest) -> BuiltNetwork:
        """Build a network with timm's own loading, which fits position embeddings and first convolution to the images."""
        cfg = find_config(request.name)
        if request.options.get("global_pool", "avg") in ("", None):
            raise ValueError(
                "model.options.global_pool is empty: a classifier needs one value for each feature of an image."
            )
        if request.weights == "none":
            network, source = self._make(request), "random weights"
        elif request.weights == PACKAGE and request.name in PACKAGED:
            packaged = PACKAGED[request.name]
            reference = self._make(NetworkRequest(request.name))
            network, left = self._load(request, in_order(packaged.read(), reference.state_dict()))
            source = f"the package {packaged.distribution}{_note_left(request, network, left)}"
        elif request.weights == "default":
            network, left = self._fetch(request, cfg)
            source = f"timm's {cfg.hf_hub_id or cfg.url or cfg.architecture}{_note_left(request, network, left)}"
        else:
            known = ["default", "none", *([PACKAGE] if request.name in PACKAGED else [])]
            hint = f"Or give a local file ({' '.join(WEIGHT_FILES)}); others are tags of the name, {request.name}.TAG."
            raise ValueError(unknown_name(f"model.weights for {request.name}", request.weights, known, hint))
        size = _built_size(request, cfg)
        if request.weights != "none" and size not in (None, cfg.input_size[-1]):
            source += f", fitted to {size} pixels"
        if request.weights != "none" and cfg.crop_mode != "center":
            source += f", cropped by the centre here (by timm: {cfg.crop_mode})"
        if request.size not in (None, cfg.input_size[-1]):
            _require_size(request, network)
        return BuiltNetwork(network, _describe(request.name, network, cfg, size), source)

    def arguments(self, request: NetworkRequest, network: nn.Module) -> dict[str, Any]:
        """Return the arguments of `create_model` that a request stands for."""
        cfg, arguments = find_config(request.name), dict(request.options)
        if request.in_channels != cfg.input_size[0]:
            arguments["in_chans"] = request.in_channels
        size = _built_size(request, cfg)
        if size not in (None, cfg.input_size[-1]):
            arguments["img_size"] = size
        return arguments

    def make(self, name: str, **arguments: Any) -> nn.Module:
        """Build a network with random weights as timm does."""
        network: nn.Module = import_timm().create_model(name, **arguments)
        return network

    def convert(self, request: NetworkRequest, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the tensors of a file as timm's own loading leaves them: renamed, and fitted to size and channels."""
        wanted = self._make(NetworkRequest(request.name, options=request.options)).state_dict()
        heads = _classifiers(find_config(request.name))
        complete = {k: v for k, v in wanted.items() if k.rpartition(".")[0] in heads} | {
            k: v for k, v in state.items() if k.rpartition(".")[0] not in heads
        }
        num_classes = (
            find_config(request.name).num_classes or UNKNOWN_CLASSES
        )  # timm is strict where they agree, if at all
        try:
            network, left = self._load(request, complete, num_classes=num_classes, label_offset=0)
        # the file of another network, which can be anything
        except (RuntimeError, KeyError, ValueError, AttributeError, IndexError):
            return None
        return None if left else dict(network.state_dict())

    def row(self, name: str, counts: bool) -> list[str]:
        """Return the facts of a network; its parameters are counted on torch's meta device."""
        cfg, bare = find_config(name), NetworkRequest(name).bare_name
        parameters = "-"
        if counts:
            # some compute with their weights while they are built
            with suppress(RuntimeError, NotImplementedError), torch.device("meta"):
                network = import_timm().create_model(bare)
                parameters = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M"
        return [parameters, str(cfg.input_size[-1]), "-", ", ".join(_classifiers(cfg)), _weights_state(name, cfg)]

    def _make(self, request: NetworkRequest, **more: Any) -> nn.Module:
        """Build a network; one whose weights have no classifier gets one that is replaced at once."""
        arguments = self.arguments(request, nn.Identity())
        classes = {} if find_config(request.name).num_classes else {"num_classes": UNKNOWN_CLASSES}
        try:
            network = self.make(request.bare_name, **arguments, **classes, **more)
        except (TypeError, AssertionError) as error:
            what = _as_options(arguments)
            raise ValueError(f"{request.name} cannot be built with {what}: {_first_line(error)}.") from error
        network.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
        return network

    def _load(
        self, request: NetworkRequest, state: Mapping[str, Tensor] | None = None, **facts: Any
    ) -> tuple[nn.Module, list[str]]:
        """Build a network with weights, by timm's own loading.

        Args:
            request: what is built.
            state: tensors in timm's naming; None for those that timm fetches.
            facts: of the state, in place of those of timm's configuration.

        Returns:
            The network, and the names of the tensors outside the heads that the weights do not have.

        Raises:
            ValueError: the weights do not fit.
        """
        overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state), **facts}}
        with _missing_keys() as missing:
            try:
                network = self._make(request, pretrained=True, **overlay)
            except RuntimeError as error:
                if "state_dict" not in str(error):
                    raise
                what, reason = _as_options(request.options), " ".join(str(error).split())
                raise _MisfitError(f"The weights of {request.name} do not fit it with {what}: {reason:.300}") from error
        heads = _heads(network, find_config(request.name))
        return network, [k for k in missing if k.rpartition(".")[0] not in heads and "num_batches" not in k]

    def _fetch(self, request: NetworkRequest, cfg: Any) -> tuple[nn.Module, list[str]]:
        if not cfg.has_weights:
            raise ValueError(
                f"timm has no weights for {request.name}: give model.weights=FILE, or model.weights=none for random ones."
            )
        self._make(request)  # what is wrong with the options is said before anything is fetched
        cached = None if cfg.custom_load else cached_file(cfg)
        if cached is not None:  # timm would ask the hub whether it has changed, and wait where there is no network
            return self._load(request, read_tensors(cached))
        try:
            require_host(cfg)
            return self._load(request)
        except _MisfitError:
            raise
        except (KeyError, IndexError, AttributeError, TypeError) as error:  # of timm's own code, with what was fetched
            raise ValueError(
                f"timm cannot load its weights of {request.name}: {type(error).__name__} {error}."
            ) from error
        # the hub's packages have exceptions of their own, which are no OSError
        except Exception as error:
            raise FileNotFoundError(
                f"The weights of {request.name} ({cfg.hf_hub_id or cfg.url}) are not on this machine and could not be "
                f"downloaded ({_first_line(error)}). Download them elsewhere and give model.weights=FILE (.safetensors or "
                ".pth), or HF_HOME=FOLDER with the cache of that machine, or model.weights=none for random weights."
                + (
                    f" Or model.weights={PACKAGE}: those of {PACKAGED[request.name].distribution}."
                    if request.name in PACKAGED
                    else ""
                )
            ) from error


def _classifiers(cfg: Any) -> tuple[str, ...]:
    found = cfg.classifier or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _built_size(request: NetworkRequest, cfg: Any) -> int | None:
    """Return the image size that a network is built for; None where it takes images of any size."""
    options = request.options
    if not cfg.fixed_input_size or options.get("dynamic_img_size") or options.get("strict_img_size") is False:
        return None
    return request.size or int(cfg.input_size[-1])


def _describe(name: str, network: nn.Module, cfg: Any, size: int | None) -> Family:
    """Return what replacing the head and freezing the trunk need to know of a network.

    Raises:
        ValueError: timm does not say where its classifier is.
    """
    heads = _heads(network, cfg)
    if not heads:
        raise ValueError(f"{name} has no classifier, says timm: it is made for something else.")
    boundary = heads[0] if len(heads) > 1 else _boundary(network, heads[0])
    smallest = cfg.min_input_size[-1] if cfg.min_input_size else 32
    return Family(
        names=(name,), head=heads[0], more_heads=heads[1:], feature_boundary=boundary,
        split_points=_split_points(network, boundary), min_size=size or min(smallest, cfg.input_size[-1]),
        fixed_size=size is not None, size_argument=None if size is None else "img_size",
    )  # fmt: skip


def _heads(network: nn.Module, cfg: Any) -> tuple[str, ...]:
    """Return the paths of the classifiers, with those that follow the ones in timm's configuration (of some distilled ones)."""
    layers = {path: m for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    named = tuple(path for path in _classifiers(cfg) if path in layers)
    if not named:
        return ()
    outputs, paths = layers[named[0]].weight.shape[0], list(layers)
    later = paths[paths.index(named[0]) + 1 :]
    return tuple(dict.fromkeys((*named, *(path for path in later if layers[path].weight.shape[0] == outputs))))


def _boundary(network: nn.Module, head: str) -> str:
    """Return the path of the dropout that stands right before the head, or of the head."""
    parent, _, name = head.rpartition(".")
    names = [n for n, _ in network.get_submodule(parent).named_children()]
    before = names[names.index(name) - 1] if names.index(name) else ""
    path = f"{parent}.{before}" if parent else before
    return path if before and isinstance(network.get_submodule(path), nn.Dropout) else head


def _split_points(network: nn.Module, boundary: str) -> tuple[str, ...]:
    """Return the paths of the stages that timm names, in the order of registration."""
    stages = {str(stage["module"]) for stage in getattr(network, "feature_info", None) or () if "module" in stage}
    paths = [path for path, _ in network.named_modules()]
    return tuple(path for path in paths[: paths.index(boundary)] if path in stages)


def _weights_state(name: str, cfg: Any) -> str:
    packaged = PACKAGED.get(name)
    if packaged is not None and packaged.find() is not None:
        return PACKAGE
    if not cfg.has_weights:
        return "none"
    return "here" if cached_file(cfg) is not None else "to fetch"


def _as_options(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "no options"


def _require_size(request: NetworkRequest, network: nn.Module) -> None:
    """Run a new network on one image of a size that its weights were not made for: only timm knows which it can take.

    Raises:
        ValueError: it cannot.
    """
    assert request.size is not None
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, request.in_channels, request.size, request.size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{request.name} cannot take images of {request.size} pixels: {_first_line(error)}."
        ) from error
    finally:
        network.train()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]:.200}".rstrip(".:")


def _note_left(request: NetworkRequest, network: nn.Module, left: Sequence[str]) -> str:
    """Return a remark on tensors that weights do not have; empty where they have all.

    Raises:
        ValueError: a layer, and not only a norm, would stay random.
    """
    if not left:
        return ""
    state = network.state_dict()
    if layers := [name for name in left if state[name].ndim > 1]:
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        what = _as_options(request.options)
        raise ValueError(
            f"The weights of {request.name} do not fit it with {what}: they lack {', '.join(layers[:3])}{more}."
        )
    return f", without {', '.join(left)} (untrained)"


@contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Collect what timm's loading, which is not always strict, leaves as it was made; it tells that its log alone."""
    missing: list[str] = []
    original, logger = nn.Module.load_state_dict, logging.getLogger("timm")

    def load_state_dict(module: nn.Module, *args: Any, **options: Any) -> Any:
        result = original(module, *args, **options)
        missing.extend(result.missing_keys)
        return result

    level = logger.level
    logger.setLevel(logging.ERROR)
    nn.Module.load_state_dict = load_state_dict  # type: ignore[assignment, method-assign]
    try:
        yield missing
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]
        logger.setLevel(level)
