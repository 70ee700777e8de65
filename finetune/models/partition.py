"""Split a network in two: a frozen part, and the modules after it.

While nothing before the *split point* is trainable, what enters it is a constant of each image. The split point is the
family's feature boundary, or one of its `split_points` where only a part of the trunk is frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.specs import Family

_RATES = ("p", "drop_prob", "prob")
"""Attributes of modules that are random in training: of torch's Dropouts and torchvision's StochasticDepth, of timm's
DropPath and DropBlock, and of its PatchDropout."""


def split_points(network: nn.Module, family: Family) -> list[str]:
    """Return the paths at which a network can be split, the latest first; the feature boundary is the first of them."""
    points = []
    for path in family.split_points:
        parent, star, _ = path.partition(".*")
        points += [f"{parent}.{n}" for n, _ in network.get_submodule(parent).named_children()] if star else [path]
    return [family.feature_boundary, *reversed(points)]


def modules_after(network: nn.Module, split_point: str) -> list[nn.Module]:
    """Return the modules from the split point to the end, in the order of their calls, Sequentials taken apart.

    That they are called one after another is a property of the families in the table. `verify_partition` proves it for
    a network before any features are kept.
    """
    modules: list[nn.Module] = []
    path, inclusive = split_point, True
    while path:
        parent, _, name = path.rpartition(".")
        children = dict(network.get_submodule(parent).named_children())
        names = list(children)
        modules += [children[n] for n in names[names.index(name) + (not inclusive) :]]
        path, inclusive = parent, False
    return [leaf for module in modules for leaf in leaves(module)]


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that are called in one that may be a Sequential, in order."""
    if type(module) is nn.Sequential:
        for child in module:
            yield from leaves(child)
    else:
        yield module


def first_leaf(module: nn.Module) -> nn.Module:
    """Return the first module that is called in one that may be a Sequential."""
    return next(leaves(module), module)


def run_to_logits(modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """Compute logits (N, classes) from the features that enter the first of some modules."""
    values = forward_from(modules, values)
    return values.flatten(1) if values.ndim > 2 else values


def forward_from(modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """Call modules one after another on features and return the output of the last."""
    for module in modules:
        if isinstance(module, nn.Linear) and values.ndim == 4 and values.shape[-1] != module.in_features:
            values = values.flatten(1)  # torchvision's networks flatten in forward(), not in a module
        if isinstance(module, nn.Dropout) and module.training and module.p == 0.5 and values.device.type == "cpu":
            values = half_dropout(values)
        else:
            values = module(values)
    return values


_BYTES_TO_MASK = torch.tensor([[2.0 * (byte >> bit & 1) for bit in range(8)] for byte in range(256)])


def half_dropout(values: Tensor) -> Tensor:
    """Apply dropout with p = 0.5, with one random bit for each element.

    torch draws a 24-bit number for each element. After SqueezeNet's feature boundary, where 86,528 values of an image are
    dropped, that takes nine tenths of a training step.
    """
    draws = torch.empty(-(-values.numel() // 64), dtype=torch.int64).random_(-(2**63), None)
    mask = _BYTES_TO_MASK.index_select(0, draws.view(torch.uint8).int()).view(-1)
    return values * mask[: values.numel()].as_strided(values.size(), values.stride()).to(values.dtype)


class _ReachedError(Exception):
    """End a forward pass at the split point."""


def forward_to(network: nn.Module, split_point: str, images: Tensor) -> Tensor:
    """Return the features that enter the split point for a batch of images (N, C, H, W).

    Raises:
        ValueError: the network does not call the split point as a module.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise _ReachedError

    handle = network.get_submodule(split_point).register_forward_pre_hook(catch)
    try:
        network.forward(images)
    except _ReachedError:
        return caught[0]
    finally:
        handle.remove()
    raise ValueError(f"the network does not call {split_point} as a module")


def require_constant(network: nn.Module, split_point: str, values: Tensor, images: Tensor) -> None:
    """Verify that what enters a split point does not vary from one pass to the next, as with dropout that is no module.

    Args:
        network: in the modes of training.
        split_point: path of the module that the features enter.
        values: features (N, ...) of the images.
        images: (N, C, H, W).

    Raises:
        ValueError: it varies.
    """
    if not _alike(values, forward_to(network, split_point, images)):
        raise ValueError(f"what enters {split_point} varies from one pass to the next")


def verify_partition(network: nn.Module, split_point: str, head: str, values: Tensor, images: Tensor) -> None:
    """Verify on a batch that the modules after the split point compute from features what the network does from images.

    The inputs of the head are compared as well as the logits, because a head of zeros gives equal logits for any input.

    Args:
        network: the whole network.
        split_point: path of the module that the features enter.
        head: path of the head.
        values: features (N, ...) of the images.
        images: (N, C, H, W).

    Raises:
        ValueError: the results differ, or the modules cannot be run by themselves.
    """
    modes = [(m, m.training) for m in network.modules()]
    entered: list[Tensor] = []
    handle = first_leaf(network.get_submodule(head)).register_forward_pre_hook(
        lambda _, inputs: entered.append(inputs[0].float())
    )
    network.eval()
    try:
        with torch.no_grad():
            out = network.forward(images)
            whole = (out[0] if isinstance(out, tuple) else out).float()
            parts = run_to_logits(modules_after(network, split_point), values).float()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"what follows {split_point} cannot be run by itself ({str(error).splitlines()[0]})"
        ) from error
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    if len(entered) != 2 or not (_alike(entered[0], entered[1]) and _alike(whole, parts)):
        raise ValueError(f"what follows {split_point} is more than its modules one after another")


def _alike(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-3 * max(1.0, float(a.abs().max()))
    return a.shape == b.shape and torch.allclose(a, b, atol=tolerance, rtol=0)


def first_varying_module(network: nn.Module, split_point: str, skip: Sequence[str]) -> str | None:
    """Return the path of the first module before the split point whose output for an image varies; None if none does.

    Args:
        network: in the training and evaluation modes that count.
        split_point: path of the module that ends the search.
        skip: children of the network that are not on the way to the split point (auxiliary heads).
    """
    for path, module in network.named_modules():
        if path == split_point:
            return None
        if path.split(".")[0] in skip:
            continue
        # such a norm takes part of its result from the other images of the batch
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        if mixes or (module.training and _is_random(module)):
            return path
    return None


def _is_random(module: nn.Module) -> bool:
    rates = [getattr(module, name, None) for name in _RATES]
    return any(isinstance(rate, float | int) and rate > 0 for rate in rates)


def weights_digest(network: nn.Module, split_point: str, skip: Sequence[str]) -> str:
    """Return the SHA-256 of every tensor before the split point, without those under `skip` (auxiliary heads)."""
    sha = hashlib.sha256()
    for path, module in network.named_modules():
        if path == split_point:
            break
        if path.split(".")[0] in skip:
            continue
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            sha.update(f"{path}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
