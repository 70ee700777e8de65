"""Read the space of a sweep: the overrides that give a range or a list instead of one value, in Hydra's own grammar.

Importing this imports neither torch nor Optuna.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from omegaconf import DictConfig

from finetune.cli.arguments import override_key
from finetune.runtime.mappings import select

MAX_DRAWS = 1000
"""How often a point is drawn again that is there already, before a space counts as exhausted."""


@dataclass(frozen=True)
class Choice:
    """A list of values, spelled as overrides spell them."""

    values: tuple[str, ...]
    numbers: range | None = None
    """The values, where they are a range of whole numbers."""

    @property
    def first(self) -> str:
        """Return the first value."""
        return self.values[0]

    def __str__(self) -> str:
        """Return it as an override gives it."""
        if self.numbers is not None:
            return f"range({self.numbers.start},{self.numbers.stop},{self.numbers.step})"
        return f"choice({','.join(self.values)})"

    def draw(self, generator: random.Random) -> str:
        """Draw a value."""
        return self.values[generator.randrange(len(self.values))]


@dataclass(frozen=True)
class Interval:
    """All numbers between two, both included."""

    low: float
    high: float
    integer: bool = False
    log: bool = False

    @property
    def first(self) -> str:
        """Return the lower end."""
        return self.format(self.low)

    def __str__(self) -> str:
        """Return it as an override gives it."""
        text = f"interval({self.format(self.low)},{self.format(self.high)})"
        return f"tag(log,{text})" if self.log else text

    def draw(self, generator: random.Random) -> str:
        """Draw a number: uniformly, or with a uniform logarithm."""
        # a whole number stands for the half on either side, so that the ends are as likely as the others
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        log = math.log if self.log else float
        drawn = generator.uniform(log(low), log(high))
        value = math.exp(drawn) if self.log else drawn
        return self.format(min(max(round(value) if self.integer else value, self.low), self.high))

    def format(self, value: float) -> str:
        """Return a number as an override spells it; reading it gives the very number again."""
        return str(int(value)) if self.integer else repr(float(value))


Dimension = Choice | Interval


@dataclass(frozen=True)
class Space:
    """What varies in a sweep, and what does not."""

    fixed: tuple[str, ...]
    """Overrides that are those of every point."""
    dimensions: Mapping[str, Dimension]
    """By key, as overrides spell it."""
    left: tuple[str, ...] = ()
    """Keys of the file of the space that the command line has fixed, or that were about what it has replaced."""

    def first(self) -> list[str]:
        """Return the overrides of one point."""
        return self.point({key: dimension.first for key, dimension in self.dimensions.items()})

    def point(self, values: Mapping[str, str]) -> list[str]:
        """Return the overrides of the point with these values."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.dimensions)]

    def draw(self, count: int, seed: int) -> list[dict[str, str]]:
        """Draw different points, fewer where the space has no more; a larger `count` has the same first ones."""
        generator = random.Random(seed)
        drawn: dict[tuple[str, ...], dict[str, str]] = {}
        failures = 0
        while len(drawn) < count and failures < MAX_DRAWS:
            values = {key: dimension.draw(generator) for key, dimension in self.dimensions.items()}
            before = len(drawn)
            drawn.setdefault(tuple(values.values()), values)
            failures = failures + 1 if len(drawn) == before else 0
        return list(drawn.values())


def read_space(config: DictConfig, typed: Sequence[str], loader: Any = None) -> Space:
    """Return the space of a sweep: that of its file `sweep/space=NAME`, and the ranges and lists on the command line.

    A key that the command line names leaves the file's space. If the file chooses the option of a group and the command
    line another one, what the file says of that group's keys leaves as well: it was meant for the file's option.

    Args:
        config: with Hydra's own node, where the file's space is.
        typed: overrides of the command line.
        loader: Hydra's, which knows the names that `glob(*)` stands for.

    Raises:
        ValueError: a range or a list is empty, or a logarithm of what is not positive.
    """
    file = {str(key): str(value) for key, value in (select(config, "hydra.sweeper.params") or {}).items()}
    given = {_plain_key(override_key(word)) for word in typed}
    replaced = {_plain_key(key) for key in file} & given
    left = [key for key in file if any(_plain_key(key) == k or _plain_key(key).startswith(f"{k}.") for k in replaced)]
    words = [f"{key}={value}" for key, value in file.items() if key not in left]
    parser = OverridesParser.create(config_loader=loader)
    overrides = [parser.parse_override(word) for word in [*words, *typed]]
    last = {override.get_key_element(): override for override in overrides}  # of several words for a key, as Hydra does
    fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
    dimensions = {key: read_dimension(override) for key, override in last.items() if override.is_sweep_override()}
    return Space(tuple(fixed), dimensions, tuple(left))


def _plain_key(key: str) -> str:
    """Return a key by which an option and a value are one: `data/augment` is `data.augment`."""
    return key.lstrip("+~").replace("/", ".")


def read_dimension(override: Override) -> Dimension:
    """Return what an override varies.

    Raises:
        ValueError: it is empty, or a logarithm of what is not positive.
    """
    key, text = override.get_key_element(), str(override.input_line)
    if not override.is_discrete_sweep():
        return _read_interval(text, override.value())
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise ValueError(f"{text}: there is no value in it for {key}.")
    sweep = override.value()
    if isinstance(sweep, RangeSweep) and not sweep.shuffle and isinstance(numbers := sweep.range(), range):
        return Choice(values, numbers)
    return Choice(values)


def _read_interval(text: str, sweep: Any) -> Interval:
    assert isinstance(sweep, IntervalSweep)
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    integer, log = isinstance(low, int) and isinstance(high, int), "log" in sweep.tags
    if not low <= high or not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"{text}: an interval is interval(LOW,HIGH), the smaller number first.")
    if log and low <= 0:
        raise ValueError(f"{text}: tag(log, ...) takes numbers above 0; give a LOW of 1e-6, say.")
    return Interval(low, high, integer, log)


def is_glob(word: str) -> bool:
    """Return whether an override takes its values from Hydra's loader: `model=glob(resnet*)`."""
    return OverridesParser.create().parse_override(word).value_type is ValueType.GLOB_CHOICE_SWEEP


def require_dimensions(space: Space, sweep: str) -> None:
    """Refuse a space in which nothing varies: all points would be the same.

    Raises:
        ValueError: it is one.
    """
    if not space.dimensions:
        raise ValueError(
            f"sweep={sweep}: nothing varies. Give a space, sweep/space=head|finetune|backbone, or ranges: "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )


def refuse_ranges(space: Space) -> None:
    """Refuse a space with ranges, of which a grid has no combinations.

    Raises:
        ValueError: there is one.
    """
    ranges = [key for key, dimension in space.dimensions.items() if isinstance(dimension, Interval)]
    if ranges:
        raise ValueError(
            f"sweep=grid runs all combinations of lists, and {', '.join(ranges)} "
            f"{'is a range' if len(ranges) == 1 else 'are ranges'}: give sweep=random or sweep=optuna, or lists: "
            f"{ranges[0]}=choice(A,B,C)."
        )
