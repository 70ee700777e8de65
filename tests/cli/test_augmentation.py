"""Test `finetune.cli.augmentation`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torchvision.transforms import v2

from finetune import Preprocess
from finetune.cli import augmentation, factories
from finetune.io import paths
from tests.cli.helpers import compose_train
from tests.helpers import TINY, faults_of

V2 = "torchvision.transforms.v2."


def test_a_list_becomes_the_transforms_that_it_names_with_the_size_of_the_images() -> None:
    made: Any = augmentation.make_augmentation(
        [
            {"_target_": f"{V2}RandomResizedCrop", "scale": [0.5, 1]},
            {
                "_target_": f"{V2}RandomApply",
                "p": 0.3,
                "transforms": [{"_target_": f"{V2}GaussianBlur", "kernel_size": 3}],
            },
            {"_target_": f"{V2}CenterCrop", "size": 20},
            {"_target_": f"{V2}Resize", "size": None},
        ],
        24,
    )
    by_hand = v2.Compose(
        [
            v2.RandomResizedCrop([24, 24], scale=(0.5, 1)),
            v2.RandomApply([v2.GaussianBlur(3)], p=0.3),
            v2.CenterCrop(20),
            v2.Resize([24, 24]),
        ]
    )
    pixels = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    for seed in range(4):
        results = []
        for transform in (made, by_hand):
            torch.manual_seed(seed)
            results.append(transform(pixels))
        assert torch.equal(*results)
    assert made.transforms[1].p == 0.3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": f"{V2}RandomResizedCrob"}, "no class in torchvision.transforms.v2 'RandomResizedCrob'"),
        ({"_target_": f"{V2}RandomRotation"}, "RandomRotation: .*degrees"),
        ({"_target_": f"{V2}RandomRotation", "degrees": 3, "angle": 4}, "unexpected keyword argument 'angle'"),
        ({"_target_": "torch.optim.SGD", "lr": 1}, "is not a Transform from"),
        ({"_target_": "os.system"}, "os.system is not allowed"),
    ],
)
def test_a_wrong_transform_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation.make_augmentation([spec], 24)


NAMES = sorted(path.stem for path in (paths.CONF / "data" / "augment").iterdir())


@pytest.mark.usefixtures("hydra_configuration")
@pytest.mark.parametrize("name", NAMES)
def test_both_spellings_of_a_built_in_augmentation_are_the_same(name: str) -> None:
    key, group = (
        compose_train(word, "data=cifar10", f"data{sep}augment={name}")
        for word, sep in (("seed=0", "."), ("seed=0", "/"))
    )
    assert OmegaConf.to_container(key, resolve=False) == OmegaConf.to_container(group, resolve=False)
    assert key.data.augment == name


@pytest.mark.usefixtures("hydra_configuration")
def test_a_chosen_file_wins_over_an_experiment() -> None:
    assert compose_train("experiment=tutorial_finetune").data.augment == "basic"
    assert compose_train("experiment=tutorial_finetune", "data/augment=trivial").data.augment == "trivial"


def test_a_list_is_the_train_transform_where_something_is_trained() -> None:
    data = {
        "augment": {"transforms": [{"_target_": f"{V2}RandomResizedCrop"}]}, "image_size": 48, "dataset": None, "batch_size": 8,
    }  # fmt: skip
    cfg: Any = OmegaConf.create({"data": data, "paths": {"cache_dir": None, "cache_gib": None}})
    options = factories.data_options(cfg, Preprocess())
    assert options["train_transform"].transforms[0].size == [48, 48]
    assert "augment" not in options
    assert "train_transform" not in factories.data_options(cfg)


@pytest.mark.parametrize(
    "value", ["{foo:1}", "{transforms:[]}", "{transforms:[1]}", "{transforms:{_target_:a}}", "{transforms:basic}"]
)
def test_what_is_no_list_of_transforms_is_refused(value: str) -> None:
    (fault,) = faults_of("train", f"data.augment={value}", "data.root=.")[:1]
    assert fault.startswith("data.augment takes a name, or a list of transforms")


def test_unknown_names_have_the_nearest_and_the_way_to_ones_own() -> None:
    assert "The nearest are augmix" in faults_of("train", "data/augment=augmx")[0]
    assert "A YAML file of your own is data/augment=mine." in faults_of("train", "data.augment=mine")[0]
    assert "data/augment= takes a name of that group" in faults_of("train", "data/augment=null")[0]


def test_a_run_trains_on_the_transforms_of_a_file_beside_ours(
    command: Callable[..., tuple[Path, int]], photos: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine" / "data" / "augment" / "plain.yaml"
    own.parent.mkdir(parents=True)
    lines = ["transforms:", f"- {{_target_: {V2}Resize, size: [37, 37]}}", f"- {{_target_: {V2}CenterCrop}}"]
    own.write_text("\n".join(lines))  # what images of 32 pixels get without augmentation: 32 * 256 / 224 is 36.6
    losses = []
    for words in (["data.augment=none"], ["--config-dir", str(tmp_path / "mine"), "data/augment=plain"]):
        folder, code = command("train", *words, *TINY, "strategy=finetune", f"data.root={photos}")
        assert code == 0
        with (folder / "metrics.csv").open() as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file)])
    assert losses[0] == losses[1]
    folder, _ = command("train", "data.augment=augmix", *TINY, "strategy=finetune", f"data.root={photos}")
    with (folder / "metrics.csv").open() as file:
        assert [row["train/loss"] for row in csv.DictReader(file)] != losses[0]
