"""See to it that subclasses which override a hook call the one that they override."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

REQUIRED = (
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_validation_start",
    "on_validation_end", "on_validation_epoch_end", "on_test_epoch_end", "on_load_checkpoint", "on_save_checkpoint",
    "optimizer_step",
)  # fmt: skip
"""Hooks that Lightning leaves empty, or nearly so, and that a FineTuner needs: without them it would freeze nothing, reset
nothing, or step at other rates."""

_CALLS = "_hook_calls"


def require_super(cls: Any) -> None:
    """Make the hooks of a class required: those of its subclasses fail where they do not call them."""
    for name in REQUIRED:
        setattr(cls, name, _counting(name, vars(cls)[name]))

    def guard_subclass(subclass: type, **options: Any) -> None:
        super(cls, subclass).__init_subclass__(**options)
        for name in REQUIRED:
            if name in vars(subclass):
                setattr(subclass, name, _calling_super(name, vars(subclass)[name]))

    cls.__init_subclass__ = classmethod(guard_subclass)


def _counting(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls = self.__dict__.setdefault(_CALLS, {})
        calls[name] = calls.get(name, 0) + 1
        return hook(self, *args, **kwargs)

    return call


def _calling_super(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.__dict__.get(_CALLS, {}).get(name, 0)
        result = hook(self, *args, **kwargs)
        if self.__dict__.get(_CALLS, {}).get(name, 0) == before:
            raise ValueError(
                f"{name} of {type(self).__name__} overrides FineTuner's, which it needs: call super().{name}(...) in it."
            )
        return result

    return call
