"""Which parameters learn, how fast and from which epoch: an ordered list of groups, the first match wins."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from finetune.config import CONF, options
from finetune.families import unknown

LAYER_DECAY_SLICES = 12
# The classes whose train mode matters to a frozen part: they keep statistics.
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass
class Group:
    """Parameters that learn alike. Give either `match` or `depth`."""

    match: str | None = None
    """Regular expression, anchored at the start of a parameter's name, or `@head`, `@norm`, `@bias`."""
    depth: tuple[float, float] | None = None
    """Share of the trunk's layers in the order of registration, [from, to) in 0..1; 1 is next to the head."""
    lr: float = 1.0
    """Multiplier of the optimizer's rate; 0 counts as frozen, though gradients flow."""
    start: float | None = 0
    """First epoch in which it learns; between 0 and 1 a share of the run; None is never."""
    warmup: float = 0
    """Epochs of linear warm-up from `start`."""
    name: str = ""
    """For the table, the optimizer's group and the logged rate."""
    optional: bool = False
    """Whether it may match nothing."""

    def __post_init__(self) -> None:
        if (self.match is None) == (self.depth is None):
            raise ValueError(
                f"A strategy group takes either match or depth, got match={self.match} depth={self.depth}."
            )
        if self.depth is not None:
            self.depth = (float(self.depth[0]), float(self.depth[1]))
            if not 0 <= self.depth[0] < self.depth[1] <= 1:
                raise ValueError(f"strategy depth needs 0 <= from < to <= 1, got {list(self.depth)}.")
        for key, low in (("lr", self.lr), ("warmup", self.warmup), ("start", self.start or 0)):
            if not low >= 0 or math.isinf(low):
                raise ValueError(f"strategy group {self.label}: {key} must be 0 or more, got {low}.")
        self.name = self.name or self.label

    @property
    def label(self) -> str:
        """What the group matches, in words."""
        return self.match if self.match is not None else f"depth {self.depth[0]:g}-{self.depth[1]:g}"  # type: ignore[index]

    def first_epoch(self, max_epochs: int | None) -> int | None:
        """The epoch from which it learns in a run of `max_epochs`."""
        if self.start is None or self.start == 0 or self.start >= 1:
            return None if self.start is None else int(self.start)
        if not max_epochs or max_epochs < 0:
            raise ValueError(f"strategy group {self.name}: start={self.start} is a share of the run, which has no end.")
        return max(1, round(self.start * max_epochs))


@dataclass
class Strategy:
    """How a pretrained network is adapted. Plain data: it lives in YAML files and checkpoints.

    >>> Strategy.load("differential").groups[-1].lr
    0.1
    >>> mine = Strategy(groups=[Group("@head", lr=1.0), Group(".*", lr=0.1, start=2, warmup=1)])
    >>> mine.to_dict()["groups"][1]["start"]
    2
    """

    groups: list[Group] = field(default_factory=list)
    pretrained: bool = True
    """False: weights are ignored and everything starts at random."""
    frozen_norm: str = "eval"
    """Running statistics of frozen BatchNorm: `eval` (they stay) or `train` (they follow the new data)."""
    layer_decay: float | None = None
    """Expands into depth groups below the head, each slower by this factor than the one above."""
    cache: str = "auto"
    """Features of a frozen trunk: `auto` (computed once wherever that gives the same result) or `never`."""
    views: int = 1
    """How many augmented versions of each image are kept; epoch e trains on version e mod views. 1 is the evaluation crop.
    Where features are not kept, every epoch has a version of its own."""
    cache_dtype: str = "float32"
    """How features are kept: `float32`, or `float16` in half the space."""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.frozen_norm not in ("eval", "train"):
            raise ValueError(unknown("strategy.frozen_norm", str(self.frozen_norm), ("eval", "train")))
        if self.cache not in ("auto", "never"):
            raise ValueError(unknown("strategy.cache", str(self.cache), ("auto", "never")))
        if self.cache_dtype not in ("float32", "float16"):
            raise ValueError(unknown("strategy.cache_dtype", str(self.cache_dtype), ("float32", "float16")))
        if self.views < 1:
            raise ValueError(f"strategy.views must be 1 or more, got {self.views}.")
        self.groups = [g if isinstance(g, Group) else _group(g) for g in self.groups]
        if self.layer_decay is not None:
            if not 0 < self.layer_decay <= 1:
                raise ValueError(f"strategy.layer_decay must be above 0 and at most 1, got {self.layer_decay}.")
            if self.groups:
                raise ValueError("strategy.layer_decay makes the groups; leave strategy.groups empty.")
        elif not any(g.start == 0 and g.lr > 0 for g in self.groups):
            raise ValueError("The strategy has no group that learns from epoch 0 (start: 0 and lr above 0).")

    @classmethod
    def load(cls, strategy: str | Mapping[str, Any] | Strategy) -> Strategy:
        """A strategy by its name in `conf/strategy/`, or from a mapping of its fields.

        Raises:
            ValueError: unknown name or field.
        """
        if isinstance(strategy, Strategy):
            return strategy
        if isinstance(strategy, str):
            if strategy not in (known := options("strategy")):
                raise ValueError(unknown("strategy", strategy, known))
            loaded = OmegaConf.to_container(OmegaConf.load(CONF / "strategy" / f"{strategy}.yaml"))
            return cls.load({"name": strategy, **loaded})  # type: ignore[dict-item]
        _check_fields(cls, strategy)
        try:
            return cls(**strategy)
        except (TypeError, IndexError) as error:  # a word where a number belongs
            raise ValueError(f"strategy {strategy.get('name', '')}: a value is of the wrong kind ({error}).") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `load` takes them."""
        plain = asdict(self)
        for group in plain["groups"]:
            group["depth"] = list(group["depth"]) if group["depth"] else None
        return plain

    def expanded(self, slices: int = LAYER_DECAY_SLICES) -> list[Group]:
        """The groups, with `layer_decay` written out over at most `slices` slices of the trunk."""
        if self.layer_decay is None:
            return self.groups
        n = max(1, min(slices, LAYER_DECAY_SLICES))
        cuts = [i / n for i in range(n + 1)]
        trunk = [
            Group(depth=(cuts[i], cuts[i + 1]), lr=self.layer_decay ** (n - i), name=f"trunk {i + 1}/{n}")
            for i in reversed(range(n))
        ]
        return [Group(match="@head", name="head"), *trunk]


def _check_fields(cls: type, given: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            raise ValueError(unknown(f"{cls.__name__.lower()} field", str(key), known))


def _group(given: Mapping[str, Any]) -> Group:
    _check_fields(Group, given)
    return Group(**given)


@dataclass
class Plan:
    """A strategy worked out for one network: every parameter stands in exactly one group."""

    strategy: Strategy
    groups: list[Group]
    members: list[list[str]]
    """Parameter names, group by group."""
    head: frozenset[str]

    def learns(self, group: Group, epoch: int, max_epochs: int | None) -> bool:
        """Whether a group's parameters get gradients in an epoch (a rate of zero included)."""
        first = group.first_epoch(max_epochs)
        return first is not None and epoch >= first

    def ramp(self, group: Group, epoch: float, max_epochs: int | None) -> float:
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


