"""Describe how a pretrained network is adapted: plain data, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

from finetune.cli.groups import group_options
from finetune.io.paths import CONF
from finetune.runtime.suggestions import unknown_name

LAYER_DECAY_SLICES = 12


@dataclass
class ParamGroup:
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
    >>> mine = Strategy(groups=[ParamGroup("@head", lr=1.0), ParamGroup(".*", lr=0.1, start=2, warmup=1)])
    >>> mine.to_dict()["groups"][1]["start"]
    2
    """

    groups: list[ParamGroup] = field(default_factory=list)
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
            raise ValueError(unknown_name("strategy.frozen_norm", str(self.frozen_norm), ("eval", "train")))
        if self.cache not in ("auto", "never"):
            raise ValueError(unknown_name("strategy.cache", str(self.cache), ("auto", "never")))
        if self.cache_dtype not in ("float32", "float16"):
            raise ValueError(unknown_name("strategy.cache_dtype", str(self.cache_dtype), ("float32", "float16")))
        if self.views < 1:
            raise ValueError(f"strategy.views must be 1 or more, got {self.views}.")
        self.groups = [g if isinstance(g, ParamGroup) else _group(g) for g in self.groups]
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
            if strategy not in (known := group_options("strategy")):
                raise ValueError(unknown_name("strategy", strategy, known))
            loaded = OmegaConf.to_container(OmegaConf.load(CONF / "strategy" / f"{strategy}.yaml"))
            return cls.load({"name": strategy, **loaded})  # type: ignore[dict-item]
        _check_fields(cls, "strategy", strategy)
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

    def expanded(self, slices: int = LAYER_DECAY_SLICES) -> list[ParamGroup]:
        """The groups, with `layer_decay` written out over at most `slices` slices of the trunk."""
        if self.layer_decay is None:
            return self.groups
        n = max(1, min(slices, LAYER_DECAY_SLICES))
        cuts = [i / n for i in range(n + 1)]
        trunk = [
            ParamGroup(depth=(cuts[i], cuts[i + 1]), lr=self.layer_decay ** (n - i), name=f"trunk {i + 1}/{n}")
            for i in reversed(range(n))
        ]
        return [ParamGroup(match="@head", name="head"), *trunk]


def _check_fields(cls: type, what: str, given: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(cls)]
    for key in given:
        if key not in known:
            raise ValueError(unknown_name(f"{what} field", str(key), known))


def _group(given: Mapping[str, Any]) -> ParamGroup:
    _check_fields(ParamGroup, "group", given)
    return ParamGroup(**given)
