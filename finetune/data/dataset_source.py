"""Find images in torchvision data sets, and in others of their form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.items import LABEL_KEYS, only_key
from finetune.data.readers import DatasetReader, LabelledImages


@dataclass
class DatasetSource:
    """A torchvision data set, built once for each split."""

    make: Callable[..., Any]
    arguments: Mapping[str, Mapping[str, Any]]
    """Split to the arguments that make it."""
    root: Path | None = None
    skipped_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Let torchvision download what is missing."""
        self.open()

    def open(self) -> dict[str, Any]:
        """Return the data set of each split; torchvision downloads what is missing.

        Raises:
            FileNotFoundError: it cannot be read or downloaded.
        """
        try:
            return {name: self.make(**self._keywords(name)) for name in self.arguments}
        except (OSError, RuntimeError) as error:
            name = getattr(self.make, "func", self.make).__name__  # of a class, or of a partial of it
            raise FileNotFoundError(
                f"{name} could not be read from {self.root} or downloaded: {error}. "
                "Without a network, copy its files into that folder (data.root)."
            ) from error

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of each split; names are `<split>/<index>`.

        Raises:
            FileNotFoundError: the data set cannot be read or downloaded.
            ValueError: labels and class names do not fit.
        """
        return {split: self._labelled_items(split, dataset) for split, dataset in self.open().items()}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of each split."""
        return self.splits()

    def _keywords(self, split: str) -> dict[str, Any]:
        return {**({"root": str(self.root)} if self.root is not None else {}), **self.arguments[split]}

    def _all_arguments(self, split: str, dataset: Any) -> dict[str, Any] | None:
        """Return with what the class of a split was called; None where that is not known."""
        make: Any = self.make
        if getattr(make, "func", make) is not type(dataset) or getattr(make, "args", None):
            return None  # a function made it
        return {**getattr(make, "keywords", {}), **self._keywords(split)}

    def _labelled_items(self, split: str, dataset: Any) -> LabelledImages:
        keys = [f"{split}/{i}" for i in range(len(dataset))]
        reader = DatasetReader(dataset, self._all_arguments(split, dataset))
        targets, own = _targets(dataset)
        if targets and isinstance(targets[0], str):
            return LabelledImages(keys, targets, reader)
        numbers = [int(target) for target in targets]
        names = [str(name) for name in own] if own else [str(i) for i in range(max(numbers, default=0) + 1)]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(names):
            raise ValueError(f"The {split} split has labels {min(numbers)}..{max(numbers)} for {len(names)} classes.")
        return LabelledImages(keys, [names[n] for n in numbers], reader, names if own else None)


def _targets(dataset: Any) -> tuple[list[Any], Any]:
    """Return the label of each item, a number or a name, and the names of the classes where they are known."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return list(getattr(dataset, attribute)), getattr(dataset, "classes", None)
    first = dataset[0] if len(dataset) else ()
    if not isinstance(first, Mapping):
        return [dataset[i][1] for i in range(len(dataset))], getattr(dataset, "classes", None)
    key = only_key(first, LABEL_KEYS)
    if hasattr(dataset, "column_names"):  # of Hugging Face: a column, without decoding the images
        return list(dataset[key]), getattr(dataset.features[key], "names", None)
    return [dataset[i][key] for i in range(len(dataset))], getattr(dataset, "classes", None)
