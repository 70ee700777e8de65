"""Instantiate the classes that a configuration names, from an allow-list of packages."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from finetune.runtime.suggestions import unknown_name


def plain_values(node: Any) -> dict[str, Any]:
    """Return a node of a configuration as a dictionary of plain values; anything else gives an empty one."""
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}
    return dict(values)


ALLOWED = (
    "finetune.", "lightning.pytorch.", "timm.optim.", "torch.nn.", "torch.optim.", "torchmetrics.", "torchvision.datasets.",
    "torchvision.transforms.",
)  # fmt: skip
"""Prefixes of the classes that `_target_` may name; FINETUNE_ALLOW=package adds one."""


def factory(spec: Mapping[str, Any] | DictConfig, base: type | tuple[type, ...]) -> partial[Any]:
    """Return the class that `_target_` names, as a partial with its arguments: the one place where a configuration names code.

    Only classes under the allowed prefixes are taken, and only subclasses of `base`; the class itself is checked, not its
    name. Arguments are plain values; nested `_target_`s are not followed.

    Raises:
        ValueError: the target is not allowed, does not exist, or is of another kind.
    """
    values: Any = OmegaConf.to_container(spec, resolve=True) if isinstance(spec, DictConfig) else dict(spec)
    target = values.pop("_target_", None)
    bases = base if isinstance(base, tuple) else (base,)
    wanted = " or ".join(b.__name__ for b in bases)
    if not isinstance(target, str):
        raise ValueError(f"A {wanted} is named by _target_, got {target!r}.")
    cls = _locate(target)
    if not (inspect.isclass(cls) and issubclass(cls, bases) and f"{cls.__module__}.".startswith(allowed_prefixes())):
        raise ValueError(f"_target_: {target} is not a {wanted} from {', '.join(p[:-1] for p in allowed_prefixes())}.")
    try:
        inspect.signature(cls).bind_partial(**values)
    except TypeError as error:
        takes = [n for n in inspect.signature(cls).parameters if n not in ("self", "args", "kwargs", "params")]
        raise ValueError(f"{target}: {error}. It takes {', '.join(takes)}.") from error
    return partial(cls, **values)


def describe_allowed_targets() -> str:
    """Return a sentence that says what `_target_` may name."""
    names = ", ".join(prefix[:-1] for prefix in allowed_prefixes())
    return f"A configuration may name classes under {names}; FINETUNE_ALLOW=package adds one."


def allowed_prefixes() -> tuple[str, ...]:
    """Return `ALLOWED` and the packages of the environment variable FINETUNE_ALLOW."""
    packages = [package.strip() for package in os.environ.get("FINETUNE_ALLOW", "").split(",")]
    return (*ALLOWED, *(f"{package}." for package in packages if package))


def _locate(target: str) -> Any:
    from importlib import import_module

    if not target.startswith(allowed_prefixes()):
        raise ValueError(f"_target_: {target} is not allowed. {describe_allowed_targets()}")
    module, _, name = target.rpartition(".")
    try:
        located = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = f" Is its package installed ({error.name})?" if error.name else ""
        raise ValueError(f"_target_: {target} cannot be imported.{extra}") from error
    except AttributeError as error:
        names = [n for n in dir(import_module(module)) if not n.startswith("_")]
        raise ValueError(unknown_name(f"class in {module}", name, names)) from error
    return located
