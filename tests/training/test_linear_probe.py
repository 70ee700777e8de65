"""Test `finetune.training.linear_probe`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from finetune.runtime.seeding import stratified_folds
from finetune.training import linear_probe
from finetune.training.linear_probe import LinearHead, Objective, cross_validate, fit_logistic


def blobs(classes: int = 3, n: int = 90, d: int = 12, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds, with features of different mean and size, and a constant one."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    rows = rng.normal(size=(classes, d))[labels] + spread * rng.normal(size=(n, d))
    rows = rows * 3.0 ** rng.integers(-2, 3, d) + rng.normal(size=d) * 50
    rows[:, -1] = 0.1
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(labels)


def objective(head: LinearHead, features: Tensor, labels: Tensor, l2: float) -> float:
    """The objective in numpy, from the definition."""
    x = features.double().numpy()
    logits = x @ head.weight.numpy().T + head.bias.numpy()
    losses = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    losses = losses - logits[np.arange(len(x)), labels.numpy()]
    return float(losses.mean() + l2 / 2 * np.sum((head.weight.numpy() * scale_of(x)) ** 2))


def scale_of(x: np.ndarray) -> float:
    """The root mean square of all deviations from the mean of each feature."""
    return float(np.sqrt(((x - x.mean(axis=0)) ** 2).mean()))


def sklearn_head(features: Tensor, labels: Tensor, l2: float) -> LinearHead:
    """The same problem solved by scikit-learn; with two classes, it has one row of weights in place of two."""
    x = features.double().numpy()
    mean, scale = x.mean(axis=0), scale_of(x)
    classes = len(labels.unique())
    c = 1 / (len(labels) * l2) * (2 if classes == 2 else 1)
    found = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
    found.fit((x - mean) / scale, labels.numpy())
    weight, bias = found.coef_ / scale, found.intercept_
    bias = bias - weight @ mean
    if classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearHead(torch.tensor(weight), torch.tensor(bias))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l2", [1.0, 0.01, 0.0001])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_the_optimum_is_scikit_learns(classes: int, l2: float, dtype: torch.dtype, tolerance: float) -> None:
    features, labels = blobs(classes)
    features = features.to(dtype)
    expected = objective(sklearn_head(features, labels, l2), features, labels, l2)
    assert objective(fit_logistic(features, labels, classes, l2), features, labels, l2) == pytest.approx(
        expected, abs=tolerance
    )


def test_a_start_of_another_strength_leads_to_the_same_head() -> None:
    features, labels = blobs()
    features = features.double()
    cold = fit_logistic(features, labels, 3, 0.01)
    warm = fit_logistic(features, labels, 3, 0.01, start=fit_logistic(features[:60], labels[:60], 3, 1.0))
    assert torch.allclose(cold.logits(features), warm.logits(features), atol=1e-3)
    again = fit_logistic(features, labels, 3, 0.01)
    assert torch.equal(cold.weight, again.weight)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    features = features.double()
    whole = fit_logistic(features, labels, 3, 0.01)
    monkeypatch.setattr(linear_probe, "BLOCK_ROWS", 7)
    parts = fit_logistic(features, labels, 3, 0.01)
    assert torch.allclose(whole.logits(features), parts.logits(features), atol=1e-5)


def test_a_class_without_images_is_never_predicted() -> None:
    features, labels = blobs()
    rows = labels != 1
    with_three = fit_logistic(features[rows], labels[rows], 3, 0.1)
    with_two = fit_logistic(features[rows], labels[rows] // 2, 2, 0.1)
    assert torch.equal(with_three.logits(features)[:, [0, 2]], with_two.logits(features))
    assert bool((with_three.logits(features)[:, 1] == -torch.inf).all())


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs()
    features[3, 0], features[5, 2] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="The features of 2 of 90 images are not finite"):
        fit_logistic(features, labels, 3, 0.1)


def test_constant_features_give_the_shares_of_the_classes() -> None:
    head = fit_logistic(torch.full((10, 4), 3.7), torch.tensor([0] * 7 + [1] * 3), 2, 0.1)
    assert head.logits(torch.full((1, 4), 3.7)).softmax(dim=1)[0].tolist() == pytest.approx([0.7, 0.3], abs=1e-5)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
def test_the_optimum_is_that_of_torchs_loss(
    weights: tuple[float, ...] | None, smoothing: float, has_bias: bool
) -> None:
    """Its gradient by autograd, with the penalty as documented, is zero there."""
    features, labels = blobs()
    features = (features - features.mean(dim=0)).double()
    weight = None if weights is None else torch.tensor(weights)
    head = fit_logistic(features, labels, 3, 0.03, objective=Objective(weight, smoothing, has_bias))
    parameters = [head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_(has_bias)]
    loss = nn.CrossEntropyLoss(weight if weight is None else weight.double(), label_smoothing=smoothing)
    value = loss(features @ parameters[0].T + parameters[1], labels)
    value = value + 0.03 / 2 * (parameters[0] * scale_of(features.numpy())).square().sum()
    value.backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert len(gradients) == 1 + has_bias
    assert max(float(g.abs().max()) for g in gradients) < 2e-4
    assert has_bias or not head.bias.any()


# --- cross-validation --------------------------------------------------------------------------------------------


def test_predictions_are_those_of_scikit_learn_without_the_fold() -> None:
    features, labels = blobs()
    folds = np.array(stratified_folds(labels.tolist(), 3))
    result = cross_validate(features, labels, 3, folds.tolist(), strengths=[0.1])
    for fold in range(3):
        train, test = torch.tensor(folds != fold), torch.tensor(folds == fold)
        expected = sklearn_head(features[train], labels[train], 0.1).logits(features[test])
        assert torch.allclose(result.logits[test].softmax(1), expected.softmax(1), atol=1e-4)


def test_the_strength_of_a_fold_is_chosen_within_the_others() -> None:
    features, labels = blobs()
    folds = np.array(stratified_folds(labels.tolist(), 3))
    strengths = [1.0, 0.1, 0.01]
    for fold, chosen in enumerate(cross_validate(features, labels, 3, folds.tolist(), strengths).strengths):
        losses = []
        for l2 in strengths:
            loss = 0.0
            for inner in {0, 1, 2} - {fold}:
                train = torch.tensor((folds != fold) & (folds != inner))
                logits = sklearn_head(features[train], labels[train], l2).logits(features[torch.tensor(folds == inner)])
                loss += float(
                    torch.nn.functional.cross_entropy(logits, labels[torch.tensor(folds == inner)], reduction="sum")
                )
            losses.append(loss)
        assert chosen == strengths[int(np.argmin(losses))]


def test_labels_of_a_fold_do_not_change_its_predictions() -> None:
    """Nothing of an image's label reaches its own prediction, the choice of the strength included."""
    features, labels = blobs()
    folds = stratified_folds(labels.tolist(), 3)
    mine = torch.tensor(folds) == 1
    changed = torch.where(mine, (labels + 1) % 3, labels)
    before, after = (cross_validate(features, y, 3, folds) for y in (labels, changed))
    assert before.strengths[1] == after.strengths[1]
    assert torch.equal(before.logits[mine], after.logits[mine])
    assert not torch.equal(before.logits[~mine], after.logits[~mine])


