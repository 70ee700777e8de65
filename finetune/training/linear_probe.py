"""Solve the best linear head on features: multinomial logistic regression with L2, and its cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)
"""L2 strengths that cross-validation tries, the strongest first; see `fit_logistic`."""

BLOCK_ROWS = 8192
"""Rows that are computed at a time, so that memory stays flat."""

GRADIENT_TOLERANCE, MAX_ITERATIONS = 1e-5, 1000

NESTED_ROWS = 2000
"""Up to so many images, the strength is chosen anew within the other folds of each. Of more, the choice of one number tells a head nothing of them."""

CHOICE_TOLERANCE = 1e-4
"""Gradient at which the heads of a cross-validation are done: less than half the time, for the same choices (1,000 x 1,280
features of 10 classes: log loss 0.7637 both times)."""


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on features as they are; centring and scaling are folded into it."""

    weight: Tensor
    """(classes, D) float64."""
    bias: Tensor
    """(classes,) float64; minus infinity for a class that had no image."""

    def logits(self, features: Tensor) -> Tensor:
        """Compute the logits (N, classes) float64 of features (N, D)."""
        return torch.cat([block.double() @ self.weight.T for block in features.split(BLOCK_ROWS)]) + self.bias


@dataclass(frozen=True)
class Objective:
    """What a linear head minimizes: the cross entropy of torch's `nn.CrossEntropyLoss`, of a layer with a bias or without."""

    class_weights: Tensor | None = None
    """(classes,)"""
    label_smoothing: float = 0.0
    has_bias: bool = True

    def targets(self, labels: Tensor) -> _Targets:
        """Return the labels (N,) as positions among the classes that have images, with the shares that each label asks for."""
        present = torch.unique(labels)
        weights = torch.ones(len(present)) if self.class_weights is None else self.class_weights.cpu()[present]
        weights = weights.double()
        positions = torch.searchsorted(present, labels)
        smooth = weights * self.label_smoothing / len(present)
        shares = torch.diag((1 - self.label_smoothing) * weights) + smooth[:, None]
        return _Targets(present, positions, shares, float(weights[positions].sum()))


@dataclass(frozen=True)
class _Targets:
    present: Tensor
    positions: Tensor
    shares: Tensor
    """(classes, label) float64, class weights included."""
    total: float
    """Sum of the weights of the labels, by which the loss is divided as torch does, whatever the smoothing."""


CROSS_ENTROPY = Objective()


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    start: LinearHead | None = None,
    objective: Objective = CROSS_ENTROPY,
    tolerance: float = GRADIENT_TOLERANCE,
) -> LinearHead:
    """Fit multinomial logistic regression by L-BFGS in float64.

    Minimizes mean(cross entropy) + l2 / 2 * sum(weight**2) over the weights of features that are centred and divided by
    one number, the root mean square of their deviations, so that a strength means the same for every network. There is no
    penalty on the bias. That is scikit-learn's LogisticRegression with C = 1 / (N * l2), or 2 / (N * l2) for two classes, of
    which it has one row of weights. The same input gives the same head.

    Dividing each feature by its own deviation gave about 0.5 to 1.2 points less in cross-validation, with two trunks on two data
    sets: it makes much of features that hardly vary.

    Source: Kornblith et al. 2019, https://arxiv.org/abs/1805.08974

    Args:
        features: (N, D), finite; float64 for the exact optimum, or float32, whose products are eight times as fast on a CPU.
        labels: (N,) int64.
        num_classes: outputs of the head; a class without an image is never predicted.
        l2: strength of the penalty, above 0.
        start: a head to begin with, of another strength for example.
        objective: class weights, label smoothing, and whether there is a bias; without one, features are not centred.
        tolerance: largest element of the gradient at which it ends.

    Raises:
        ValueError: features are not finite.
    """
    mean, scale = _centre_and_scale(features)
    targets = objective.targets(labels)
    present = targets.present
    if not objective.has_bias:
        mean = torch.zeros_like(mean)
    shape = (len(present), features.shape[1] + 1)  # the last column is the bias
    packed = torch.zeros(shape, dtype=torch.float64)
    if start is not None:
        weight, bias = start.weight[present], start.bias[present]
        packed[:, :-1] = weight * scale
        packed[:, -1] = torch.where(bias.isfinite(), bias, 0.0) + weight @ mean
    packed.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [packed], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=tolerance, tolerance_change=1e-12,
    )  # fmt: skip

    def closure() -> float:
        with torch.no_grad():
            weight, bias = packed[:, :-1] / scale, packed[:, -1]
            loss, packed.grad = _loss_and_gradient(features, targets, mean, scale, weight, bias - weight @ mean)
            packed.grad[:, :-1] += l2 * packed[:, :-1]
            packed.grad[:, -1] *= objective.has_bias
            return loss + 0.5 * l2 * float(packed[:, :-1].square().sum())

    with torch.enable_grad():
        optimizer.step(closure)
    solved = packed.detach()
    weight, bias = solved[:, :-1] / scale, solved[:, -1]
    head = LinearHead(
        torch.zeros(num_classes, features.shape[1], dtype=torch.float64),
        torch.full((num_classes,), -torch.inf, dtype=torch.float64),
    )
    head.weight[present], head.bias[present] = weight, bias - weight @ mean
    return head


