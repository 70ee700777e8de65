"""Test `finetune.models.weights`."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from finetune import FineTuner
from finetune.images.transforms import Preprocess
from finetune.models import specs
from finetune.models.backbone import Backbone
from finetune.models.libraries import default_preprocess
from finetune.models.partition import forward_to
from finetune.models.specs import FAMILIES, find_family
from finetune.models.torchvision_library import cached_weights, find_weights
from finetune.models.weights import load_weights
from tests.helpers import save_small_checkpoint


def test_find_weights_names_those_there_are() -> None:
    assert find_weights("resnet50", "IMAGENET1K_V1").name == "IMAGENET1K_V1"
    assert find_weights("resnet50", "default").name == "IMAGENET1K_V2"
    with pytest.raises(ValueError, match=r"model.weights for resnet50 'IMAGENET_V2'.*IMAGENET1K_V2"):
        find_weights("resnet50", "IMAGENET_V2")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_default_preprocess_is_that_of_the_weights(name: str) -> None:
    transforms = find_weights(name, "default").transforms()
    found = default_preprocess(name)
    assert (found.size, found.resize, found.interpolation) == (
        transforms.crop_size[0],
        transforms.resize_size[0],
        transforms.interpolation.value,
    )
    pixels = (torch.rand(3, found.resize + 8, found.resize) * 255).to(torch.uint8)
    ours = found.normalize(found.eval_transform()(pixels).unsqueeze(0))[0]
    assert torch.allclose(ours, transforms(pixels), atol=1e-5)


@pytest.fixture
def weights_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub on 127.0.0.1 with resnet18's weights, random ones under their right digest."""
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    from hashlib import sha256

    name = f"resnet18-{sha256((tmp_path / 'w.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "site").mkdir()
    (tmp_path / "w.pth").rename(tmp_path / "site" / name)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path / "site"))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds until it sees that it is to end
    thread.start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    address = SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/{name}", network=network, weights=weights)
    object.__setattr__(weights.value, "url", address.url)
    yield address
    object.__setattr__(weights.value, "url", "https://download.pytorch.org/models/resnet18-f37072fd.pth")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_create_downloads_checks_and_keeps_weights(
    weights_server: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Backbone.create("resnet18")
    assert backbone.weights_source == "ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(backbone.network.state_dict()["conv1.weight"], weights_server.network.conv1.weight)
    assert cached_weights(weights_server.weights).exists()


def test_create_refuses_a_damaged_cached_file_and_names_it(weights_server: SimpleNamespace) -> None:
    path = cached_weights(weights_server.weights)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*Delete it"):
        Backbone.create("resnet18")


def test_create_offline_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_server: SimpleNamespace
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    object.__setattr__(weights_server.weights.value, "url", "http://127.0.0.1:9/resnet18-f37072fd.pth")
    with pytest.raises(
        FileNotFoundError,
        match=r"could not be downloaded.*put it at .*resnet18-f37072fd.pth.*TORCH_HOME.*model.weights=none",
    ):
        Backbone.create("resnet18")


def _forms(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state},
        "module.": {f"module.{k}": v for k, v in state.items()},
        "_orig_mod.": {f"_orig_mod.{k}": v for k, v in state.items()},
        "both": {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        "trunk": {k: v for k, v in state.items() if not k.startswith("fc.")},
        "old": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    }


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module.", "_orig_mod.", "both", "trunk", "old"])
def test_load_weights_takes_every_form(form: str, tmp_path: Path) -> None:
    source = torchvision.models.resnet18(num_classes=7)
    torch.save(_forms(source.state_dict())[form], tmp_path / "w.pth")
    backbone = Backbone.create("resnet18", str(tmp_path / "w.pth"))
    assert torch.equal(backbone.network.get_parameter("layer4.1.conv2.weight"), source.layer4[1].conv2.weight)
    assert "trunk tensors from" in backbone.weights_source
    assert ("heads ignored" in backbone.weights_source) == (form != "trunk")


def test_load_weights_takes_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    source = torchvision.models.resnet18()
    safetensors.save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone.create("resnet18", str(tmp_path / "w.safetensors"))
    assert torch.equal(backbone.network.get_parameter("conv1.weight"), source.conv1.weight)


def test_load_weights_takes_torchvisions_old_densenet_names(tmp_path: Path) -> None:
    import re

    source = torchvision.models.densenet121()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    backbone = Backbone.create("densenet121", str(tmp_path / "w.pth"))
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(backbone.network.get_parameter(name), source.get_parameter(name))


def test_load_weights_keeps_the_pretrained_part_of_inceptions_auxiliary_branch(tmp_path: Path) -> None:
    source = torchvision.models.inception_v3(weights=None, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = Backbone.create("inception_v3", str(tmp_path / "w.pth"))
    assert torch.equal(
        backbone.network.get_parameter("AuxLogits.conv0.conv.weight"), source.AuxLogits.conv0.conv.weight
    )
    assert backbone.transform_input  # a pretrained inception re-normalises its input


@pytest.mark.parametrize("change", ["missing", "shape", "foreign"])
def test_load_weights_refuses_what_does_not_fit_and_names_it(change: str, tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    if change == "missing":
        del state["layer2.0.conv1.weight"]
    if change == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(2, 2)
    if change == "foreign":
        state = torchvision.models.resnet34().state_dict()
    torch.save(state, tmp_path / "w.pth")
    expected = {
        "missing": r"lacks layer2\.0\.conv1\.weight",
        "shape": r"layer2\.0\.conv1\.weight is \[2, 2\], needs \[128, 64, 3, 3\]",
        "foreign": r"also holds layer1\.2\.conv1\.weight.* and \d+ more.*another model",
    }
    with pytest.raises(ValueError, match=expected[change]):
        load_weights(torchvision.models.resnet18(), tmp_path / "w.pth", find_family("resnet18"))


def test_weights_path_missing_file_says_where_it_looked() -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights=nothing\.pth: there is no such file \(looked in"):
        Backbone.create("resnet18", "nothing.pth")


def test_default_preprocess_of_a_registered_family(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Preprocess(size=64, resize=64)
    family = specs.Family(
        ("mynet",),
        head="1",
        feature_boundary="1",
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        preprocess=own,
    )
    monkeypatch.setitem(FAMILIES, "mynet", family)
    assert default_preprocess("mynet") == own
    backbone = Backbone.create("mynet")
    backbone.replace_head(5)
    assert backbone.network(torch.zeros(2, 3, 2, 2)).shape == (2, 5)


def test_weights_from_a_checkpoint_of_another_model_names_it(tmp_path: Path) -> None:
    save_small_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"is a checkpoint of squeezenet1_1, not of resnet18: give model=squeezenet1_1\."
    ):
        FineTuner("resnet18", classes=2, weights=str(tmp_path / "model.ckpt"))


def test_weights_from_a_checkpoint_keep_its_transform_input(tmp_path: Path) -> None:
    FineTuner("googlenet", classes=2, weights="none").save(tmp_path / "scratch.ckpt")
    module = FineTuner("googlenet", classes=3, weights=str(tmp_path / "scratch.ckpt"))
    assert module.hparams["transform_input"] is False


def test_weights_from_a_checkpoint_with_a_record_that_makes_no_sense(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1()
    content = {"state_dict": network.state_dict(), "callbacks": {"History": {"rows": [5]}}, "hyper_parameters": [1]}
    torch.save(content, tmp_path / "odd.ckpt")
    backbone = Backbone.create("squeezenet1_1", str(tmp_path / "odd.ckpt"))
    assert backbone.weights_source.startswith("50 trunk tensors")


# --- channels ----------------------------------------------------------------------------------------------------


def test_default_preprocess_of_other_channels() -> None:
    one, four = default_preprocess("resnet18", "none", 1), default_preprocess("resnet18", "none", 4)
    assert one.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert one.std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    assert four.mean == (0.485, 0.456, 0.406, 0.485)
    assert (one.size, one.resize) == (224, 256)
    for channels in (1, 4):  # with their own weights, these networks work on (p - 0.5) / 0.5
        for name in ("googlenet", "inception_v3"):
            preprocess = default_preprocess(name, "default", channels)
            assert preprocess.mean == pytest.approx([0.5] * channels)
            assert preprocess.std == pytest.approx([0.5] * channels)


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_of_an_rgb_file_are_adapted(channels: int, tmp_path: Path) -> None:
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    backbone = Backbone.create("resnet18", str(tmp_path / "w.pth"), in_channels=channels)
    weight, rgb = backbone.network.get_parameter("conv1.weight"), source.conv1.weight
    expected = {1: [rgb[:, 0] + rgb[:, 1] + rgb[:, 2]], 4: [0.75 * rgb[:, i] for i in (0, 1, 2, 0)]}[channels]
    assert torch.allclose(weight, torch.stack(expected, dim=1), atol=1e-6)
    assert torch.equal(backbone.network.get_parameter("layer1.0.conv1.weight"), source.layer1[0].conv1.weight)


def test_weights_of_other_channels_are_taken_as_they_are_or_refused(tmp_path: Path) -> None:
    source = save_small_checkpoint(tmp_path / "grey.ckpt", in_channels=1)
    module = FineTuner("squeezenet1_1", classes=2, weights=str(tmp_path / "grey.ckpt"), in_channels=1)
    assert torch.equal(
        module.backbone.get_parameter("features.0.weight"), source.backbone.get_parameter("features.0.weight")
    )
    with pytest.raises(
        ValueError,
        match=r"features.0.weight is \[64, 1, 3, 3\], needs \[64, 3, 3, 3\]. It is of .* model.in_channels=1\.",
    ):
        FineTuner("squeezenet1_1", classes=2, weights=str(tmp_path / "grey.ckpt"))


@pytest.mark.parametrize("channels", [1, 6])
def test_input_that_googlenet_renormalises_is_the_same_in_other_channels(channels: int, tmp_path: Path) -> None:
    rgb = FineTuner("googlenet", classes=2, weights="none", transform_input=True)
    rgb.save(tmp_path / "rgb.ckpt")
    other = FineTuner("googlenet", classes=2, weights=str(tmp_path / "rgb.ckpt"), in_channels=channels)
    assert (rgb.transform_input, other.transform_input) == (True, False)
    grey = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = (
            forward_to(m.eval().backbone, "maxpool1", m.network.normalize(grey.expand(-1, c, -1, -1)))
            for m, c in ((rgb, 3), (other, channels))
        )
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_a_checkpoint_of_another_network_is_refused_though_every_shape_fits(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    FineTuner("timm:tf_efficientnet_lite0", 3, weights="none").save(tmp_path / "a.ckpt")
    with pytest.raises(
        ValueError, match="is a checkpoint of timm:tf_efficientnet_lite0, not of timm:efficientnet_lite0: give"
    ):
        FineTuner("timm:efficientnet_lite0", 3, weights=tmp_path / "a.ckpt")


def test_weights_from_a_checkpoint_bring_the_options_of_their_network(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    first = FineTuner("timm:test_resnet", 3, weights="none", model_options={"global_pool": "max"})
    first.save(tmp_path / "a.ckpt")
    module = FineTuner("timm:test_resnet", 3, weights=tmp_path / "a.ckpt").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(module.features(images), first.eval().features(images))
    assert module.hparams["model_options"] == {"global_pool": "max"}
    other = FineTuner("timm:test_resnet", 3, weights=tmp_path / "a.ckpt", model_options={"global_pool": "avg"})
    assert other.hparams["model_options"] == {"global_pool": "avg"}
