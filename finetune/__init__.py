"""Transfer learning for image classification on PyTorch Lightning.

The public names are imported on first use, so that `import finetune` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.backbones import Backbone as Backbone
    from finetune.classifier import Classifier as Classifier
    from finetune.classifier import Prediction as Prediction
    from finetune.classifier import load as load
    from finetune.data import ImageDataModule as ImageDataModule
    from finetune.families import Family as Family
    from finetune.families import register as register
    from finetune.module import FineTuner as FineTuner
    from finetune.preprocess import Preprocess as Preprocess
    from finetune.strategy import Strategy as Strategy

__version__ = "0.1.0"

_PUBLIC = {
    "Backbone": "finetune.backbones",
    "Classifier": "finetune.classifier",
    "Family": "finetune.families",
    "FineTuner": "finetune.module",
    "ImageDataModule": "finetune.data",
    "Prediction": "finetune.classifier",
    "Preprocess": "finetune.preprocess",
    "Strategy": "finetune.strategy",
    "load": "finetune.classifier",
    "register": "finetune.families",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
