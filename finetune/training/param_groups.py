"""Assign every parameter of a network to one group of a strategy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from finetune.runtime.suggestions import unknown_name
from finetune.training.strategy import ParamGroup, Strategy

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Return whether `@norm` stands for a module, and `frozen_norm` is about its statistics.

    Norms of other libraries are known by their class's name and by what they hold: one number for each channel.
    """
    if isinstance(module, _NORMS):
        return True
    own = [p.ndim for p in module.parameters(recurse=False)]
    return "norm" in type(module).__name__.lower() and bool(own) and set(own) == {1}


class AssignedGroup(NamedTuple):
    """A group of a strategy with the parameters that it claims."""

    group: ParamGroup
    names: list[str]


def assign_parameters(strategy: Strategy, network: nn.Module, head: Sequence[str]) -> list[AssignedGroup]:
    """Give every parameter of a network to the first group that matches it.

    Args:
        strategy: its groups, in order.
        network: whose parameters are assigned.
        head: names of the parameters that `@head` stands for.

    Returns:
        The groups that claim at least one parameter.

    Raises:
        ValueError: a group matches nothing, or no group claims a parameter; names it.
    """
    names = [n for n, _ in network.named_parameters()]
    depths = _depths(names, set(head))
    groups = strategy.expanded(slices=len(set(depths.values())))
    special = {
        "@head": set(head),
        "@bias": {n for n in names if n.endswith("bias")},
        "@norm": _norm_names(network),
    }
    assigned = [AssignedGroup(group, []) for group in groups]
    for name in names:
        first = next((g for g in assigned if _matches(g.group, name, special, depths)), None)
        if first is None:
            raise ValueError(
                f"No group of strategy {strategy.name!r} claims the parameter {name}. "
                'End the list with {match: ".*", start: null} to freeze the rest.'
            )
        first.names.append(name)
    for group, claimed in assigned:
        if not claimed and not group.optional:
            raise ValueError(_no_match(strategy, group, names))
    assigned = [g for g in assigned if g.names]
    if strategy.decay == "weights":
        return [part for g in assigned for part in _without_decay(g, special["@bias"] | special["@norm"])]
    return assigned


def _without_decay(assigned: AssignedGroup, spared: set[str]) -> list[AssignedGroup]:
    """Return a group in two parts: what is decayed, and biases and norms, which are not."""
    group, names = assigned
    parts = [
        AssignedGroup(group, [n for n in names if n not in spared]),
        AssignedGroup(
            replace(group, name=f"{group.name} no decay", weight_decay=0.0), [n for n in names if n in spared]
        ),
    ]
    return [part for part in parts if part.names]


def group_names(optimizer: Any) -> list[str]:
    """Return the name of each group of an optimizer, its number where it has none."""
    return [str(options.get("name", i)) for i, options in enumerate(optimizer.param_groups)]


def names_before(network: nn.Module, path: str) -> set[str]:
    """Return the names of the parameters of the modules registered before the module at `path`.

    Raises:
        ValueError: there is no such module.
    """
    names: set[str] = set()
    for own_path, module in network.named_modules():
        if own_path == path:
            return names
        names |= {f"{own_path}.{n}" if own_path else n for n, _ in module.named_parameters(recurse=False)}
    raise ValueError(f"The network has no module {path!r} to be its feature boundary.")


def _matches(group: ParamGroup, name: str, special: Mapping[str, set[str]], depths: Mapping[str, float]) -> bool:
    if group.depth is not None:
        return name in depths and group.depth[0] <= depths[name] < group.depth[1]
    pattern = group.match or ""
    if pattern.startswith("@"):
        if pattern not in special:
            raise ValueError(unknown_name("strategy matcher", pattern, special))
        return name in special[pattern]
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"strategy match {pattern!r} is not a regular expression: {error}.") from error


def _no_match(strategy: Strategy, group: ParamGroup, names: list[str]) -> str:
    examples = [names[0], names[len(names) // 2], names[-1]]
    return (
        f"The group {group.label!r} of strategy {strategy.name!r} matches no parameter (or groups before it "
        f"claimed all it matches). Real names are, for example, {', '.join(examples)}."
    )


def _depths(names: list[str], head: set[str]) -> dict[str, float]:
    """Return where each trunk parameter's layer stands among the trunk's layers, in 0..1."""
    layers = list(dict.fromkeys(n.rpartition(".")[0] for n in names if n not in head))
    place = {layer: (i + 0.5) / len(layers) for i, layer in enumerate(layers)}
    return {n: place[n.rpartition(".")[0]] for n in names if n not in head}


def _norm_names(network: nn.Module) -> set[str]:
    return {
        f"{path}.{n}" if path else n
        for path, module in network.named_modules()
        if is_norm(module)
        for n, _ in module.named_parameters(recurse=False)
    }
