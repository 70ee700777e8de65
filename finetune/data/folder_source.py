"""Find images in folders: a folder per split, per class, or per class and split."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.data import layout_hints
from finetune.data.class_names import EmptyClassError
from finetune.data.image_folders import Folder, has_images, read_tree
from finetune.data.layout import Layout, resolve
from finetune.data.readers import FileReader, LabelledImages
from finetune.io import formats
from finetune.io.formats import is_image
from finetune.io.listing import is_hidden


@dataclass
class FolderSource:
    """A folder, read by its layout; see `layout`."""

    root: Path
    layout: str = "auto"
    class_depth: int | str = "auto"
    table_refusal: str = ""
    """Why no table in the folder is read, for a folder that cannot be read by its folders either."""
    skipped_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def tree(self) -> Folder:
        """Return the names of all that lies below the root."""
        return read_tree(self.root)

    @cached_property
    def found(self) -> Layout:
        """Return which images are of which split and class.

        Raises:
            ValueError: the folder is laid out in no known way.
        """
        try:
            return resolve(self.tree, self.layout, self.class_depth)
        except ValueError as error:
            if self.table_refusal:
                raise ValueError(self.table_refusal) from error
            raise

    @property
    def class_names(self) -> set[str]:
        """Return the names of the classes of all splits."""
        return {name for classes in self.found.images.values() for name in classes}

    def prepare(self) -> None:
        """Do nothing: the folder is there."""

    def splits(self) -> dict[str, LabelledImages]:
        """Return the images of train and of the splits beside it; of a folder per class, all are train.

        Raises:
            ValueError: there is no train, or no folder per class.
        """
        found = self.found.images
        if self.found.kind != "classes" and "train" not in found:
            raise ValueError(layout_hints.no_train(self.tree, found))
        if len(found.get("", ())) == 1 and (text := layout_hints.only_class(self.tree)):
            raise ValueError(text)
        if self.table_refusal and len(self.class_names) < 2:
            raise ValueError(self.table_refusal)
        self._add_notes()
        return {split or "train": self._labelled(split) for split in found}

    def evaluation_splits(self, split: str) -> dict[str, LabelledImages]:
        """Return the images of one split, or of a folder per class.

        Raises:
            ValueError: there are splits, and not this one.
        """
        if layout_hints.lies_loose(self.tree):
            raise ValueError(
                f"{layout_hints.no_classes(self.tree)} Without labels nothing can be evaluated; python -m finetune.predict ckpt=RUN "
                f"source={self.root} answers what the images show."
            )
        found = self.found.images
        self._add_notes()
        if self.found.kind == "classes":
            return {"": self._labelled("")}
        if split in self.found.unlabelled:
            folder = self.found.unlabelled[split]
            raise ValueError(
                f"{folder} has images and no folders of classes: without labels nothing can be evaluated. "
                f"python -m finetune.predict ckpt=RUN source={folder} answers what they show."
            )
        if split not in found:
            raise ValueError(
                f"{self.root} has no {split} folder, it has {', '.join(found)}. Say split=..., or give one of them."
            )
        return {split: self._labelled(split)}

    def _add_notes(self) -> None:
        loose = [path for path in self.found.loose if is_image(os.path.basename(path))]
        if loose:
            self.notes.append(
                f"{len(loose)} images lie beside the folders of classes and are not read: {loose[0]} for one"
            )
        # within a class of inside_out, only folders with images are among them
        unread = [name for name in self.found.unread_folders if "/" in name or has_images(self.tree.folders[name])]
        if unread and not self.found.doubts:
            self.notes.append(f"folders beside those of the splits are not read: {', '.join(unread[:8])}")
        nested = [self.found.nested_note] if self.found.nested_note else []
        self.notes += [*self.found.notes, *nested, *map(str, self.found.doubts)]
        self.skipped_files += [path for path in self.found.others if not is_hidden(os.path.basename(path))]

    def _labelled(self, split: str) -> LabelledImages:
        """Return the images of a split, named by their paths from the root."""
        classes = self.found.images[split]
        labels = [name for name, paths in classes.items() for _ in paths]
        paths = [path for of_class in classes.values() for path in of_class]
        empty = [name for name, of_class in classes.items() if not of_class]
        if empty:
            advice = formats.advice_on(self.skipped_files)
            raise EmptyClassError(
                f"{self.found.folders[split]}: no images in {', '.join(empty)}. Add some or remove the folder. "
                f"Images are {formats.describe_extensions()}." + (f" {advice}." if advice else ""),
                split,
                empty,
            )
        start = len(os.path.join(self.tree.path, ""))
        keys = [Path(path[start:]).as_posix() if os.sep != "/" else path[start:] for path in paths]
        return LabelledImages(keys, labels, FileReader(paths))