def _matches(group: Group, name: str, special: Mapping[str, set[str]], depths: Mapping[str, float]) -> bool:
    if group.depth is not None:
        return name in depths and group.depth[0] <= depths[name] < group.depth[1]
    pattern = group.match or ""
    if pattern.startswith("@"):
        if pattern not in special:
            raise ValueError(unknown("strategy matcher", pattern, special))
        return name in special[pattern]
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"strategy match {pattern!r} is not a regular expression: {error}.") from error


def _no_match(strategy: Strategy, group: Group, names: list[str]) -> str:
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
        if isinstance(module, NORMS)
        for n, _ in module.named_parameters(recurse=False)
    }


def param_groups(plan: Plan, network: nn.Module) -> list[dict[str, Any]]:
    """Groups as torch optimizers take them; `lr` is set by the caller, who knows the base rate."""
    parameters = dict(network.named_parameters())
    return [
        {"params": [parameters[n] for n in names], "name": group.name}
        for group, names in zip(plan.groups, plan.members, strict=True)
    ]


def apply(plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, off: Sequence[str] = ()) -> bool:
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


def moving(plan: Plan, epoch: int, max_epochs: int | None) -> set[str]:
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


def first_move(plan: Plan, network: nn.Module, max_epochs: int | None, path: str) -> int | None:
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


def trunk_moves(plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, tail: str) -> bool:
    """Whether an epoch changes anything before the tail."""
    first = first_move(plan, network, max_epochs, tail)
    return first is not None and epoch >= first


def set_modes(plan: Plan, network: nn.Module, epoch: int, max_epochs: int | None, tail: str) -> None:
    """Train mode for what learns, eval mode for what is frozen, BatchNorm statistics and Dropout included.

    A module is frozen if it has parameters and none of them changes in this epoch. One without parameters is what its
    nearest ancestor with parameters is; it is always active from the tail on, and off before it while nothing there
    learns.
    """
    changing = moving(plan, epoch, max_epochs)
    constant = not trunk_moves(plan, network, epoch, max_epochs, tail)
    active: dict[str, bool] = {"": bool(changing)}
    reached_tail = False
    for path, module in network.named_modules():
        reached_tail |= path == tail
        owned = [f"{path}.{n}" if path else n for n, _ in module.named_parameters()]
        if owned:
            active[path] = any(n in changing for n in owned)
        else:
            active[path] = reached_tail or (active[path.rpartition(".")[0]] and not constant)
        keeps_statistics = plan.strategy.frozen_norm == "train" and isinstance(module, NORMS)
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


def count(network: nn.Module, names: set[str] | None = None) -> int:
    """Number of parameters, of all or of some names."""
    return sum(p.numel() for n, p in network.named_parameters() if names is None or n in names)
