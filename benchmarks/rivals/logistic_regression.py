"""Fit scikit-learn's logistic regression on the pooled features of a frozen trunk.

    python logistic_regression.py --data DIR --trunk squeezenet1_1 --weights FILE --seed 0 --out row.json

The features of each image are computed once, preprocessed as the weights say, without augmentation, and go in as they are. Of ten
values of C between 1e-4 and 1e4 the one with the smallest log loss in 5 stratified folds of the training images is taken (fewer
folds where a class has fewer images). The validation images choose nothing. Why log loss: by accuracy many values of C are equal
on few images, and which one is taken is luck. On 244 ants and bees three draws of the folds then took 0.0001, 0.0008 and 0.006
(squeezenet1_1), by log loss always the same.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from common import (
    TIMM_NAMES,
    WORKERS,
    build_network,
    load_torchvision_trunk,
    plain_transform,
    read_split,
    rival,
    timed,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
MAX_STEPS = 5000


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Compute the features, fit, and return the row."""
    network, how = build_network(options.trunk, options.weights, 0 if options.trunk in TIMM_NAMES else 2)
    if options.trunk not in TIMM_NAMES:
        network = nn.Sequential(load_torchvision_trunk(options.weights).features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sets = {split: read_split(options.data, split, plain_transform(how)) for split in ("train", "val", "test")}
    assert sets["train"] is not None
    assert sets["val"] is not None
    features, labels = compute_features(network, sets["train"])
    folds = min(FOLDS, int(np.bincount(labels).min()))
    row: dict[str, Any] = {"folds": folds}
    classifier = LogisticRegression(max_iter=MAX_STEPS)
    if folds > 1:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=options.seed)
        classifier = GridSearchCV(classifier, {"C": STRENGTHS}, cv=splitter, scoring="neg_log_loss")
    classifier.fit(features, labels)
    row["C"] = float(classifier.best_params_["C"]) if folds > 1 else 1.0
    row["val"] = row["val_best"] = accuracy(classifier, network, sets["val"])
    if (test := sets["test"]) is not None:
        row["test"], row["test_seconds"] = timed(lambda: accuracy(classifier, network, test))
    return row


def accuracy(classifier: Any, network: nn.Module, images: ImageFolder) -> float:
    """Return the share of images that are labelled correctly (`score` of a grid search would be the log loss)."""
    features, labels = compute_features(network, images)
    return float((classifier.predict(features) == labels).mean())


@torch.no_grad()
def compute_features(network: nn.Module, images: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (N, width) and the labels (N,) of a split."""
    network.eval()
    loader = DataLoader(images, batch_size=32, num_workers=WORKERS)
    return torch.cat([network(batch) for batch, _ in loader]).numpy(), np.array(images.targets)


if __name__ == "__main__":
    rival(__doc__, train, "torch torchvision scikit-learn")
