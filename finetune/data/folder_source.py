"""Find images in folders: one per split, or one per class."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.readers import FileReader, LabelledImages
from finetune.io import listing
from finetune.io.listing import SPLIT_FOLDERS


@dataclass
class FolderSource:
    """A folder with a folder per split, or per class."""

    root: Path
    skipped_files: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Do nothing: the folder is there."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of train and of the splits beside it; of a folder per class, all are train.

        Raises:
            ValueError: there is neither train nor a folder per class.
        """
        folders = split_folders(self.root)
        if folders["train"] is not None:
            pass
        elif any(folders.values()):
            names = ", ".join(path.name for path in folders.values() if path is not None)
            raise ValueError(
                f"data.root={self.root} has {names} but no train folder. Add train/, or give a folder that holds a folder "
                "per class and nothing else."
            )
        elif listing.subfolders(self.root):
            folders = {"train": self.root}
        else:
            loose = sum(listing.is_image(name) for name in os.listdir(self.root))
            raise ValueError(
                f"data.root={self.root} has no folders in it ({loose} images lie loose there). It needs a folder per "
                "class, or train/ and val/ with a folder per class each."
            )
        return {split: self._read_classes(folder) for split, folder in folders.items() if folder is not None}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of one split, or of a folder per class.

        Raises:
            ValueError: there are splits, and not this one.
        """
        folders = {name: path for name, path in split_folders(self.root).items() if path is not None}
        if not folders:
            return {"": self._read_classes(self.root)}
        if split not in folders:
            raise ValueError(
                f"{self.root} has no {split} folder, it has {', '.join(folders)}. Say split=..., or give one of them."
            )
        return {split: self._read_classes(folders[split])}

    def _read_classes(self, folder: Path) -> LabelledImages:
        """Return the images of a folder per class, named by their paths from the root."""
        keys, labels, paths = [], [], []
        classes = listing.subfolders(folder)
        if not classes:
            raise ValueError(f"{folder} has no folders in it; it needs a folder of images per class.")
        for name in classes:
            images, skipped = listing.list_images(folder / name)
            keys += [Path(os.path.relpath(path, self.root)).as_posix() for path in images]
            labels += [name] * len(images)
            paths += images
            self.skipped_files += skipped
        empty = sorted(set(classes) - set(labels))
        if empty:
            advice = listing.advice_on(self.skipped_files)
            raise ValueError(
                f"{folder}: no images in {', '.join(empty)}. Add some or remove the folder. "
                f"Images are {listing.describe_extensions()}." + (f" {advice}." if advice else "")
            )
        return LabelledImages(keys, labels, FileReader(paths))


def split_folders(root: Path) -> dict[str, Path | None]:
    """Return the folder of each split below a root, by the names that it may have."""
    names = listing.subfolders(root)
    return {
        split: next((root / name for word in words for name in names if name.lower() == word), None)
        for split, words in SPLIT_FOLDERS.items()
    }
