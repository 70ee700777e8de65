"""Run every command on a network for grey images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import FineTuner, load
from tests.end_to_end.helpers import Command, read_table
from tests.helpers import TINY


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_grey_network_is_trained_evaluated_and_exported_on_the_same_pixels(command: Command, photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "model.in_channels=1", "trainer.max_epochs=1", "report=true"]
    run, code = command("train", *words)
    assert code == 0
    ckpt = run / "checkpoints" / "best.ckpt"
    module = FineTuner.load_from_checkpoint(ckpt)
    assert module.preprocess.channels == module.hparams["in_channels"] == 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert (run / "report.html").is_file()
    assert (run / "plots" / "samples.png").is_file()
    assert command("check", f"data.root={photos}", "model.weights=none", "model.in_channels=1")[1] == 0

    folder, code = command("evaluate", f"ckpt={ckpt}", "report=true")
    assert code == 0
    assert json.loads((folder / "evaluation.json").read_text())["as_in_the_run"]["same"] is True
    assert list((folder / "plots").iterdir())

    folder, code = command("predict", f"ckpt={ckpt}", f"source={photos}/val")
    assert code == 0
    rows = read_table(folder / "predictions.csv")
    correct = 0
    for row in rows:  # with Pillow and the network alone
        with Image.open(row["path"]) as image:
            grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
        values = (grey - module.preprocess.mean[0]) / module.preprocess.std[0]
        size = module.preprocess.size
        assert grey.shape == (size, size)
        assert module.preprocess.resize > size  # so it is enlarged, and cropped
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(values).view(1, 1, size, size),
            [module.preprocess.resize] * 2,
            mode="bilinear",
            antialias=True,
        )
        left = round((module.preprocess.resize - size) / 2)
        with torch.no_grad():
            expected = module.backbone(enlarged[..., left : left + size, left : left + size]).softmax(dim=1)[0]
        assert float(row["confidence"]) == pytest.approx(float(expected.max()), abs=2e-3)
        correct += row["label"] == Path(row["path"]).parent.name
    assert correct == round(metrics["best"]["val/acc"] * len(rows))

    for kind in ("onnx", "state_dict"):
        folder, code = command("export", f"ckpt={ckpt}", f"format={kind}")
        assert code == 0
        assert json.loads((folder / "export.json").read_text())["max_abs_diff"] < 1e-5
        assert (
            "(N, 1, 32, 32), grey (ITU-R 601-2 luminance)" in json.loads((folder / "model.json").read_text())["input"]
        )


def test_commands_refuse_what_only_a_loader_can_read(
    command: Command, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FineTuner("squeezenet1_1", ["cat", "dog", "emu"], weights="none", in_channels=4).save(tmp_path / "four.ckpt")
    for name, *words in (
        ("train", *TINY, f"data.root={photos}", "model.in_channels=4"),
        ("evaluate", f"ckpt={tmp_path}/four.ckpt", f"data.root={photos}"),
        ("predict", f"ckpt={tmp_path}/four.ckpt", f"source={photos}"),
        ("export", f"ckpt={tmp_path}/four.ckpt", f"source={photos}", "format=state_dict"),
    ):
        assert command(name, *words)[1] == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "4 channels" in error
        assert "loader" in error
    folder, code = command("export", f"ckpt={tmp_path}/four.ckpt", "format=state_dict")
    assert code == 0  # compared on noise
    recipe = json.loads((folder / "model.json").read_text())["load"]
    assert "conv.in_channels = 4" in recipe
    model = load(tmp_path / "four.ckpt")
    pixels = torch.randint(0, 256, (4, 300, 260), dtype=torch.uint8)
    assert model.predict(pixels).label in model.classes
    assert model.predict(pixels / 255).confidence == pytest.approx(model.predict(pixels).confidence, abs=1e-3)
    with pytest.raises(ValueError, match=r"4 channels.*model.predict\(loader\(path\)\).*Got a str"):
        model.predict(str(photos / "val" / "cat" / "00.png"))
