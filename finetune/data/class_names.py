"""Treat the two spellings that Unicode has for one name as one class, and say which classes are empty."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from finetune.data.readers import LabelledImages


class EmptyClassError(ValueError):
    """Say that classes have no image."""

    def __init__(self, message: str, split: str = "", classes: Sequence[str] = ()) -> None:
        """Keep the split, "" of data without splits, and the names of the classes."""
        super().__init__(message)
        self.split, self.classes = split, tuple(classes)


def merge_spellings(splits: Mapping[str, LabelledImages]) -> tuple[dict[str, LabelledImages], list[str]]:
    """Give classes that differ in their Unicode form alone one name, with a note on each.

    macOS writes é as two characters (NFD), others as one (NFC): archives of both hold folders that look alike. The
    spelling of train is kept where it has only one, else NFC is taken.
    """
    ordered = sorted(splits.items(), key=lambda item: item[0] != "train")
    found: dict[str, list[str]] = {}
    for _, images in ordered:
        for label in dict.fromkeys(images.labels):
            spellings = found.setdefault(unicodedata.normalize("NFC", label), [])
            if label not in spellings:
                spellings.append(label)
    in_train = set(splits["train"].labels) if "train" in splits else set()
    names: dict[str, str] = {}
    for form, spellings in found.items():
        trained = [label for label in spellings if label in in_train]
        if len(spellings) > 1:
            names |= dict.fromkeys(spellings, trained[0] if len(trained) == 1 else form)
    if not names:
        return dict(splits), []
    merged = {
        split: replace(
            images,
            labels=[names.get(label, label) for label in images.labels],
            classes=images.classes and list(dict.fromkeys(names.get(name, name) for name in images.classes)),
        )
        for split, images in splits.items()
    }
    twice = ", ".join(sorted(set(names.values())))
    return merged, [f"{twice}: written in two Unicode forms (NFC and NFD), read as one class"]


def match_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Return names, those that differ from a known one in their Unicode form alone as the known one."""
    by_form = {unicodedata.normalize("NFC", name): name for name in known}
    matched = {name: name for name in known}
    for name in (names := list(names)):
        if name not in matched:
            matched[name] = by_form.get(unicodedata.normalize("NFC", name), name)
    return [matched[name] for name in names]
