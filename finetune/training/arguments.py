"""Check and convert the arguments of `FineTuner`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from torch import nn

from finetune.images.depth import is_same
from finetune.images.transforms import Preprocess
from finetune.models.backbone import Backbone, make_backbone
from finetune.models.head_layers import parse_head
from finetune.models.specs import Family
from finetune.runtime.suggestions import unknown_name
from finetune.training.interface import TrainableClassifier

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check keywords and types of a constructor's arguments against its annotations, before it runs.

    Raises:
        ValueError: a keyword is unknown (the message names the nearest), or a value is of another type than annotated.
    """

    @functools.wraps(function)
    def check(*args: P.args, **kwargs: P.kwargs) -> R:
        signature = inspect.signature(function)
        for name in kwargs:
            if name not in signature.parameters:
                known = [parameter for parameter in signature.parameters if parameter != "self"]
                raise ValueError(unknown_name("argument", name, known))
        hints = _hints(function)
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            if name in hints and not _fits(value, hints[name]):
                raise ValueError(f"{name}= takes {_describe(hints[name])}, got {value!r:.60}.")
        return function(*args, **kwargs)

    return check


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type; items of containers are not looked at."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return True
    if kind in (int, float):
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    if kind is Sequence:  # arrays and tensors are no Sequence, and good for one
        return (
            hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)
        )
    return isinstance(value, kind)


def _describe(hint: Any) -> str:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    names = {str: "text", float: "a number", int: "a whole number", bool: "true or false", type(None): "None",
             Sequence: "a list", Mapping: "a mapping"}  # fmt: skip
    kinds = [typing.get_origin(option) or option for option in options]
    return " or ".join(names.get(kind, getattr(kind, "__name__", str(kind)).lower()) for kind in kinds)


def require_not_negative(**values: float | None) -> None:
    """Check numbers.

    Raises:
        ValueError: one is negative; names it.
    """
    for name, value in values.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}.")


def plain_floats(name: str, values: Any) -> list[float] | None:
    """Return numbers as plain floats, or None.

    Raises:
        ValueError: one is no number.
    """
    try:
        return None if values is None else [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}= takes numbers, got {values!r:.60}.") from error


def class_names(classes: Sequence[str] | int) -> list[str]:
    """Return class names; a number names them "0", "1", ...

    Raises:
        ValueError: there are fewer than two, or two are the same.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if len(names) < 2:
        raise ValueError(f"A classifier needs at least two classes, got {names}. Pass classes=data.classes.")
    if len(set(names)) < len(names):
        raise ValueError(f"Class names must differ, got {names}.")
    return names


def agree_with_data(module: TrainableClassifier, given: Mapping[str, Any], trainer: Any, is_fit: bool) -> None:
    """Let an `ImageDataModule` and a module agree on classes and preprocessing.

    Args:
        module: takes over the preprocessing of the images that it is trained on.
        given: the fields of it that the user asked for.
        trainer: with the data module, which has been set up; others than an `ImageDataModule` are left alone.
        is_fit: whether the module is trained, and not evaluated.

    Raises:
        ValueError: they contradict each other.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(data, "adapt_to"):
        return
    images = data.adapt_to(module.classes, module.preprocess, module.schedule.unaugmented_epochs())
    agreed = agreed_preprocess(module.preprocess, given, images)
    require_size(module.model_name, module.family, module.backbone, agreed.size)
    if is_fit:
        data.transforms = replace(data.transforms, found_flip=None)  # what another network has found
        module.preprocess = agreed
        module.hparams["preprocess"] = agreed.to_dict()
        return
    before, after = module.preprocess.to_dict(), agreed.to_dict()
    for name, argument in _KEPT.items():
        if _differ(name, before[name], after[name]):
            own = "[0, 65535]" if before[name] is None else "..." if argument == "preprocess" else repr(before[name])
            raise ValueError(
                f"The data module's preprocess has {name}={after[name]}, and the module that is evaluated has {before[name]}: "
                f"give ImageDataModule({argument}={own}), or train with the other."
            )


_KEPT = {"mean": "preprocess", "std": "preprocess", "fit": "resize", "depth": "depth"}
"""Fields of the preprocessing that an evaluation may not change, and the arguments of the data module that set them."""


def _differ(name: str, before: Any, after: Any) -> bool:
    return not is_same(before, after) if name == "depth" else bool(before != after)


def agreed_preprocess(own: Preprocess, given: Mapping[str, Any], images: Preprocess) -> Preprocess:
    """Return the preprocessing that a data module's images get, which the module takes over.

    Args:
        own: of the module.
        given: the fields of it that the user asked for.
        images: of the data module.

    Raises:
        ValueError: the user has asked for other values than the data module has.
    """
    before, after = own.to_dict(), images.to_dict()
    for name, value in given.items():
        if value is not None and _differ(name, before[name], after[name]):
            raise ValueError(
                f"The module has preprocess {name}={before[name]}, the data module {name}={after[name]} (data.image_size, "
                "data.resize, data.depth, data.preprocess): say it in one place, or the same in both."
            )
    return images


def build_backbone(
    model: str | nn.Module | Backbone,
    weights: str | None,
    head: Any,
    classes: Sequence[str],
    head_init: str,
    feature_boundary: str | None,
    transform_input: bool | None,
    preprocess: Mapping[str, Any] | None,
    in_channels: int,
    options: Mapping[str, Any] | None,
) -> Backbone:
    """Return a network with a new head, from what `FineTuner` takes.

    Raises:
        ValueError: a name is unknown, or a head or an image size does not fit.
        FileNotFoundError: weights that are not there and cannot be downloaded.
    """
    path, layers = parse_head(head)
    backbone = make_backbone(
        model, weights, path, feature_boundary, transform_input, preprocess, int(in_channels), options
    )
    backbone.replace_head(len(classes), head_init, classes, layers)
    if backbone.name == "custom":
        backbone.probe(len(classes))
    require_size(backbone.name, backbone.family, backbone.network, backbone.preprocess.size)
    return backbone


def require_size(name: str, family: Family, network: nn.Module, size: int) -> None:
    """Refuse an image size with which a network would fail deep inside torch, in the first step.

    Args:
        name: of the model, for the message.
        family: says which sizes it takes.
        network: may have been built for a size.
        size: of the images, in pixels.

    Raises:
        ValueError: it does not take images of that size.
    """
    built_for = int(getattr(network, "image_size", family.min_size))
    if (family.fixed_size or family.size_argument) and size != built_for:
        other = f' For others, build it for them: preprocess={{"size": {size}}}.' if family.size_argument else ""
        raise ValueError(
            f"{name} takes images of {built_for} x {built_for} pixels only, got data.image_size={size}.{other}"
        )
    if size < family.min_size:
        raise ValueError(f"{name} needs images of at least {family.min_size} pixels, got data.image_size={size}.")
