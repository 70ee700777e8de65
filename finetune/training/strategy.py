"""Describe how a pretrained network is adapted: plain data, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

from finetune.io.paths import CONF
from finetune.runtime.suggestions import unknown_name

FROZEN_NORMS = ("eval", "train")
DECAYS = ("all", "weights")
CACHE_MODES = ("auto", "never")
CACHE_DTYPES = ("float32", "float16")

LAYER_DECAY_SLICES = 12


@dataclass
class ParamGroup:
    """Describe parameters that train alike; give either `match` or `depth`."""

    match: str | None = None
    """Regular expression, anchored at the start of a parameter's name, or `@head`, `@norm`, `@bias`."""
    depth: tuple[float, float] | None = None
    """Share of the trunk's layers in the order of registration, [from, to) in 0..1; 1 is next to the head."""
    lr: float = 1.0
    """Multiplier of the optimizer's rate; 0 counts as frozen, though gradients flow."""
    start: float | None = 0
    """First epoch in which it is trained; between 0 and 1 a share of the run; None is never."""
    warmup: float = 0
    """Epochs of linear warm-up from `start`."""
    weight_decay: float | None = None
    """Of these parameters; None is the optimizer's."""
    name: str = ""
    """Name in the table of groups, in the optimizer and of the logged rate."""
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
        numbers = {
            "lr": self.lr,
            "warmup": self.warmup,
            "start": self.start or 0,
            "weight_decay": self.weight_decay or 0,
        }
        for key, low in numbers.items():
            if not low >= 0 or math.isinf(low):
                raise ValueError(f"strategy group {self.label}: {key} must be 0 or more, got {low}.")
        self.name = self.name or self.label

    @property
    def label(self) -> str:
        """Return the matcher as text."""
        return self.match if self.match is not None else f"depth {self.depth[0]:g}-{self.depth[1]:g}"  # type: ignore[index]

    def first_epoch(self, max_epochs: int | None) -> int | None:
        """Return the epoch, from 0, in which training of the group starts in a run of `max_epochs`; None is never.

        Raises:
            ValueError: `start` is a share of a run that has no end.
        """
        if self.start is None or self.start == 0 or self.start >= 1:
            return None if self.start is None else int(self.start)
        if max_epochs is None:
            raise ValueError(f"strategy group {self.name}: start={self.start} is a share of the run, which has no end.")
        return max(1, round(self.start * max_epochs))


@dataclass
class Strategy:
    """Describe how a pretrained network is adapted. Plain data: it lives in YAML files and checkpoints.

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
    """One of `FROZEN_NORMS`: running statistics of frozen BatchNorm stay (`eval`) or follow the new data (`train`)."""
    layer_decay: float | None = None
    """Expands into depth groups below the head, each slower by this factor than the one above."""
    decay: str = "all"
    """One of `DECAYS`: which parameters the optimizer's weight decay is for; `weights` spares biases and norms, the usual
    choice with AdamW."""
    cache: str = "auto"
    """One of `CACHE_MODES`: features of a frozen trunk are computed once wherever that gives the same result, or never."""
    views: int = 1
    """How many augmented versions of each image are kept; epoch e trains on version e mod views. 1 is the evaluation crop.
    Where features are not kept, every epoch has a version of its own."""
    cache_dtype: str = "float32"
    """One of `CACHE_DTYPES`: how features of training images are kept; `float16` takes half the space."""
    solve_head: bool = False
    """Whether the head begins as the optimum on the features of the training images, in place of random values. Nothing is
    trained in the first epoch, which validates that head; other groups start in the second at the earliest."""
    name: str = "custom"

    def __post_init__(self) -> None:
        for key, choices in (
            ("frozen_norm", FROZEN_NORMS),
            ("decay", DECAYS),
            ("cache", CACHE_MODES),
            ("cache_dtype", CACHE_DTYPES),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(unknown_name(f"strategy.{key}", str(getattr(self, key)), choices))
        if self.views < 1:
            raise ValueError(f"strategy.views must be 1 or more, got {self.views}.")
        self.groups = [g if isinstance(g, ParamGroup) else _load_group(g) for g in self.groups]
        if self.layer_decay is not None:
            if not 0 < self.layer_decay <= 1:
                raise ValueError(f"strategy.layer_decay must be above 0 and at most 1, got {self.layer_decay}.")
            if self.groups:
                raise ValueError("strategy.layer_decay makes the groups; leave strategy.groups empty.")
        elif not self.solve_head and not any(g.start == 0 and g.lr > 0 for g in self.groups):
            raise ValueError("The strategy has no group that is trained from epoch 0 (start: 0 and lr above 0).")

    @classmethod
    def load(cls, strategy: str | Mapping[str, Any] | Strategy) -> Strategy:
        """Return a strategy by its name in `conf/strategy/`, or from a mapping of its fields.

        Raises:
            ValueError: unknown name or field, or a value of the wrong kind.
        """
        if isinstance(strategy, Strategy):
            return strategy
        if isinstance(strategy, str):
            return cls.load({"name": strategy, **_read_shipped(strategy)})
        _reject_unknown_fields(cls, "strategy", strategy)
        try:
            return cls(**strategy)
        except (TypeError, IndexError) as error:  # a word where a number belongs
            raise ValueError(f"strategy {strategy.get('name', '')}: a value is of the wrong kind ({error}).") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `load` takes them."""
        plain = asdict(self)
        for group in plain["groups"]:
            group["depth"] = list(group["depth"]) if group["depth"] else None
        return plain

    def expanded(self, slices: int = LAYER_DECAY_SLICES) -> list[ParamGroup]:
        """Return the groups, with `layer_decay` written out over at most `slices` slices of the trunk."""
        if self.layer_decay is None:
            return self.groups
        n = max(1, min(slices, LAYER_DECAY_SLICES))
        bounds = [i / n for i in range(n + 1)]
        trunk = [
            ParamGroup(depth=(bounds[i], bounds[i + 1]), lr=self.layer_decay ** (n - i), name=f"trunk {i + 1}/{n}")
            for i in reversed(range(n))
        ]
        return [ParamGroup(match="@head", name="head"), *trunk]


def strategy_names() -> list[str]:
    """Return the names of the strategies in `conf/strategy/`, sorted."""
    return sorted(path.stem for path in (CONF / "strategy").glob("[!_]*.yaml"))


def _read_shipped(name: str) -> dict[str, Any]:
    """Read `conf/strategy/<name>.yaml` without Hydra: `_base.yaml` holds the values that are the fields' defaults."""
    if name not in (known := strategy_names()):
        raise ValueError(unknown_name("strategy", name, known))
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "strategy" / f"{name}.yaml"))
    values.pop("defaults", None)
    return dict(values)


def _reject_unknown_fields(cls: type, kind: str, values: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(unknown_name(f"{kind} field", str(key), known))


def _load_group(values: Mapping[str, Any]) -> ParamGroup:
    _reject_unknown_fields(ParamGroup, "group", values)
    return ParamGroup(**values)
