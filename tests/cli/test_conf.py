"""Test the files of `conf/`: each composes, says what it is for, and names a class that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.cli import factories, groups, instantiate, validation
from finetune.cli.logger_keys import EXTRAS
from finetune.cli.recipes import expand_recipes
from finetune.io import paths
from finetune.metrics.classification import monitor_mode
from finetune.training.strategy import ParamGroup, Strategy, strategy_names
from tests.cli.helpers import compose_train

YAMLS = sorted(
    p.relative_to(paths.CONF).as_posix()
    for p in paths.CONF.rglob("*.yaml")
    # all but one of the models are two lines, see test_groups
    if p.parent.parent.name != "hydra" and (p.parent.name != "model" or p.stem in ("_base", "resnet18"))
)


GROUPS = [y for y in YAMLS if "/" in y and not Path(y).name.startswith("_") and not y.startswith("hydra/")]


@pytest.mark.usefixtures("hydra_configuration")
def test_defaults_are_the_contract() -> None:
    cfg: Any = OmegaConf.to_container(compose_train(), resolve=False)
    expected = {
        "model": {
            "library": "torchvision",
            "name": "resnet18",
            "weights": "default",
            "head_init": "default",
            "in_channels": 3,
            "options": None,
            "preprocess": None,
        },
        "loss": {
            "_target_": "torch.nn.CrossEntropyLoss",
            "label_smoothing": 0,
            "class_weights": "none",
            "aux": None,
            "mixup": 0,
            "cutmix": 0,
        },
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


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize("path", GROUPS)
def test_every_yaml_composes_and_passes_the_check(path: str) -> None:
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    if group == "logger" and name in EXTRAS:
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    root = ["data.root=."] if path in ("data/imagefolder.yaml", "data/csv.yaml") else []
    word = f"{'+' if group in ('callbacks', 'metrics') else ''}{group}={name}"
    cfg = compose_train(*(expand_recipes([f"preset={name}"]) if group == "presets" else [word]), *root)
    validation.validate(cfg)
    visible = {k: v for k, v in cfg.items() if k != "logger"}  # loggers name the run folder, which is not there yet
    OmegaConf.to_container(OmegaConf.create(visible), resolve=True, throw_on_missing=True)
    assert list(paths.CONF.glob(f"{group}/{name}.yaml"))


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize("name", strategy_names())
def test_strategies_are_the_same_with_and_without_hydra(name: str) -> None:
    composed: Any = OmegaConf.to_container(compose_train(f"strategy={name}").strategy)
    loaded = Strategy.load(name).to_dict()
    assert Strategy.load({**composed, "name": name}).to_dict() == loaded
    shared: Any = OmegaConf.to_container(OmegaConf.load(paths.CONF / "strategy" / "_base.yaml"))
    assert {key: composed[key] for key in shared} == {key: loaded[key] for key in shared}


@pytest.mark.usefixtures("hydra_configuration")
def test_values_that_strategies_share_are_the_defaults_of_the_class() -> None:
    shared: Any = OmegaConf.to_container(OmegaConf.load(paths.CONF / "strategy" / "_base.yaml"))
    assert list(shared) == ["pretrained", "frozen_norm", "decay", "cache", "views", "cache_dtype", "solve_head"]
    assert shared.items() <= Strategy([ParamGroup(match=".*")]).to_dict().items()


@pytest.mark.parametrize("path", YAMLS)
def test_every_yaml_says_what_it_is_for(path: str) -> None:
    text = (paths.CONF / path).read_text()
    assert "#" in text or path.startswith(("trainer/", "optimizer/", "hydra/", "model/r"))
    assert "=" not in Path(path).name
    if path.startswith("experiment/"):
        assert f"python -m finetune.train experiment={Path(path).stem}" in text


KINDS: dict[str, Any] = {"optimizer": Optimizer, "scheduler": LRScheduler, "trainer": Trainer}


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize("path", [y for y in GROUPS if y.split("/")[0] in KINDS])
def test_every_target_is_allowed_and_takes_its_arguments(path: str) -> None:
    group, name = path.removesuffix(".yaml").split("/")
    spec: Any = OmegaConf.to_container(compose_train(f"{group}={name}")[group])
    if not spec["_target_"]:
        return
    for ours in ("warmup", "interval", "compile"):
        spec.pop(ours, None)
    assert instantiate.factory(spec, KINDS[group]).func.__name__ == spec["_target_"].rpartition(".")[2]


@pytest.mark.usefixtures("hydra_configuration")
def test_every_callback_and_dataset_is_allowed() -> None:
    for name in groups.group_options("callbacks"):
        for spec in compose_train(f"+callbacks={name}").callbacks.values():
            values: Any = OmegaConf.to_container(spec, resolve=True)
            assert isinstance(factories.make_callback(values, monitor_mode), Callback)


@pytest.mark.usefixtures("hydra_configuration")
def test_hotdog_arithmetic_turns_the_books_sum_into_our_mean() -> None:
    cfg = compose_train("experiment=hotdog_resnet18")
    batch = cfg.data.batch_size
    head, trunk = cfg.strategy.groups
    assert cfg.optimizer.lr * trunk.lr == pytest.approx(batch * 5e-5)
    assert cfg.optimizer.lr * head.lr == pytest.approx(10 * batch * 5e-5)
    assert cfg.optimizer.weight_decay == pytest.approx(1e-3 / batch)
    assert (batch, cfg.trainer.max_epochs, cfg.optimizer.momentum, cfg.model.head_init) == (128, 5, 0, "xavier_normal")
    scratch = compose_train("experiment=hotdog_scratch")
    assert scratch.optimizer.lr == pytest.approx(batch * 5e-4)
