"""Fit scikit-learn's logistic regression on the pooled features of a frozen trunk.

    python logistic_regression.py --data DIR --trunk squeezenet1_1 --weights FILE --seed 0 --out row.json

The features of each image are computed once, preprocessed as the weights say, without augmentation. They are standardised;
of ten strengths between 1e-4 and 1e4 the one with the best accuracy in 5 stratified folds of the training images is taken
(fewer folds where a class has fewer images). The validation images choose nothing.
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
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5


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
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    if folds > 1:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=options.seed)
        classifier = GridSearchCV(classifier, {"logisticregression__C": STRENGTHS}, cv=splitter)
    classifier.fit(features, labels)
    row["C"] = float(classifier.best_params_["logisticregression__C"]) if folds > 1 else 1.0
    row["val"] = row["val_best"] = float(classifier.score(*compute_features(network, sets["val"])))
    if (test := sets["test"]) is not None:
        score, row["test_seconds"] = timed(lambda: classifier.score(*compute_features(network, test)))
        row["test"] = float(score)
    return row


@torch.no_grad()
def compute_features(network: nn.Module, images: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (N, width) and the labels (N,) of a split."""
    network.eval()
    loader = DataLoader(images, batch_size=32, num_workers=WORKERS)
    return torch.cat([network(batch) for batch, _ in loader]).numpy(), np.array(images.targets)


if __name__ == "__main__":
    rival(__doc__, train, "torch torchvision scikit-learn")
