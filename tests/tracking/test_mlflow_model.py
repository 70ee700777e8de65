"""Test `finetune.tracking.mlflow_model`."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from finetune.inference.classifier import load
from finetune.tracking.mlflow_model import _load_pyfunc
from tests.helpers import make_image, save_small_checkpoint

pd = pytest.importorskip("pandas", reason="the extra mlflow is not installed")


def test_paths_bytes_base64_and_pixels_are_answered_alike(tmp_path: Path) -> None:
    save_small_checkpoint(tmp_path / "best.ckpt")
    image = make_image(3)
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    text = base64.b64encode(content).decode()
    forms = [str(tmp_path / "a.png"), content, text, f"data:image/png;base64,{text}", np.asarray(image)]
    answers = _load_pyfunc(str(tmp_path / "best.ckpt")).predict(pd.DataFrame({"image": pd.Series(forms, dtype=object)}))
    expected = load(tmp_path / "best.ckpt").probabilities(tmp_path / "a.png")[0]
    assert list(answers.columns) == ["label", "confidence", "probability_ants", "probability_bees"]
    for row in answers.itertuples(index=False):
        assert (row.probability_ants, row.probability_bees) == pytest.approx(expected.tolist(), rel=1e-5)
        assert row.label == ["ants", "bees"][int(expected.argmax())]
        assert row.confidence == pytest.approx(float(expected.max()), rel=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", r"nowhere\.png: there is no such file, and it is no image in base64"),
        (b"no image", "0: "),
        (base64.b64encode(b"no image").decode(), "0: "),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, image: str | bytes, message: str) -> None:
    save_small_checkpoint(tmp_path / "best.ckpt")
    model = _load_pyfunc(str(tmp_path / "best.ckpt"))
    with pytest.raises(ValueError, match=message):
        model.predict(pd.DataFrame({"image": [image]}))


def test_a_file_that_holds_code_is_not_loaded(tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": print}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"best\.ckpt"):
        _load_pyfunc(str(tmp_path / "best.ckpt"))