def _centre_and_scale(features: Tensor) -> tuple[Tensor, float]:
    """Return the mean (D,) of features, and the root mean square of all their deviations; 1 if all are constant.

    Raises:
        ValueError: features are not finite.
    """
    blocks, zeros = features.split(BLOCK_ROWS), torch.zeros(features.shape[1], dtype=torch.float64)
    mean = sum((block.double().sum(dim=0) for block in blocks), start=zeros) / len(features)
    variance = sum(((block.double() - mean).square().sum(dim=0) for block in blocks), start=zeros) / len(features)
    if not bool(variance.isfinite().all()):
        rows = sum(int((~block.isfinite()).any(dim=1).sum()) for block in blocks)
        raise ValueError(
            f"The features of {rows} of {len(features)} images are not finite numbers: no linear head can be fitted."
        )
    # what rounding leaves of a constant is no deviation
    variance[variance <= (1e-7 * mean).square()] = 0
    return mean, float(variance.mean().sqrt()) or 1.0


def _loss_and_gradient(
    features: Tensor, targets: _Targets, mean: Tensor, scale: float, weight: Tensor, bias: Tensor
) -> tuple[float, Tensor]:
    """Return the mean cross entropy, and its gradient (classes, D + 1) for centred and scaled features, and the bias."""
    loss, dtype, sums = 0.0, features.dtype, targets.shares.sum(dim=0)
    gradient = torch.zeros(len(weight), features.shape[1], dtype=torch.float64)
    total = torch.zeros(len(weight), dtype=torch.float64)
    for block, target in zip(features.split(BLOCK_ROWS), targets.positions.split(BLOCK_ROWS), strict=True):
        # (classes, rows): with so few classes, products are several times as fast this way round
        log_probabilities = ((weight.to(dtype) @ block.T).double() + bias[:, None]).log_softmax(dim=0)
        wanted = targets.shares[:, target]
        loss -= float((wanted * log_probabilities).sum())
        residual = log_probabilities.exp() * sums[target] - wanted
        gradient += (residual.to(dtype) @ block).double()
        total += residual.sum(dim=1)
    gradient = (gradient - total[:, None] * mean) / scale
    return loss / targets.total, torch.cat([gradient, total[:, None]], dim=1) / targets.total


# --- cross-validation --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossValidation:
    """What heads predict for images that they were not fitted on."""

    logits: Tensor
    """(N, classes) float64, of each image by the head of the other folds."""
    strengths: list[float]
    """The L2 strength of each fold's head."""