def test_noise_is_predicted_as_well_as_by_chance() -> None:
    rng = np.random.default_rng(1)
    features, labels = torch.tensor(rng.normal(size=(200, 50))), torch.tensor(rng.permutation(np.arange(200) % 2))
    result = cross_validate(features, labels, 2, stratified_folds(labels.tolist(), 5))
    assert 0.36 < float((result.logits.argmax(1) == labels).double().mean()) < 0.64


def test_a_class_of_one_image_does_not_stop_it() -> None:
    features, labels = blobs()
    labels[0] = 3
    result = cross_validate(features, labels, 4, stratified_folds(labels.tolist(), 3))
    assert int(result.logits[0].argmax()) != 3
    assert all(np.isfinite(result.strengths))


def test_of_many_images_all_folds_choose_one_strength_as_a_plain_loop_with_scikit_learn_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear_probe, "NESTED_ROWS", 50)
    features, labels = blobs()
    folds = stratified_folds(labels.tolist(), 5)
    strengths = (10.0, 1.0, 0.1, 0.01, 0.001)
    found = cross_validate(features, labels, 3, folds, strengths)
    fold_of, losses, predicted = torch.tensor(folds), {}, {}
    for l2 in strengths:
        logits = torch.empty(len(labels), 3, dtype=torch.float64)
        for fold in range(5):
            rows = fold_of != fold
            logits[~rows] = sklearn_head(features[rows], labels[rows], l2).logits(features[~rows])
        losses[l2], predicted[l2] = float(nn.functional.cross_entropy(logits, labels)), logits
    best = min(losses, key=lambda l2: losses[l2])
    assert found.strengths == [best] * 5
    expected = predicted[best].softmax(dim=1)
    torch.testing.assert_close(found.logits.softmax(dim=1), expected, atol=1e-3, rtol=0)
