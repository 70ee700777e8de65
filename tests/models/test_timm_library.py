"""Test `finetune.models.timm_library`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.optim import SGD

from finetune import FineTuner, ImageDataModule
from finetune.models import timm_catalog, timm_library
from finetune.models.libraries import default_preprocess, find_library
from tests.helpers import write_images
from tests.models.helpers import CONVNEXT, TIMM_FAMILIES, VIT, TimmFamily
from tests.training.helpers import changed_tensors, snapshot

timm = pytest.importorskip("timm")

every_family = pytest.mark.parametrize("family", TIMM_FAMILIES)


def images_of(family: TimmFamily, n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, family.size, family.size), dtype=torch.uint8)


def randomize_heads(module: FineTuner) -> None:
    """New heads of some networks are zeros, which hide what enters them."""
    with torch.no_grad():
        for name in module._backbone.head_names:
            parameter = module.backbone.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape) * 0.1)


# --- every family ------------------------------------------------------------------------------------------------


@every_family
def test_the_new_parameters_are_those_whose_shapes_the_number_of_classes_changes(family: TimmFamily) -> None:
    three, seven = (dict(family.plain(num_classes=n).named_parameters()) for n in (3, 7))
    changed = {name for name in three if three[name].shape != seven[name].shape}
    module = family.finetuner()
    assert set(module._backbone.head_names) == changed
    assert {n for n, p in module.backbone.named_parameters() if p.requires_grad} == changed


@every_family
def test_logits_are_those_of_timms_own_network_with_the_exported_weights(family: TimmFamily) -> None:
    module, plain = family.finetuner().eval(), family.plain()
    randomize_heads(module)
    plain.load_state_dict(module.backbone.state_dict(), strict=True)
    images = images_of(family)
    with torch.no_grad():
        expected = plain.eval()(family.normalize(images))
        assert torch.allclose(module(images), expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


@every_family
@pytest.mark.parametrize("strategy", ["finetune", "feature_extract"])
def test_a_step_changes_what_the_strategy_trains(family: TimmFamily, strategy: str) -> None:
    module = family.finetuner(strategy)
    randomize_heads(module)
    before = snapshot(module)
    optimizer = SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.train().training_step((images_of(family), torch.tensor([0, 1])), 0).backward()
    optimizer.step()
    changed, new = changed_tensors(before, module), set(module._backbone.head_names)
    assert new <= changed
    assert (changed == new) == (strategy == "feature_extract")
    if strategy == "finetune":  # gradients reach the trunk's first layer with weights
        first = next(n for n, p in module.backbone.named_parameters() if n.endswith("weight") and p.ndim == 4)
        assert first in changed


@every_family
def test_a_checkpoint_gives_the_network_back(family: TimmFamily, tmp_path: Path) -> None:
    module = family.finetuner().eval()
    randomize_heads(module)
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    images = images_of(family)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module(images))
    assert loaded.preprocess == module.preprocess


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few") / "photos"
    classes = ("cat", "dog", "emu")
    return write_images(root, {"train": dict.fromkeys(classes, 2), "val": dict.fromkeys(classes, 1)}, 64)


@every_family
def test_training_on_kept_features_is_training_on_pixels(
    family: TimmFamily, few: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, heads = [], []
    for cache in ("auto", "never"):
        torch.manual_seed(0)
        module = family.finetuner(optimizer=partial(SGD, lr=0.01))
        module.strategy.cache = cache
        data = ImageDataModule(few, batch_size=3, num_workers=0, augment="none", cache_dir=tmp_path)
        runner = trainer(2)
        runner.fit(module, datamodule=data)
        told = " ".join(capsys.readouterr().out.split())
        if cache == "auto":
            boundary = module.family.feature_boundary
            assert (f"before {boundary}, computed in" in told) == family.is_cached
            assert ("computed again in every step" in told) != family.is_cached
        metrics = runner.callback_metrics
        values.append([float(metrics[name]) for name in ("train/loss", "val/loss", "val/acc")])
        heads.append(torch.cat([snapshot(module)[name].flatten() for name in module._backbone.head_names]))
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert torch.allclose(heads[0], heads[1], atol=1e-5 * max(1.0, float(heads[1].abs().max())))


@pytest.mark.parametrize("family", [VIT, CONVNEXT], ids=["test_vit", "test_convnext2"])
def test_a_trunk_of_which_the_end_is_trained_is_split_there(
    family: TimmFamily, few: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = "blocks.5" if family is VIT else "stages.3"
    groups = [{"match": "@head"}, {"match": f"{last}|norm|head"}, {"match": ".*", "start": None}]
    weights, losses = [], []
    for cache in ("auto", "never"):
        torch.manual_seed(0)
        module = family.finetuner({"groups": groups, "cache": cache}, optimizer=partial(SGD, lr=0.01))
        data = ImageDataModule(few, batch_size=3, num_workers=0, augment="none", cache_dir=tmp_path)
        runner = trainer(2)
        runner.fit(module, datamodule=data)
        if cache == "auto":
            told = " ".join(capsys.readouterr().out.split())  # a ViT takes its class token outside of any module
            how = "more than its modules one after another" if family is VIT else f"before {last}, computed in"
            assert how in told
        weights.append(snapshot(module))
        losses.append([float(runner.callback_metrics[name]) for name in ("train/loss", "val/loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in weights[1].items():
        assert torch.allclose(weights[0][name], value, atol=1e-5), name


# --- preprocessing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t.c3_in1k",  # 176 pixels, crop share 0.95
        "tf_efficientnet_lite0.in1k",  # 0.5 as mean and deviation
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "regnetx_002.pycls_in1k",
        "inception_v3.tf_adv_in1k",  # 299 pixels
        "vit_base_patch32_clip_224.laion2b_ft_in1k",  # CLIP's mean, crop share 0.9
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",  # crop share 1
    ],
)
def test_preprocessing_is_timms_own(name: str) -> None:
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    preprocess = default_preprocess(f"timm:{name}")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    picture = small.resize((500, 400), Image.Resampling.BICUBIC)
    expected = timm.data.create_transform(**config)(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    found = preprocess.normalize(preprocess.eval_transform()(pixels).unsqueeze(0))[0]
    assert found.shape == expected.shape == config["input_size"]
    steps = (found - expected).abs() * 255 * torch.tensor(config["std"]).view(3, 1, 1)
    assert float(steps.mean()) < 0.5
    assert float(steps.max()) < 2.5  # two roundings to whole pixel values


def test_every_architecture_of_timm_has_a_preprocessing() -> None:
    names = timm.list_models()
    assert len(names) > 1000
    library = find_library("timm:resnet10t")
    for name in names:
        config: Any = timm.get_pretrained_cfg(name)
        found = library.preprocess(f"timm:{name}", "default")
        expected = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
        assert (found.size, found.mean, found.std) == (expected["input_size"][-1], expected["mean"], expected["std"])
        assert found.interpolation == expected["interpolation"]


# --- options -----------------------------------------------------------------------------------------------------


def test_options_reach_timms_constructor() -> None:
    options = {"drop_path_rate": 0.2, "drop_rate": 0.3, "img_size": 64, "in_chans": 1, "global_pool": "avg"}
    module = FineTuner("timm:test_vit", 3, weights="none", model_options=options)
    backbone: Any = module.backbone
    expected = timm.create_model("test_vit", num_classes=3, **options)
    state = backbone.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert backbone.head_drop.p == 0.3
    assert backbone.blocks[5].drop_path1.drop_prob == pytest.approx(0.2)
    assert backbone.global_pool == "avg"
    assert (module.preprocess.size, module.preprocess.channels) == (64, 1)
    assert module.hparams["in_channels"] == 1
    assert module.eval()(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rat": 0.1}, r"timm:test_vit cannot be built with drop_rat=0.1, .*: .*'drop_rat'\.$"),
        ({"global_pool": "avgg"}, r"timm:test_vit cannot be built with global_pool=avgg, .*: (Only avg|Assert)"),
        ({"drop_path_rate": "a"}, r"timm:test_vit cannot be built with drop_path_rate=a, .*: linspace\(\).*[^:]\.$"),
        ({"global_pool": ""}, "global_pool is empty: a classifier needs"),
        ({"num_classes": 5}, "model.options has num_classes, .*an output for each class"),
        ({"pretrained": True}, "model.options has pretrained, .*give model.weights"),
        ({"pretrained_cfg": "x"}, "model.options has pretrained_cfg, .*model.name=NAME.TAG"),
        ({"checkpoint_path": "x"}, "model.options has checkpoint_path, .*model.weights=FILE"),
        ({"features_only": True}, "model.options has features_only, .*a classifier has a head"),
        ({"img_size": [64, 32]}, r"img_size=\[64, 32\]: images are squares here"),
        ({"img_size": 1.5}, "img_size takes a whole number of pixels, got 1.5"),
        ({"img_size": "big"}, "img_size takes a whole number of pixels, got 'big'"),
        ({"img_size": 96}, r"model.options.img_size=96, and the images have 64 pixels \(data.image_size\): say one"),
        ({"in_chans": 1}, "model.options.in_chans=1, and model.in_channels=4: say one"),
    ],
)
def test_what_is_wrong_with_options_is_said_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FineTuner("timm:test_vit", 3, weights="none", model_options=options, in_channels=4, preprocess={"size": 64})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("test_vit", 65, "Input height .65. should be divisible by patch size .16."),
        ("inception_v3", 64, "Kernel size can't be greater than actual input size"),
    ],
)
def test_a_size_that_a_network_cannot_take_is_refused_before_any_training(model: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"timm:{model} cannot take images of {size} pixels: .*{message}"):
        FineTuner(f"timm:{model}", 3, weights="none", preprocess={"size": size})


def test_options_are_for_models_that_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_options are for a model that is built by name"):
        FineTuner(torch.nn.Linear(3, 2), 2, head="", model_options={"drop_rate": 0.1})
    with pytest.raises(ValueError, match=r"resnet18 cannot be built with model.options=.*'drop_rate'"):
        FineTuner("resnet18", 2, weights="none", model_options={"drop_rate": 0.1})


def test_options_survive_a_checkpoint(tmp_path: Path) -> None:
    options = {"drop_path_rate": 0.2, "img_size": 64, "global_pool": "avg"}
    module = FineTuner("timm:test_vit", 3, weights="none", model_options=options).eval()
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    backbone: Any = loaded.backbone
    assert backbone.blocks[5].drop_path1.drop_prob == pytest.approx(0.2)
    assert backbone.global_pool == "avg"
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module(images))


def test_a_run_is_not_resumed_with_other_options(few: Path, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def make(rate: float) -> tuple[FineTuner, ImageDataModule]:
        module = FineTuner("timm:test_resnet", ["cat", "dog", "emu"], weights="none", preprocess={"size": 32},
                           model_options={"drop_rate": rate})  # fmt: skip
        return module, ImageDataModule(few, batch_size=3, num_workers=0, augment="none", cache_dir=tmp_path)

    module, data = make(0.1)
    runner = trainer(1)
    runner.fit(module, datamodule=data)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    other, data = make(0.2)
    with pytest.raises(ValueError, match=r"of another run: .*drop_rate"):
        trainer(2).fit(other, datamodule=data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    same, data = make(0.1)
    runner = trainer(2)
    runner.fit(same, datamodule=data, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert runner.current_epoch == 2


def test_a_dropout_that_is_no_module_is_not_cached_away(
    few: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = FineTuner("timm:test_resnet", ["cat", "dog", "emu"], weights="none", preprocess={"size": 32},
                       model_options={"drop_rate": 0.5})  # fmt: skip
    data = ImageDataModule(few, batch_size=3, num_workers=0, augment="none", cache_dir=tmp_path)
    trainer(1).fit(module, datamodule=data)
    assert "computed again in every step" in " ".join(capsys.readouterr().out.split())


# --- weights -----------------------------------------------------------------------------------------------------


def trunk_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


@pytest.mark.parametrize("kind", ["other classes", "safetensors", "prefix", "under state_dict", "checkpoint"])
def test_a_file_of_timms_naming_is_loaded(kind: str, tmp_path: Path) -> None:
    network = VIT.plain(img_size=160, num_classes=10 if kind == "other classes" else 1000)
    state, path = network.state_dict(), tmp_path / "weights.pth"
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif kind == "checkpoint":
        path = tmp_path / "weights.ckpt"
        module = FineTuner("timm:test_vit", 7, weights="none")
        module.backbone.load_state_dict(trunk_of(state), strict=False)
        module.save(path)
    else:
        prefix = "module." if kind == "prefix" else ""
        tensors = {prefix + name: value for name, value in state.items()}
        torch.save({"state_dict": tensors} if kind == "under state_dict" else tensors, path)
    module = FineTuner("timm:test_vit", 3, weights=str(path))
    assert module.weights_source.startswith(f"78 trunk tensors from {path} ")
    for name, value in trunk_of(state).items():
        assert torch.equal(module.backbone.state_dict()[name], value), name


@pytest.mark.parametrize(("of", "to"), [(96, 160), (160, 64)])
def test_positions_of_a_file_for_another_size_are_what_timm_makes_of_them(of: int, to: int, tmp_path: Path) -> None:
    source = VIT.plain(img_size=of, num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = FineTuner("timm:test_vit", 3, weights=str(tmp_path / "w.pth"), preprocess={"size": to})
    assert "fitted by timm" in module.weights_source
    overlay = {"file": str(tmp_path / "w.pth")}
    expected = timm.create_model("test_vit", img_size=to, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    for name, value in trunk_of(expected).items():
        assert torch.equal(module.backbone.state_dict()[name], value), name
    assert module.eval()(torch.zeros(1, 3, to, to, dtype=torch.uint8)).shape == (1, 3)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_file_for_rgb_is_fitted_to_other_channels(channels: int, tmp_path: Path) -> None:
    source = CONVNEXT.plain(num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = FineTuner("timm:test_convnext2", 3, weights=str(tmp_path / "w.pth"), in_channels=channels)
    first = source.state_dict()["stem.0.weight"]
    expected = first.sum(1, keepdim=True) if channels == 1 else first[:, [0, 1, 2, 0]] * 0.75
    assert torch.allclose(module.backbone.state_dict()["stem.0.weight"], expected, atol=1e-6)


# timm loads `dla46_c` without being strict
@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("test_resnet", "test_vit", "it lacks cls_token"),
        ("test_vit", "test_vit2", "it lacks reg_token"),
        ("vit_tiny_patch16_224", "test_vit", r"cls_token is \[1, 1, 192\], needs \[1, 1, 64\]"),
        ("test_convnext2", "test_convnext3", r"conv_dw.weight is \[64, 1, 7, 7\], needs \[64, 1, 5, 5\]"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "it has another shape: pos_embed"),
        ("test_resnet", "dla46_c", "it lacks base_layer.0.weight"),
    ],
)
def test_a_file_of_another_network_is_refused(
    source: str, model: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(timm.create_model(source).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth does not fit .*{message}.*another model") as error:
        FineTuner(f"timm:{model}", 3, weights=str(tmp_path / "w.pth"))
    assert "\n" not in str(error.value)
    assert not caplog.records  # timm's own warnings hold the names of hundreds of tensors


@pytest.mark.parametrize("model", ["test_vit", "dla46_c"])
@pytest.mark.parametrize("size", [None, 64])
def test_a_file_that_lacks_a_part_of_the_trunk_is_refused(model: str, size: int | None, tmp_path: Path) -> None:
    state = timm.create_model(model).state_dict()
    lost = [name for name in state if name.startswith(("blocks.3.norm1", "level2.root"))]
    assert lost
    torch.save({f"module.{n}": v for n, v in state.items() if n not in lost}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"it lacks {lost[0]}"):
        FineTuner(f"timm:{model}", 3, weights=str(tmp_path / "w.pth"), preprocess={"size": size})


def fake_hub(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor] | Exception) -> None:
    """Timm's hub on this machine: it has these tensors for every model, or fails."""

    def fetch(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        if isinstance(state, Exception):
            raise state
        return dict(state)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fetch)
    monkeypatch.setattr(timm_catalog, "getproxies", lambda: {"https": "http://127.0.0.1:1"})  # no host is looked up
    monkeypatch.setattr(timm_library, "cached_file", lambda cfg: None)


