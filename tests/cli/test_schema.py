"""Test `finetune.cli.schema`."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import lightning.fabric.connector
import pytest
from lightning.pytorch import Trainer

from finetune import ImageDataModule
from finetune.cli import schema
from finetune.data.datamodule import CACHE_IMAGES
from finetune.data.layout import LAYOUTS
from finetune.data.sampling import SAMPLERS
from finetune.data.splitting import ON_BAD_FILE
from finetune.data.table_columns import PARTS
from finetune.exporting.formats import EXPORTERS
from finetune.images.transforms import AUGMENTATIONS, FITS, INTERPOLATIONS, Preprocess
from finetune.inference import classifier, prediction_table
from finetune.io.paths import CONF
from finetune.models.backbone import HEAD_INITS


def test_known_fields_are_those_of_the_classes() -> None:
    fields = "groups pretrained frozen_norm layer_decay decay cache views cache_dtype solve_head name"
    assert tuple(fields.split()) == schema.STRATEGY_FIELDS
    assert schema.GROUP_FIELDS == ("match", "depth", "lr", "start", "warmup", "weight_decay", "name", "optional")
    assert tuple(f.name for f in dataclasses.fields(Preprocess)) == schema.PREPROCESS_FIELDS
    set_by_commands = {
        "logger", "callbacks", "plugins", "default_root_dir", "enable_progress_bar", "enable_model_summary",
        "num_sanity_val_steps", "use_distributed_sampler",
    }  # fmt: skip
    assert set(inspect.signature(Trainer).parameters) - set_by_commands == set(schema.TRAINER_FIELDS)


@pytest.mark.parametrize(
    ("known", "constant"),
    [
        pytest.param(schema.CHOICES["model.head_init"], HEAD_INITS, id="model.head_init"),
        pytest.param(schema.CHOICES["data.augment"], ("auto", *AUGMENTATIONS), id="data.augment"),
        pytest.param(schema.CHOICES["data.cache_images"], CACHE_IMAGES, id="data.cache_images"),
        pytest.param(schema.CHOICES["data.layout"], LAYOUTS, id="data.layout"),
        pytest.param(schema.COLUMN_PARTS, PARTS, id="data.columns"),
        pytest.param(schema.CHOICES["data.sampler"], SAMPLERS, id="data.sampler"),
        pytest.param(schema.CHOICES["data.resize"], FITS, id="data.resize"),
        pytest.param(schema.CHOICES["data.on_bad_file"], ON_BAD_FILE, id="data.on_bad_file"),
        pytest.param(schema.CHOICES["model.preprocess.interpolation"], INTERPOLATIONS, id="interpolation"),
        pytest.param(schema.CHOICES["strategy.frozen_norm"], ("eval", "train"), id="strategy.frozen_norm"),
        pytest.param(schema.CHOICES["strategy.cache"], ("auto", "never"), id="strategy.cache"),
        pytest.param(schema.CHOICES["strategy.cache_dtype"], ("float32", "float16"), id="strategy.cache_dtype"),
        pytest.param(schema.CHOICES["tta"], classifier.TTA, id="tta"),
        pytest.param(schema.CHOICES["precision"], ("auto", *classifier._DTYPES), id="precision"),
        pytest.param(schema.FORMATS["predict"], prediction_table.FORMATS, id="format of predict"),
        pytest.param(schema.FORMATS["export"], EXPORTERS, id="format of export"),
    ],
)
def test_choices_are_those_of_the_classes(known: tuple[Any, ...], constant: Iterable[Any]) -> None:
    assert set(known) == set(constant)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("data.cache_images", lambda value: ImageDataModule(cache_images=value)),
        ("data.on_bad_file", lambda value: ImageDataModule(on_bad_file=value)),
        ("model.preprocess.interpolation", lambda value: Preprocess(interpolation=value)),
    ],
)
def test_choices_are_taken_by_the_classes(key: str, make: Callable[[str], object]) -> None:
    for value in schema.CHOICES[key]:
        assert make(value)
    with pytest.raises(ValueError, match=f"no .*{key.rpartition('.')[2]} 'other'"):
        make("other")


def test_precisions_are_lightnings() -> None:
    fabric: Any = lightning.fabric.connector
    literals = (fabric._PRECISION_INPUT_STR, fabric._PRECISION_INPUT_STR_ALIAS, fabric._PRECISION_INPUT_INT)
    taken = {value for literal in literals for value in get_args(literal)}
    for_other_hardware = {"transformer-engine", "transformer-engine-float16"}
    assert set(schema.CHOICES["trainer.precision"]) == {"auto"} | taken - for_other_hardware


def test_metrics_to_monitor_are_those_of_a_run(trained: Path) -> None:
    with (trained / "metrics.csv").open() as file:
        logged = next(csv.reader(file))
    assert {name for name in logged if name.startswith(("train/", "val/"))} == set(schema.METRICS)


FILES = {
    "model": ("model/_base.yaml",),
    "data": ("data/_base.yaml",),
    "strategy": ("strategy/_base.yaml",),
    "loss": ("loss/_base.yaml",),
    "scheduler": ("scheduler/constant.yaml",),
    "sweep": ("sweep/optuna.yaml",),
    "trainer": ("trainer/auto.yaml",),
}


COMMANDS = ("train.yaml", "check.yaml", "evaluate.yaml", "predict.yaml", "export.yaml", "rank.yaml")


WITHOUT_A_LIST = {
    "model.preprocess.interpolation": "stands in the comment of model.preprocess",
    "model.preprocess.fit": "stands in the comment of model.preprocess",
    "trainer.accelerator": "trainer=NAME chooses it",
    "trainer.precision": "Lightning has too many names",
    "precision": "Lightning has too many names",
    "embeddings": "true or false",
    "report": "true or false",
    "sweep.retry": "true or false",
}


CASES = [
    *((key, name) for key in schema.CHOICES if key not in WITHOUT_A_LIST for name in FILES.get(key.split(".")[0], COMMANDS)),
    *(("format", f"{command}.yaml") for command in schema.FORMATS),
]  # fmt: skip


def comment_on(key: str, name: str) -> str | None:
    """Return the comment on a key in a file below `conf/`."""
    text = (CONF / name).read_text(encoding="utf-8")
    match = re.search(rf"^ *{key.rpartition('.')[2]}: *\S+ *# (.+)$", text, re.MULTILINE)
    return match[1] if match else None


@pytest.mark.parametrize(("key", "name"), [case for case in CASES if comment_on(*case) is not None])
def test_comments_in_yaml_files_list_the_choices(key: str, name: str) -> None:
    listed = re.match(r"[\w-]+(?: \| [\w-]+)*", str(comment_on(key, name)))
    choices = schema.FORMATS[name.removesuffix(".yaml")] if key == "format" else schema.CHOICES[key]
    assert listed is not None
    assert listed[0].split(" | ") == [str(choice).lower() if isinstance(choice, bool) else choice for choice in choices]


def test_every_choice_has_a_comment_that_lists_it() -> None:
    listed = {key for key, name in CASES if comment_on(key, name) is not None}
    assert listed == ({*schema.CHOICES} - {*WITHOUT_A_LIST}) | {"format"}
    assert " | ".join(schema.CHOICES["model.preprocess.interpolation"]) in str(
        comment_on("preprocess", "model/_base.yaml")
    )


def test_the_word_for_the_temperature_of_a_checkpoint_is_that_of_the_class() -> None:
    for command in ("predict", "evaluate"):
        assert schema.load_conf(f"{command}.yaml").temperature == classifier.CHECKPOINT
