"""Make training losses, and reduce what they return to one number."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.runtime.console import echo, field_line

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits (N, classes) and targets, labels (N,) or shares of classes (N, classes); returns one number, or (N,)."""


class FocalLoss(nn.Module):
    """Cross entropy that counts images less the surer the network is of their class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, with the softmax of several classes.
    """

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        """Set the exponent; 0 is cross entropy. `weight` is (classes,)."""
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma of the focal loss must be 0 or more, got {gamma}.")
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image (N,)."""
        log_probabilities = logits.float().log_softmax(dim=1)
        shares = class_shares(targets, logits.shape[1], self.label_smoothing)
        losses = -shares * (1 - log_probabilities.exp()) ** self.gamma * log_probabilities
        return (losses if self.weight is None else losses * self.weight).sum(dim=1)


class BCELoss(nn.Module):
    """Binary cross entropy of each class against the rest, summed over the classes.

    Source: Wightman et al., "ResNet strikes back", 2021.
    """

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        """Set the weights (classes,) of the positive terms, and the smoothing of the targets."""
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image (N,)."""
        shares = class_shares(targets, logits.shape[1], self.label_smoothing)
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), shares, reduction="none", pos_weight=self.weight
        )
        return losses.sum(dim=1)


def class_shares(targets: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return the share of each class (N, classes) in targets that are labels (N,) or shares already, smoothed."""
    shares = functional.one_hot(targets, num_classes).float() if targets.ndim == 1 else targets.float()
    return shares * (1 - label_smoothing) + label_smoothing / num_classes


def make_criterion(loss: Any, class_weights: Sequence[float] | None, label_smoothing: float, num_classes: int) -> Any:
    """Return the training loss.

    Args:
        loss: a function or module of logits and targets; or a class, or a partial of one, which gets `weight` and
            `label_smoothing` where they are asked for; None is cross entropy.
        class_weights: a weight per class.
        label_smoothing: share of the target spread over all classes.
        num_classes: of the network.

    Raises:
        ValueError: there are not as many weights as classes, or the loss does not take what is asked for.
    """
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"class_weights has {len(class_weights)} values for {num_classes} classes.")
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float)
    asked: dict[str, Any] = {"weight": weight, "label_smoothing": label_smoothing or None}
    asked = {name: value for name, value in asked.items() if value is not None}
    if loss is None:
        loss = nn.CrossEntropyLoss
    made = getattr(loss, "func", loss) if isinstance(loss, partial) else loss
    name = loss_name(made)
    if not inspect.isclass(made):
        if not callable(loss):
            raise ValueError(f"loss= takes a function or module of (logits, targets), got {loss!r}.")
        if asked:
            raise ValueError(
                f"loss={name} is made already: give it its {' and '.join(asked)} itself, or give its class and not an object."
            )
        return loss
    takes = inspect.signature(loss).parameters
    for key in asked:
        if key not in takes:
            raise ValueError(f"The loss {name} takes no {key}; it takes {', '.join(takes) or 'nothing'}.")
    try:
        criterion = loss(**asked)
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss: {error}") from error
    if weight is not None and isinstance(criterion, nn.Module) and "weight" in dict(criterion.named_buffers()):
        # not persistent: checkpoints hold the network and nothing else
        criterion.register_buffer("weight", weight, persistent=False)
    return criterion


def loss_name(criterion: Any) -> str:
    """Return what a loss is called."""
    return str(getattr(criterion, "__name__", type(criterion).__name__))


def note_other_loss(stored: str, criterion: Any, is_first_process: bool) -> None:
    """Say where a module that was loaded is trained with another loss than before: a file does not hold it."""
    if is_first_process and stored and stored != loss_name(criterion):
        text = f"the file was trained with the loss {stored}, and this run trains with {loss_name(criterion)}; loss= gives it"
        echo(field_line("Note", f"{text}."))


def total_loss(criterion: Any, logits: Tensor, aux: Sequence[Tensor], targets: Tensor, aux_weight: float) -> Tensor:
    """Compute the main loss plus the weighted auxiliary ones."""
    loss = mean_loss(criterion, logits, targets)
    for aux_logits in aux:
        loss = loss + aux_weight * mean_loss(criterion, aux_logits, targets)
    return loss


def mean_loss(criterion: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute a loss as one number: the mean where the criterion returns one for each image.

    Raises:
        ValueError: it returns neither, or fails.
    """
    try:
        loss = criterion(logits, targets)
    except torch.OutOfMemoryError:  # which says nothing of the loss
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"The loss {loss_name(criterion)} does not take logits {tuple(logits.shape)} and targets {targets.dtype} {tuple(targets.shape)}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return loss
    if isinstance(loss, Tensor) and loss.shape == (len(logits),):
        return loss.mean()
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise ValueError(
        f"The loss returned {found}; it must return one number, or one for each of the {len(logits)} images."
    )


def weights_of_mean(criterion: Any) -> Tensor | None:
    """Return the class weights by whose sum a loss divides (cross entropy's); None where it divides by the images."""
    weighted = isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and criterion.reduction == "mean"
    return criterion.weight if weighted else None


_NOT_OF_THE_NETWORK = ("criterion.", "metrics.", "train_metrics.")


def with_own_tensors(state_dict: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    """Return stored tensors with a module's own of its loss and its metrics where none are stored, and without others."""
    own = {name: value for name, value in module.state_dict().items() if name.startswith(_NOT_OF_THE_NETWORK)}
    stored = {name for name in state_dict if name.startswith(_NOT_OF_THE_NETWORK)}
    if stored == own.keys():
        return state_dict
    result = OrderedDict(own)
    result.update((name, value) for name, value in state_dict.items() if name in own or name not in stored)
    if hasattr(state_dict, "_metadata"):  # the versions of modules, which torchvision's MNASNet asks for
        result._metadata = state_dict._metadata  # type: ignore[attr-defined]
    return result
