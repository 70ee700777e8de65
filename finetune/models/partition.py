"""Where a network can be cut in two: a part that is frozen, and the rest.

While nothing before the *cut* learns, what enters it is a constant of each image. The cut is the family's tail, or one of
its stages where only a part of the trunk is frozen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from finetune.models.specs import Family

RANDOM_MODULES = (nn.modules.dropout._DropoutNd, StochasticDepth)


def split_points(network: nn.Module, family: Family) -> list[str]:
    """Where a network can be cut, the latest first: its tail, then its stages from the last to the first."""
    found = []
    for path in family.stages:
        parent, star, _ = path.partition(".*")
        names = [f"{parent}.{n}" for n, _ in network.get_submodule(parent).named_children()] if star else [path]
        found += names
    return [family.tail, *reversed(found)]


def modules_after(network: nn.Module, cut: str) -> list[nn.Module]:
    """The modules from the cut to the end, in the order in which they are called, Sequentials taken apart.

    That they are called one after another is a fact about the families in the table; `check` proves it for a network
    before anything is kept.
    """
    found: list[nn.Module] = []
    path, inclusive = cut, True
    while path:
        parent, _, name = path.rpartition(".")
        children = dict(network.get_submodule(parent).named_children())
        names = list(children)
        found += [children[n] for n in names[names.index(name) + (not inclusive) :]]
        path, inclusive = parent, False
    return [leaf for module in found for leaf in _leaves(module)]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for child in module:
            yield from _leaves(child)
    else:
        yield module


def logits_from(modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """From what enters the cut to logits (N, classes)."""
    values = forward_from(modules, values)
    return values.flatten(1) if values.ndim > 2 else values


def forward_from(modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """Modules one after another."""
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
    """Dropout with p = 0.5, each element's fate one random bit.

    torch draws a 24-bit number an element: in SqueezeNet's tail, which drops 86,528 values an image, that is nine
    tenths of a step.
    """
    draws = torch.empty(-(-values.numel() // 64), dtype=torch.int64).random_(-(2**63), None)
    mask = _BYTES_TO_MASK.index_select(0, draws.view(torch.uint8).int()).view(-1)
    return values * mask[: values.numel()].as_strided(values.size(), values.stride()).to(values.dtype)


class _ReachedError(Exception):
    """The forward pass has come to the cut: what follows is not wanted."""


def forward_to(network: nn.Module, cut: str, images: Tensor) -> Tensor:
    """What enters the cut for a batch of images (N, 3, H, W)."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise _ReachedError

    handle = network.get_submodule(cut).register_forward_pre_hook(catch)
    try:
        network.forward(images)
    except _ReachedError:
        return caught[0]
    finally:
        handle.remove()
    raise ValueError(f"the network does not call {cut} as a module")


def verify_partition(network: nn.Module, cut: str, head: str, values: Tensor, images: Tensor) -> None:
    """Prove on a batch that the modules after the cut make of the features what the network makes of the images.

    Compared are what enters the head, which a head of zeros would hide, and the logits.

    Raises:
        ValueError: they do not.
    """
    modes = [(m, m.training) for m in network.modules()]
    entered: list[Tensor] = []
    handle = network.get_submodule(head).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].float()))
    network.eval()
    try:
        with torch.no_grad():
            out = network.forward(images)
            whole = (out[0] if isinstance(out, tuple) else out).float()
            parts = logits_from(modules_after(network, cut), values).float()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"what follows {cut} cannot be run by itself ({str(error).splitlines()[0]})") from error
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    if len(entered) != 2 or not (_alike(entered[0], entered[1]) and _alike(whole, parts)):
        raise ValueError(f"what follows {cut} is more than its modules one after another")


def _alike(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-3 * max(1.0, float(a.abs().max()))
    return a.shape == b.shape and torch.allclose(a, b, atol=tolerance, rtol=0)


def first_varying_module(network: nn.Module, cut: str, skip: Sequence[str]) -> str | None:
    """The first module before the cut that makes something else of the same image every time, if there is one.

    Args:
        skip: children of the network that are not on the way to the cut (auxiliary heads).
    """
    for path, module in network.named_modules():
        if path == cut:
            return None
        if path.split(".")[0] in skip:
            continue
        # such a norm takes part of its result from the other images of the batch
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
        if mixes or (module.training and isinstance(module, RANDOM_MODULES)):
            return path
    return None


def weights_digest(network: nn.Module, cut: str, skip: Sequence[str]) -> str:
    """SHA-256 of every tensor before the cut, but for those under `skip` (auxiliary heads)."""
    sha = hashlib.sha256()
    for path, module in network.named_modules():
        if path == cut:
            break
        if path.split(".")[0] in skip:
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            sha.update(f"{path}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
