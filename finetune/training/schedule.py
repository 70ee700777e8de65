"""Decide which parameters are trainable in which epoch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.runtime.suggestions import unknown_name
from finetune.training.strategy import ParamGroup, Strategy

# The classes whose train mode matters to a frozen part: they keep statistics.
NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass
class Plan:
    """A strategy worked out for one network: every parameter stands in exactly one group."""

    strategy: Strategy
    groups: list[ParamGroup]
    members: list[list[str]]
    """Parameter names, group by group."""
    head: frozenset[str]

    def learns(self, group: ParamGroup, epoch: int, max_epochs: int | None) -> bool:
        """Whether a group's parameters get gradients in an epoch (a rate of zero included)."""
        first = group.first_epoch(max_epochs)
        return first is not None and epoch >= first

    def ramp(self, group: ParamGroup, epoch: float, max_epochs: int | None) -> float:
        """The factor in 0..1 of a group's rate at a point of time in epochs: 0 before its start, then warm-up."""
        first = group.first_epoch(max_epochs)
        if first is None or epoch < first:
            return 0.0
        return 1.0 if group.warmup <= 0 else min(1.0, (epoch - first) / group.warmup)


def assign(strategy: Strategy, network: nn.Module, head: Sequence[str]) -> Plan:
    """Give every parameter of a network to the first group that matches it.

    Args:
        head: names of the parameters that `@head` stands for.

    Raises:
        ValueError: a group matches nothing, or a parameter is claimed by no group; names it.
    """
    names = [n for n, _ in network.named_parameters()]
    depths = _depths(network, names, set(head))
    groups = strategy.expanded(slices=len(set(depths.values())))
    special = {
        "@head": set(head),
        "@bias": {n for n in names if n.endswith("bias")},
        "@norm": _norm_names(network),
    }
    members: list[list[str]] = [[] for _ in groups]
    for name in names:
        for group, claimed in zip(groups, members, strict=True):
            if _matches(group, name, special, depths):
                claimed.append(name)
                break
        else:
            raise ValueError(
                f"No group of strategy {strategy.name!r} claims the parameter {name}. "
                'End the list with {match: ".*", start: null} to freeze the rest.'
            )
    for group, claimed in zip(groups, members, strict=True):
        if not claimed and not group.optional:
            raise ValueError(_no_match(strategy, group, names))
    kept = [i for i, claimed in enumerate(members) if claimed]
    return Plan(strategy, [groups[i] for i in kept], [members[i] for i in kept], frozenset(head))


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


def _depths(network: nn.Module, names: list[str], head: set[str]) -> dict[str, float]:
    """Where each trunk parameter's layer stands among the trunk's layers, in 0..1."""
    layers = list(dict.fromkeys(n.rpartition(".")[0] for n in names if n not in head))
    place = {layer: (i + 0.5) / len(layers) for i, layer in enumerate(layers)}
    return {n: place[n.rpartition(".")[0]] for n in names if n not in head}


def _norm_names(network: nn.Module) -> set[str]:
    return {
        f"{path}.{n}" if path else n
        for path, module in network.named_modules()
        if isinstance(module, NORM_MODULES)
        for n, _ in module.named_parameters(recurse=False)
    }


def param_groups(plan: Plan, network: nn.Module) -> list[dict[str, Any]]:
    """Groups as torch optimizers take them; `lr` is set by the caller, who knows the base rate."""
    parameters = dict(network.named_parameters())
    return [
        {"params": [parameters[n] for n in names], "name": group.name}
        for group, names in zip(plan.groups, plan.members, strict=True)
    ]


def set_requires_grad(
    plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, off: Sequence[str] = ()
) -> bool:
    """Set `requires_grad` of every parameter for an epoch. Depends on the epoch alone, so a resumed run needs no state.

    Args:
        off: names of parameters that get no gradient whatever the plan says (auxiliary heads without a loss).

    Returns:
        Whether anything changed.
    """
    parameters = dict(network.named_parameters())
    changed = False
    for group, names in zip(plan.groups, plan.members, strict=True):
        learns = plan.learns(group, epoch, max_epochs)
        for name in names:
            wanted = learns and name not in off
            changed |= parameters[name].requires_grad != wanted
            parameters[name].requires_grad_(wanted)
            if not wanted:
                parameters[name].grad = None  # a stale gradient would keep moving it
    return changed


