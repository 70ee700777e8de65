"""Load a model that was logged with MLflow: `mlflow.pyfunc.load_model(...)` calls this, and runs no code of the model."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.inference.classifier import Classifier, load


def output_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of a prediction, the first of text, the others numbers."""
    return ["label", "confidence", *(f"probability_{name}" for name in classes)]


class ImageModel:
    """Predicts images as `Classifier` does, a row each."""

    def __init__(self, classifier: Classifier) -> None:
        """Name the classifier."""
        self.classifier = classifier

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a table with the columns label, confidence, and probability_NAME of each class.

        Args:
            model_input: a table whose first column holds images, as MLflow makes it of a list: the path of a file, the bytes
                of a file or their base64, as a served model gets them, or uint8 pixels (H, W, 3).
            params: are ignored.

        Raises:
            ValueError: an image cannot be read.
        """
        import pandas as pd

        images = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        predictions = self._predict(list(images))
        classes = self.classifier.classes
        rows = [[p.label, p.confidence, *(p.probabilities[name] for name in classes)] for p in predictions]
        return pd.DataFrame(rows, columns=output_columns(classes))

    def _predict(self, images: Iterable[Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:  # files are decoded in one way, however they come
            return self.classifier.predict([_as_input(image, Path(folder) / str(i)) for i, image in enumerate(images)])


def _as_input(image: Any, file: Path) -> Any:
    """Return an image as `Classifier.predict` takes it; bytes are written to a file.

    Raises:
        ValueError: a text is neither a path nor base64.
    """
    if isinstance(image, str) and not os.path.isfile(image):
        try:
            image = base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{image[:100]}: there is no such file, and it is no image in base64.") from error
    if not isinstance(image, bytes):
        return image
    file.write_bytes(image)
    return file


def _load_pyfunc(path: str) -> ImageModel:
    """Load the checkpoint; MLflow calls this by name."""
    return ImageModel(load(path))
