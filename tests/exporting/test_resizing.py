"""Test `finetune.exporting.resizing`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from finetune import FineTuner
from finetune.exporting import formats
from finetune.exporting.formats import EXPORTERS, RESIZING_EXPORTERS
from finetune.exporting.resizing import GraphResize, describe_resize
from finetune.images.transforms import Pad, Preprocess

SIDES = [(1, 1), (3, 30), (40, 50), (72, 72), (144, 301), (71, 900), (150, 100), (1201, 800)]


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def resized(pixels: Tensor, p: Preprocess) -> Tensor:
    """What torchvision makes of pixels (3, H, W)."""
    mode = InterpolationMode(p.interpolation)
    if p.fit == "pad":
        return Pad(p.size, mode, p.mean)(pixels)
    if p.fit == "squash":
        return v2.functional.resize(pixels, [p.size, p.size], mode)
    return v2.functional.center_crop(v2.functional.resize(pixels, [p.resize], mode), [p.size, p.size])


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_graph_resizes_as_torchvision_to_the_last_bit(interpolation: str, fit: str) -> None:
    p = Preprocess(size=64, resize=72, interpolation=interpolation, fit=fit)
    resize = GraphResize(p)
    for height, width in SIDES:
        for a, b in ((height, width), (width, height)):
            pixels = noise(a, b)
            found = resize(pixels.permute(1, 2, 0)[None])[0]
            assert torch.equal(found, resized(pixels, p).float()), (a, b)


def test_random_sizes_are_resized_as_by_torchvision() -> None:
    generator = torch.Generator().manual_seed(5)
    for seed in range(60):
        height, width, resize, size = torch.randint(1, 400, (4,), generator=generator).tolist()
        p = Preprocess(size=min(size, resize), resize=resize)
        pixels = noise(height, width, seed)
        if max(height, width) <= 20 * min(height, width):
            assert torch.equal(GraphResize(p)(pixels.permute(1, 2, 0)[None])[0], resized(pixels, p).float()), p


def test_a_graph_for_grey_images_takes_luminance_as_pillow() -> None:
    p = Preprocess(size=30, resize=30).with_channels(1)
    pixels = noise(30, 30)
    grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
    found = GraphResize(p)(pixels.permute(1, 2, 0)[None])
    assert torch.equal(found[0], v2.functional.pil_to_tensor(grey).float())


def test_the_description_has_the_numbers_of_each_fit() -> None:
    crop = describe_resize(Preprocess(size=64, resize=72), inside=False)
    assert crop["by"] == "the program that runs the model (resize=own)"
    assert crop["size"] == "the shorter side becomes 72, the longer floor(72 * longer / shorter)"
    assert "top = round((height - 64) / 2)" in crop["crop"]
    assert crop["antialias"] is True
    pad = describe_resize(Preprocess(size=64, resize=72, fit="pad", interpolation="nearest"), inside=True)
    assert pad["by"].startswith("the graph (resize=shared)")
    assert "[124, 116, 104]" in pad["crop"]  # ImageNet's mean colour
    assert pad["antialias"] is False


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "torch_export"])
def test_a_resizing_graph_predicts_of_decoded_images_what_the_model_does(
    kind: str, channels: int, tmp_path: Path
) -> None:
    module = FineTuner("squeezenet1_1", 3, weights="none", in_channels=channels, preprocess={"size": 64}).eval()
    with torch.no_grad():
        module.head.get_parameter("weight").normal_()  # so that images differ in what is predicted
    exported = RESIZING_EXPORTERS[kind](module, tmp_path)
    for height, width in ((40, 50), (150, 100), (64, 301)):
        pixels = noise(height, width)
        grey = v2.functional.to_pil_image(pixels).convert("L")
        entering = resized(pixels if channels == 3 else v2.functional.pil_to_tensor(grey), module.preprocess)
        with torch.no_grad():
            expected = module(entering[None]).softmax(dim=1)
            found = exported.run(pixels.permute(1, 2, 0)[None].contiguous())
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    metadata = json.loads((tmp_path / "model.json").read_text())
    assert metadata["input"].startswith("uint8 (N, height, width, 3), RGB: decoded and upright")
    assert metadata["resize"]["by"].startswith("the graph")


def test_every_graph_format_can_resize() -> None:
    assert set(RESIZING_EXPORTERS) <= set(EXPORTERS)
    module = FineTuner("squeezenet1_1", 2, weights="none")
    assert isinstance(formats.make_graph(module, "shared"), formats.ResizingGraph)
    assert not isinstance(formats.make_graph(module, "own"), formats.ResizingGraph)
