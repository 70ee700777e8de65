"""Test `finetune.data.items`."""

from __future__ import annotations

import pytest

from finetune.data.items import IMAGE_KEYS, LABEL_KEYS, only_key


def test_usual_keys_are_found_and_others_or_several_are_refused() -> None:
    assert (only_key({"pixel_values": 1, "labels": 2}, IMAGE_KEYS), only_key({"img": 1, "target": 2}, LABEL_KEYS)) == (
        "pixel_values",
        "target",
    )
    with pytest.raises(ValueError, match="the keys foto, art: which are images"):
        only_key({"foto": 1, "art": 2}, IMAGE_KEYS)
    with pytest.raises(ValueError, match="the keys image, img, label"):
        only_key({"image": 1, "img": 1, "label": 2}, IMAGE_KEYS)