def cross_validate(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    folds: Sequence[int],
    strengths: Sequence[float] = STRENGTHS,
    objective: Objective = CROSS_ENTROPY,
) -> CrossValidation:
    """Cross-validate logistic regression without letting an image choose the strength for its own prediction.

    For each fold, the strength is the one with the least cross entropy in a cross-validation within the other folds
    (nested). Its heads are those fitted without two folds, and serve both of them. Strengths are tried from the strongest
    on, each from the head of the one before, until one is worse for a fold.

    Of more than `NESTED_ROWS` images all folds choose one strength together, in half the time: the choice is one of a
    dozen numbers, by thousands of images.

    Args:
        features: (N, D), finite.
        labels: (N,) int64.
        num_classes: outputs of the heads.
        folds: of each image; three or more.
        strengths: to choose from, the strongest first.
        objective: of the heads; the strength is chosen by plain cross entropy, whatever it is.
    """
    # a choice among strengths needs no more digits; without their mean, features lose none of those that count
    centre = _centre_and_scale(features)[0] * objective.has_bias
    features = torch.cat([(block.double() - centre).float() for block in features.split(BLOCK_ROWS)])
    fold_of = torch.tensor(folds)
    number = int(fold_of.max()) + 1

    def fit_without(left_out: Sequence[int], l2: float, start: LinearHead | None, tolerance: float) -> LinearHead:
        rows = ~torch.isin(fold_of, torch.tensor(left_out))
        return fit_logistic(features[rows], labels[rows], num_classes, l2, start, objective, tolerance)

    if len(labels) > NESTED_ROWS:
        return _choose_together(fit_without, features, labels, fold_of, strengths)
    pairs = list(combinations(range(number), 2))
    heads: dict[tuple[int, ...], LinearHead] = {}
    best: list[tuple[float, float, list[LinearHead]]] = [(torch.inf, strengths[0], [])] * number
    going_on = set(range(number))
    for l2 in strengths:
        losses = [0.0] * number
        for pair in (pair for pair in pairs if going_on & {*pair}):
            heads[pair] = fit_without(pair, l2, heads.get(pair), CHOICE_TOLERANCE)
            for left_out, other in (pair, pair[::-1]):
                rows = fold_of == other
                losses[left_out] += _log_loss(heads[pair].logits(features[rows]), labels[rows])
        going_on = {fold for fold in going_on if losses[fold] < best[fold][0]}
        for fold in going_on:
            best[fold] = (losses[fold], l2, [heads[pair] for pair in pairs if fold in pair])
    logits = torch.empty(len(labels), num_classes, dtype=torch.float64)
    for fold, (_, l2, inner) in enumerate(best):
        head = fit_without((fold,), l2, inner[0] if inner else None, GRADIENT_TOLERANCE)
        logits[fold_of == fold] = head.logits(features[fold_of == fold])
    return CrossValidation(logits, [l2 for _, l2, _ in best])


def _choose_together(
    fit_without: Callable[[Sequence[int], float, LinearHead | None, float], LinearHead],
    features: Tensor,
    labels: Tensor,
    fold_of: Tensor,
    strengths: Sequence[float],
) -> CrossValidation:
    """Cross-validate with the strength that has the least cross entropy over all folds."""
    folds = range(int(fold_of.max()) + 1)
    heads: dict[int, LinearHead] = {}
    best: tuple[float, float, dict[int, LinearHead]] = (torch.inf, strengths[0], {})
    for l2 in strengths:
        heads = {fold: fit_without((fold,), l2, heads.get(fold), CHOICE_TOLERANCE) for fold in folds}
        parts = [(heads[fold].logits(features[fold_of == fold]), labels[fold_of == fold]) for fold in folds]
        loss = sum(_log_loss(*part) for part in parts)
        if loss >= best[0]:
            break
        best = (loss, l2, heads)
    logits = torch.empty(len(labels), len(heads[0].bias), dtype=torch.float64)
    for fold in folds:
        head = fit_without((fold,), best[1], best[2].get(fold), GRADIENT_TOLERANCE)
        logits[fold_of == fold] = head.logits(features[fold_of == fold])
    return CrossValidation(logits, [best[1]] * len(folds))


def _log_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the summed cross entropy; without the images of a class that the head has never seen, for any strength."""
    losses = -logits.log_softmax(dim=1).gather(1, labels[:, None])
    return float(losses[losses.isfinite()].sum())
