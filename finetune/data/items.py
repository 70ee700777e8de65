"""Name the keys of images and labels in items and batches that are mappings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_KEYS = ("image", "images", "pixel_values", "img")
LABEL_KEYS = ("label", "labels", "target", "targets")
"""Keys of a mapping that are understood without being named; Hugging Face's are among them."""


def only_key(item: Mapping[str, Any], known: Sequence[str]) -> str:
    """Return the one of some known keys that a mapping has.

    Raises:
        ValueError: it has none, or several.
    """
    found = [key for key in known if key in item]
    if len(found) != 1:
        raise ValueError(
            f"An item or batch has the keys {', '.join(map(str, item))}: which are images and which are labels? Rename them "
            'to image and label, or say batch_keys=("image", "label") in FineTuner where they are batches.'
        )
    return found[0]