def test_default_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    state = CONVNEXT.plain(num_classes=1000).state_dict()
    fake_hub(monkeypatch, state)
    module = FineTuner("timm:test_convnext2", 3)
    assert module.weights_source == "timm's timm/test_convnext2.r160_in1k"
    for name in (n for n in state if not n.startswith("head.fc")):
        assert torch.equal(module.backbone.state_dict()[name], state[name]), name


def test_default_weights_for_another_size_are_said_to_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, VIT.plain(img_size=160, num_classes=1000).state_dict())
    module = FineTuner("timm:test_vit", 3, preprocess={"size": 64})
    assert module.weights_source == "timm's timm/test_vit.r160_in1k, fitted to 64 pixels"


def test_weights_without_a_layer_that_an_option_adds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, VIT.plain(img_size=160, num_classes=1000).state_dict())
    with pytest.raises(
        ValueError, match=r"weights of timm:test_vit do not fit it with global_pool=avg: .*fc_norm"
    ) as e:
        FineTuner("timm:test_vit", 3, model_options={"global_pool": "avg"})
    assert "\n" not in str(e.value)


def test_weights_that_timm_loads_loosely_leave_no_layer_random(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("dla46_c").state_dict()
    without_layer = {n: v for n, v in state.items() if not n.startswith("level3.tree1.tree1.conv1")}
    fake_hub(monkeypatch, without_layer)
    with pytest.raises(ValueError, match=r"dla46_c do not fit it.*: they lack level3\.tree1\.tree1\.conv1\.weight\."):
        FineTuner("timm:dla46_c", 3)
    fake_hub(monkeypatch, {n: v for n, v in state.items() if n != "level3.tree1.tree1.bn1.weight"})
    module = FineTuner("timm:dla46_c", 3)  # a norm that does nothing: it is said
    assert module.weights_source == "timm's timm/dla46_c.in1k, without level3.tree1.tree1.bn1.weight (untrained)"


def test_weights_without_a_classifier_are_loaded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("convnextv2_atto", num_classes=0)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    fake_hub(monkeypatch, state)  # of masked autoencoders: the norm after the pooling is not among them
    module = FineTuner("timm:convnextv2_atto.fcmae", 3)
    expected = "timm's timm/convnextv2_atto.fcmae, without head.norm.weight, head.norm.bias (untrained)"
    assert module.weights_source == expected
    assert module._backbone.head_names == ["head.fc.weight", "head.fc.bias"]
    assert all(torch.equal(module.backbone.state_dict()[name], value) for name, value in state.items())


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ConnectionError("no route\nmore"))
    with pytest.raises(
        FileNotFoundError, match=r"could not be downloaded \(no route\)\. .*model.weights=FILE.*HF_HOME"
    ):
        FineTuner("timm:test_vit", 3)
    with pytest.raises(
        ValueError, match=r"timm:test_vit cannot be built with drop_rat=1"
    ):  # before anything is fetched
        FineTuner("timm:test_vit", 3, model_options={"drop_rat": 1})


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("timm:resnett10t", "none", "no model of timm 'resnett10t'. The nearest are resnet10t"),
        ("timm:resnet10t.c3_in1", "none", "no tag of timm's resnet10t 'c3_in1'. The nearest is c3_in1k"),
        ("timm:resnet10t", "defaul", r"no model.weights for timm:resnet10t 'defaul'. The nearest is default"),
        ("timm:regnetx_002", "package", r"no model.weights for timm:regnetx_002 'package'"),
        ("timm:mobilenetv5_300m_enc", "none", "has no classifier"),
    ],
)
def test_unknown_names_are_told_the_nearest(model: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner(model, 3, weights=weights)
