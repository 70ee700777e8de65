"""Describe the layers of a head as plain data, and build them again, so that a checkpoint needs no code of its user."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

LAYERS: dict[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (
        nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Conv2d, nn.Dropout, nn.Dropout2d,
        nn.ELU, nn.Flatten, nn.GELU, nn.GroupNorm, nn.Hardswish, nn.Identity, nn.LayerNorm, nn.LeakyReLU, nn.Linear,
        nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.SiLU, nn.Tanh,
    )
}  # fmt: skip
"""Layers that a description may name."""


def describe_layers(module: nn.Module) -> dict[str, Any] | None:
    """Return a head as plain data from which `build_layers` makes the same; None where that is not possible."""
    description = _describe(module)
    if description is None:
        return None
    again = build_layers(description)
    same = repr(again) == repr(module) and {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }
    return description if same else None


def build_layers(description: Mapping[str, Any]) -> nn.Module:
    """Build the layers that a description names, with new weights.

    Raises:
        ValueError: it names others than those of `LAYERS`, or arguments that they do not take.
    """
    kind = description.get("type")
    if kind == "Sequential":
        children = description.get("layers")
        if not isinstance(children, Mapping):
            raise ValueError("the layers of a head make no sense")
        return nn.Sequential(OrderedDict((str(name), build_layers(child)) for name, child in children.items()))
    if not isinstance(kind, str) or kind not in LAYERS:
        raise ValueError(f"a head has the layer {kind!r}; known are {', '.join(sorted(LAYERS))}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in description.get("arguments", {}).items()}
    try:
        return LAYERS[kind](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the layer {kind} of a head cannot be built: {error}") from error


def parse_head(head: Any) -> tuple[str | None, nn.Module | None]:
    """Return the path of a head and the layers to put there, from what `FineTuner` takes as `head`.

    Args:
        head: a path, layers, {"path": ..., "layers": ...} with layers or their description, or None.

    Raises:
        ValueError: it is none of these.
    """
    if head is None or isinstance(head, str):
        return head, None
    if isinstance(head, nn.Module):
        return None, head
    if isinstance(head, Mapping) and {*head} == {"path", "layers"} and isinstance(head["path"], str | None):
        layers = head["layers"]
        if layers is None:
            raise ValueError("The head has layers that a checkpoint cannot describe: give them as head=...")
        return head["path"], layers if isinstance(layers, nn.Module) else build_layers(layers)
    raise ValueError(f'head= takes the path of a layer, a module, or {{"path": ..., "layers": ...}}, got {head!r:.60}.')


def head_record(network: nn.Module, path: str, is_own: bool) -> str | dict[str, Any]:
    """Return what a checkpoint says of a head: its path, and the layers that a user has put there."""
    return {"path": path, "layers": describe_layers(network.get_submodule(path))} if is_own else path


def _describe(module: nn.Module) -> dict[str, Any] | None:
    if type(module) is nn.Sequential:
        layers = {name: _describe(child) for name, child in module.named_children()}
        return None if None in layers.values() else {"type": "Sequential", "layers": layers}
    name = type(module).__name__
    if LAYERS.get(name) is not type(module):
        return None
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(type(module)).parameters.values():
        if parameter.name in ("args", "kwargs", "device", "dtype", "init"):
            continue
        value = getattr(module, parameter.name, parameter.default)
        if parameter.name == "bias":
            value = value is not None
        if isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, bool | int | float | str | list | None):
            return None
        if value != parameter.default:  # an older torch may not know an argument
            arguments[parameter.name] = value
    return {"type": name, "arguments": arguments}


def weighted_layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the Linear and Conv2d layers of a head, in order."""
    yield from (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def require_fitting_head(head: nn.Module, old: nn.Module | None, num_classes: int) -> None:
    """Check that a head takes what the old one took, and has an output for each class.

    Raises:
        ValueError: it does not; says what it takes or gives.
    """
    layers, before = list(weighted_layers(head)), list(weighted_layers(old)) if old is not None else []
    if next(head.parameters(), None) is None:
        raise ValueError(f"The head, a {type(head).__name__}, has no parameters: nothing of it could be trained.")
    if not layers:
        return
    first = next(module for module in head.modules() if not next(module.children(), None))
    if (
        isinstance(first, nn.Linear | nn.Conv2d)
        and before
        and isinstance(first, nn.Linear) != isinstance(before[0], nn.Linear)
    ):
        kind = type(before[0]).__name__
        raise ValueError(
            f"The head begins with a {type(first).__name__}, and the network's own is a {kind}: give such a layer."
        )
    if (given := layers[-1].weight.shape[0]) != num_classes:
        raise ValueError(f"The head has {given} outputs, and there are {num_classes} classes.")
    if (
        before
        and type(before[0]) is type(layers[0])
        and (takes := layers[0].weight.shape[1]) != before[0].weight.shape[1]
    ):
        raise ValueError(f"The head takes {takes} features, and the network gives {before[0].weight.shape[1]}.")
