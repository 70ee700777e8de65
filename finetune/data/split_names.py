"""Tell which split a folder or a cell of a table means, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
"""Words for each split, the most usual first."""

_PLAIN = frozenset(
    ["set", "sets", "data", "dataset", "split", "folder", "dir", "image", "images", "img", "imgs", "picture", "pictures",
     "pics", "photo", "photos", "sample", "samples", "files", "new", "final", "all"]
)  # fmt: skip
"""Words that say nothing beside the word for the split."""

_UNKNOWN = frozenset(["unknown", "unlabelled", "unlabeled", "unsorted", "none"])
"""Words for images without a label."""

_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_GLUED = re.compile(
    f"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?:{'|'.join(sorted(_PLAIN, key=len, reverse=True))})"
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")


def parse(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a name means, and the words of it that are neither this nor plain; None for other names.

    >>> parse("Training_Set"), parse("train2017"), parse("seg_train"), parse("trainers")
    (('train', ()), ('train', ()), ('train', ('seg',)), None)
    """
    words = [word.casefold() for word in _WORDS.findall(name)]
    words = [found.group(1) if (found := _GLUED.fullmatch(word)) else word for word in words]
    if words[:2] == ["hold", "out"]:
        words[:2] = ["holdout"]
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    if len(splits) != 1:
        return None
    others = (word for word in words if word not in _SPLIT_OF and word not in _PLAIN and not word.isdecimal())
    return splits.pop(), tuple(others)


def split_of(name: str) -> str | None:
    """Return the split that a name means and nothing else: `Training_Set` is train, `bullet_train` is no split."""
    found = parse(name.strip())
    return found[0] if found and not found[1] else None


def says_nothing(name: str) -> bool:
    """Return whether a name says no more of images than that they are some: `images`, `unknown`, `test`, `2019`."""
    words = [word.casefold() for word in _WORDS.findall(name)]
    return all(word in _PLAIN or word in _SPLIT_OF or word in _UNKNOWN or word.isdecimal() for word in words)


def most_usual(names: Iterable[str]) -> list[str]:
    """Sort names of one split, the most usual first: `val` before `validation` before `val_images`."""
    words = [word for of_split in SPLIT_WORDS.values() for word in of_split]
    rank = {word: i for i, word in enumerate(words)}
    return sorted(names, key=lambda name: (rank.get(name.casefold(), len(words)), name))
