from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from finetune.cli import factories, groups, instantiate, run_folder, validation
from finetune.io import paths
from finetune.models.specs import FAMILIES
from finetune.training.strategy import ParamGroup, Strategy, strategy_names

YAMLS = sorted(
    p.relative_to(paths.CONF).as_posix() for p in paths.CONF.rglob("*.yaml") if p.parent.parent.name != "hydra"
)
GROUPS = [y for y in YAMLS if "/" in y and not Path(y).name.startswith("_") and not y.startswith("hydra/")]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    OmegaConf.register_new_resolver("unique_dir", run_folder.unique_dir, replace=True)
    groups.register_models()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        yield


def compose(*overrides: str) -> DictConfig:
    return hydra.compose("train", list(overrides))


def test_defaults_are_the_contract() -> None:
    cfg: Any = OmegaConf.to_container(compose(), resolve=False)
    expected = {
        "model": {"name": "resnet18", "weights": "default", "head_init": "default", "preprocess": None},
        "loss": {"label_smoothing": 0, "class_weights": "none", "aux": None, "mixup": 0, "cutmix": 0},
        "seed": 0,
        "ckpt_path": None,
    }
    assert {k: cfg[k] for k in expected} == expected
    data = {
        "val_fraction": 0.2, "val": None, "classes": None, "per_class": None, "batch_size": 32, "num_workers": "auto",
        "image_size": None, "augment": "auto", "cache_images": "auto", "on_bad_file": "skip",
    }  # fmt: skip
    assert data.items() <= cfg["data"].items()
    assert {"root", "url"} <= cfg["data"].keys()
    assert (cfg["strategy"]["cache"], cfg["strategy"]["views"]) == ("auto", 1)
    assert (cfg["optimizer"]["lr"], cfg["optimizer"]["momentum"], cfg["optimizer"]["weight_decay"]) == (1e-3, 0.9, 0)
    assert (cfg["trainer"]["max_epochs"], cfg["trainer"]["precision"], cfg["trainer"]["compile"]) == (
        15,
        "auto",
        "auto",
    )
    assert {"data_dir", "cache_dir", "cache_gib"} <= cfg["paths"].keys()
    assert "callbacks" not in cfg


@pytest.mark.parametrize("path", GROUPS)
def test_every_yaml_composes_and_passes_the_check(path: str) -> None:
    group, name = path.removesuffix(".yaml").split("/")
    root = ["data.root=."] if path in ("data/imagefolder.yaml", "data/csv.yaml") else []
    cfg = compose(f"{'+' if group == 'callbacks' else ''}{group}={name}", *root)
    validation.validate(cfg)
    visible = {k: v for k, v in cfg.items() if k != "logger"}  # loggers name the run folder, which is not there yet
    OmegaConf.to_container(OmegaConf.create(visible), resolve=True, throw_on_missing=True)
    assert list(paths.CONF.glob(f"{group}/{name}.yaml"))


@pytest.mark.parametrize("name", strategy_names())
def test_strategies_are_the_same_with_and_without_hydra(name: str) -> None:
    composed: Any = OmegaConf.to_container(compose(f"strategy={name}").strategy)
    loaded = Strategy.load(name).to_dict()
    assert Strategy.load({**composed, "name": name}).to_dict() == loaded
    shared: Any = OmegaConf.to_container(OmegaConf.load(paths.CONF / "strategy" / "_base.yaml"))
    assert {key: composed[key] for key in shared} == {key: loaded[key] for key in shared}


def test_values_that_strategies_share_are_the_defaults_of_the_class() -> None:
    shared: Any = OmegaConf.to_container(OmegaConf.load(paths.CONF / "strategy" / "_base.yaml"))
    assert list(shared) == ["pretrained", "frozen_norm", "cache", "views", "cache_dtype"]
    assert shared.items() <= Strategy([ParamGroup(match=".*")]).to_dict().items()


@pytest.mark.parametrize("path", YAMLS)
def test_every_yaml_says_what_it_is_for(path: str) -> None:
    text = (paths.CONF / path).read_text()
    assert "#" in text or path.startswith(("trainer/", "optimizer/", "hydra/"))
    assert "=" not in Path(path).name
    if path.startswith("experiment/"):
        assert f"python -m finetune.train experiment={Path(path).stem}" in text


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if i % 8 == 0 else [pytest.mark.slow]) for i, name in enumerate(sorted(FAMILIES))],
)
def test_every_model_is_an_option(name: str) -> None:
    assert compose(f"model={name}").model.name == name
    assert name in groups.group_options("model")


KINDS: dict[str, Any] = {"optimizer": Optimizer, "scheduler": LRScheduler, "trainer": Trainer}