def names_before(network: nn.Module, tail: str) -> set[str]:
    """Names of the parameters of the modules registered before `tail`."""
    names: set[str] = set()
    for path, module in network.named_modules():
        if path == tail:
            return names
        names |= {f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)}
    raise ValueError(f"The network has no module {tail!r} to be its tail.")


def trainable_names(plan: Plan, epoch: int, max_epochs: int | None) -> set[str]:
    """Names of the parameters that an epoch changes: they have a gradient and a rate above zero."""
    return {
        name
        for group, names in zip(plan.groups, plan.members, strict=True)
        if plan.learns(group, epoch, max_epochs) and group.lr > 0
        for name in names
    }


def end_of(max_epochs: int | None) -> int:
    """The epoch after the last; a run without an end (None or -1) has a very late one."""
    return max_epochs if max_epochs is not None and max_epochs >= 0 else sys.maxsize


def first_unfreeze_epoch(plan: Plan, network: nn.Module, max_epochs: int | None, path: str) -> int | None:
    """The first epoch that changes anything before a module, heads apart; None is never.

    Until then, what enters the module is a constant.
    """
    before = names_before(network, path) - plan.head
    firsts = [
        group.first_epoch(max_epochs)
        for group, names in zip(plan.groups, plan.members, strict=True)
        if group.lr > 0 and not before.isdisjoint(names)
    ]
    return min((first for first in firsts if first is not None), default=None)


def trunk_is_trainable(plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, tail: str) -> bool:
    """Whether an epoch changes anything before the tail."""
    first = first_unfreeze_epoch(plan, network, max_epochs, tail)
    return first is not None and epoch >= first


def set_modes(plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, tail: str) -> None:
    """Train mode for what learns, eval mode for what is frozen, BatchNorm statistics and Dropout included.

    A module is frozen if it has parameters and none of them changes in this epoch. One without parameters is what its
    nearest ancestor with parameters is; it is always active from the tail on, and off before it while nothing there
    learns.
    """
    changing = trainable_names(plan, epoch, max_epochs)
    constant = not trunk_is_trainable(plan, network, epoch, max_epochs, tail)
    active: dict[str, bool] = {"": bool(changing)}
    reached_tail = False
    for path, module in network.named_modules():
        reached_tail |= path == tail
        owned = [f"{path}.{n}" if path else n for n, _ in module.named_parameters()]
        if owned:
            active[path] = any(n in changing for n in owned)
        else:
            active[path] = reached_tail or (active[path.rpartition(".")[0]] and not constant)
        keeps_statistics = plan.strategy.frozen_norm == "train" and isinstance(module, NORM_MODULES)
        module.training = active[path] or keeps_statistics


def table(
    plan: Plan, network: nn.Module, base_lr: float, max_epochs: int | None, off: Sequence[str] = ()
) -> list[list[str]]:
    """Rows of group, tensors, parameters, rate, start, for printing and for the report."""
    sizes = {n: p.numel() for n, p in network.named_parameters()}
    rows = []
    for group, names in zip(plan.groups, plan.members, strict=True):
        first = group.first_epoch(max_epochs)
        start = "never" if first is None else f"epoch {first}" + (f", warm-up {group.warmup:g}" if group.warmup else "")
        if group.lr == 0 and first is not None:
            start = "never (rate 0)"
        rate = "-" if first is None else f"{base_lr * group.lr:.3g}"
        learning = [n for n in names if n not in off]
        rows.append([group.name, str(len(learning)), f"{sum(sizes[n] for n in learning):,}", rate, start])
    if off:
        idle = [n for n in off if n in sizes]
        rows.append(
            [
                "auxiliary heads",
                str(len(idle)),
                f"{sum(sizes[n] for n in idle):,}",
                "-",
                "off: nothing before them learns",
            ]
        )
    return rows
