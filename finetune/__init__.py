"""Transfer learning for image classification on PyTorch Lightning.

The public names are imported on first use, so that `import finetune` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import finetune.runtime.timing  # noqa: F401  it notes when that was

if TYPE_CHECKING:
    from finetune.api import compose as compose
    from finetune.api import conf_dir as conf_dir
    from finetune.api import run as run
    from finetune.data.datamodule import ImageDataModule as ImageDataModule
    from finetune.images.transforms import Preprocess as Preprocess
    from finetune.inference.classifier import Classifier as Classifier
    from finetune.inference.classifier import Prediction as Prediction
    from finetune.inference.classifier import load as load
    from finetune.models.backbone import Backbone as Backbone
    from finetune.models.specs import Family as Family
    from finetune.models.specs import register as register
    from finetune.reporting.curves import plot_curves as plot_curves
    from finetune.reporting.result import TrainingRun as TrainingRun
    from finetune.training.module import FineTuner as FineTuner
    from finetune.training.strategy import Strategy as Strategy

__version__ = "0.1.0"

_PUBLIC = {
    "Backbone": "finetune.models.backbone",
    "Classifier": "finetune.inference.classifier",
    "Family": "finetune.models.specs",
    "FineTuner": "finetune.training.module",
    "ImageDataModule": "finetune.data.datamodule",
    "Prediction": "finetune.inference.classifier",
    "Preprocess": "finetune.images.transforms",
    "Strategy": "finetune.training.strategy",
    "TrainingRun": "finetune.reporting.result",
    "compose": "finetune.api",
    "conf_dir": "finetune.api",
    "load": "finetune.inference.classifier",
    "plot_curves": "finetune.reporting.curves",
    "register": "finetune.models.specs",
    "run": "finetune.api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