@pytest.mark.parametrize("path", [y for y in GROUPS if y.split("/")[0] in KINDS])
def test_every_target_is_allowed_and_takes_its_arguments(path: str) -> None:
    group, name = path.removesuffix(".yaml").split("/")
    spec: Any = OmegaConf.to_container(compose(f"{group}={name}")[group])
    if not spec["_target_"]:
        return
    for ours in ("warmup", "compile"):
        spec.pop(ours, None)
    assert instantiate.factory(spec, KINDS[group]).func.__name__ == spec["_target_"].rpartition(".")[2]


def test_every_callback_and_dataset_is_allowed() -> None:
    for name in groups.group_options("callbacks"):
        for spec in compose(f"+callbacks={name}").callbacks.values():
            assert isinstance(factories.make_callback(OmegaConf.to_container(spec, resolve=True)), Callback)  # type: ignore[arg-type]
    for name in ("cifar10", "cifar100", "flowers102"):
        assert instantiate.factory(compose(f"data={name}").data.dataset, Dataset)


def test_hotdog_arithmetic_turns_the_books_sum_into_our_mean() -> None:
    cfg = compose("experiment=hotdog_resnet18")
    batch = cfg.data.batch_size
    head, trunk = cfg.strategy.groups
    assert cfg.optimizer.lr * trunk.lr == pytest.approx(batch * 5e-5)
    assert cfg.optimizer.lr * head.lr == pytest.approx(10 * batch * 5e-5)
    assert cfg.optimizer.weight_decay == pytest.approx(1e-3 / batch)
    assert (batch, cfg.trainer.max_epochs, cfg.optimizer.momentum, cfg.model.head_init) == (128, 5, 0, "xavier_normal")
    scratch = compose("experiment=hotdog_scratch")
    assert scratch.optimizer.lr == pytest.approx(batch * 5e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "os.system is not allowed"),
        ("builtins.open", "is not allowed"),
        ("torch.load", "is not allowed"),
        ("torch.hub.load", "is not allowed"),
        ("pathlib.Path", "is not allowed"),
        ("torch.optim.Adma", r"no class in torch\.optim 'Adma'.*Adam"),
        ("torch.optim.nothing.SGD", "cannot be imported"),
        ("torch.optim.lr_scheduler.StepLR", "is not a Optimizer"),
        ("torchvision.datasets.CIFAR10", "is not a Optimizer"),
        ("finetune.io.download.fetch", "is not a Optimizer"),
        ("torch.optim.optimizer.warnings", "is not a Optimizer"),
        (None, "named by _target_"),
    ],
)
def test_factory_refuses_what_is_not_an_allowed_class(target: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instantiate.factory({"_target_": target, "command": "touch /tmp/x"}, Optimizer)


def test_factory_wrong_argument_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'learning_rate'.*It takes lr, momentum"):
        instantiate.factory({"_target_": "torch.optim.SGD", "learning_rate": 1}, Optimizer)


def test_factory_more_prefixes_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        instantiate.factory({"_target_": "torch.nn.Linear"}, torch.nn.Module)
    monkeypatch.setenv("FINETUNE_ALLOW", "torch.nn")
    make = instantiate.factory({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, torch.nn.Module)
    assert make().out_features == 3


def test_check_reports_all_faults_at_once() -> None:
    cfg = compose("optimizer.lr=-1", "data.batch_size=0", "data.augment=trivail", "trainer.max_epochs=abc")
    with pytest.raises(ValueError, match=r"trivail") as error:
        validation.validate(cfg)
    first, *lines = str(error.value).splitlines()
    assert first == "4 things are wrong:"
    assert len(lines) == 4
    assert "nearest are trivial" in lines[0]
    assert "- optimizer.lr must be a number from 0 on, got -1." in lines
    assert "- data.batch_size must be a whole number from 1 on, got 0." in lines
    assert "- trainer.max_epochs must be a whole number from -1 on, got abc." in lines


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "seed=4294967296",
        "data.val_fraction=1.2",
        "data.num_workers=-1",
        "data.num_workers=many",
        "loss.label_smoothing=2",
        "optimizer.lr=nan",
        "data.batch_size=2.5",
        "strategy.views=0",
        "loss.class_weights=some",
        "trainer.compile=yes",
        "data.per_class=0",
    ],
)
def test_check_ranges(override: str) -> None:
    with pytest.raises(ValueError, match=override.split("=")[0]):
        validation.validate(compose(override))


def test_check_unknown_top_level_key_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no key 'modle'.*model"):
        validation.validate(compose("+modle=resnet18"))


def test_claim_folder_belongs_to_one_run(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"a": 1})
    run_folder.claim_folder(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(FileExistsError, match="holds another run"):
        run_folder.claim_folder(cfg, tmp_path / "run")
