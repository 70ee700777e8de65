"""Test `finetune.cli.recipes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import finetune
from finetune.cli import compose, recipes
from finetune.cli.arguments import prepare_arguments
from finetune.io.paths import CONF
from tests.helpers import TINY

pytestmark = pytest.mark.usefixtures("hydra_models")


def composed(words: list[str]) -> DictConfig:
    return compose.compose_without_validation("train", prepare_arguments("train", words))


def make_run(folder: Path, words: list[str]) -> tuple[Path, Any]:
    """A folder with the record of a run, as Hydra and the run write it, and its values."""
    cfg = composed(words)
    (folder / ".hydra").mkdir(parents=True)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.save(OmegaConf.create({"hydra": {"runtime": {"choices": choices}}}), folder / ".hydra" / "hydra.yaml")
    values: Any = OmegaConf.to_container(compose.without_hydra(cfg), resolve=True)
    OmegaConf.save(OmegaConf.create(values), folder / "config.yaml")
    return folder, values


WORDS = [
    ["seed=3", "optimizer.lr=0.02"],
    ["model=squeezenet1_1", "model.weights=none", "optimizer=adamw", "optimizer.weight_decay=0.5", "strategy=lp_ft"],
    ["+callbacks=[ema,early_stopping]", "+metrics=kappa", "data/augment=trivial", "scheduler=cosine"],
    ["model=timm:resnet18", "model.options={drop_rate: 0.5}", "data.classes=[a, 'b, c', null]", "strategy=differential"],
    ["data=imagefolder", "data.root=photos", "strategy.groups=[{match: head, lr: 7}]", "+optimizer.nesterov=true", "loss=focal"],
    ["experiment=tutorial_finetune", "trainer.max_epochs=3"],
    ["data.group='a=(\\d+), {x}'", "data=imagefolder", "data.root='my photos, 2'"],
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
def test_a_recipe_composes_what_the_run_was(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, values = make_run(tmp_path / "run", words)
    recipes.write_recipe(run, tmp_path / "recipe.yaml", "as it was")
    expanded = recipes.expand_recipes([f"experiment={tmp_path / 'recipe.yaml'}"])
    again: Any = OmegaConf.to_container(compose.without_hydra(composed(expanded)), resolve=True)
    if "data=imagefolder" in words:
        values["data"]["root"] = values["data"]["root"] and str(
            Path(values["data"]["root"]).absolute()
        )  # a recipe is read from elsewhere
    for part in ("logger", "paths"):
        del again[part], values[part]
    assert again == values


def test_a_recipe_is_one_of_hydras_experiments_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, values = make_run(tmp_path / "run", WORDS[1])
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    recipes.write_recipe(run, tmp_path / "own" / "experiment" / "best.yaml", "two\nlines")
    text = (tmp_path / "own" / "experiment" / "best.yaml").read_text()
    assert text.startswith("# @package _global_\n# two\n# lines\n")
    cfg = composed([f"hydra.searchpath=['file://{tmp_path}/own']", "experiment=best"])
    assert OmegaConf.to_container(cfg.optimizer) == values["optimizer"]
    assert OmegaConf.to_container(cfg.strategy) == values["strategy"]


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_is_read_as_hydra_reads_it(path: Path) -> None:
    expected = OmegaConf.to_container(compose.without_hydra(composed([f"experiment={path.stem}"])), resolve=False)
    found = OmegaConf.to_container(compose.without_hydra(composed(recipes.read_recipe(path))), resolve=False)
    assert found == expected


def test_other_arguments_override_those_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("defaults:\n  - override /model: resnet50\n  - _self_\nseed: 3\ntrainer: {max_epochs: 4}\n")
    words = recipes.expand_recipes(["-m", f"experiment={path}", "model=alexnet", "seed=1,2"])
    assert words == ["++trainer.max_epochs=4", "-m", "model=alexnet", "seed=1,2"]
    flag = recipes.expand_recipes(["--config-dir", "own", f"experiment={path}", "trainer=ddp"])
    assert flag == ["model=resnet50", "seed=3", "++trainer.max_epochs=4", "--config-dir", "own", "trainer=ddp"]


def test_what_a_recipe_says_of_a_replaced_option_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "defaults:\n  - override /strategy: differential\n  - override /data/augment: rand\n"
        "strategy: {groups: [{match: '@head', lr: 1.0}]}\noptimizer: {momentum: 0.5, lr: 0.2}\n"
    )
    words = recipes.expand_recipes([f"experiment={path}", "strategy=finetune", "optimizer=adamw", "data.augment=none"])
    assert words == ["strategy=finetune", "optimizer=adamw", "data.augment=none"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "because another option is given: ++strategy.groups=" in printed
    assert "++optimizer.momentum=0.5 ++optimizer.lr=0.2" in printed
    assert recipes.expand_recipes([f"experiment={path}", "optimizer.lr=3"])[-2:] == [
        "++optimizer.momentum=0.5",
        "optimizer.lr=3",
    ]


def test_a_run_that_a_recipe_cannot_say_has_none(tmp_path: Path) -> None:
    run, values = make_run(tmp_path / "run", ["seed=3"])
    del values["optimizer"]["momentum"]  # ~optimizer.momentum
    OmegaConf.save(OmegaConf.create(values), run / "config.yaml")
    with pytest.raises(ValueError, match="leaves a key of its options out"):
        recipes.write_recipe(run, tmp_path / "r.yaml", "")
    OmegaConf.save(OmegaConf.create({**values, "ckpt_path": "a.ckpt"}), run / "config.yaml")
    with pytest.raises(ValueError, match=r"went on from a\.ckpt"):
        recipes.write_recipe(run, tmp_path / "r.yaml", "")
    assert not (tmp_path / "r.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hydra: {launcher: {n_jobs: 1}}", "sets hydra; a recipe says what a run trains"),
        ("defaults: [override /hydra/launcher: joblib]", "is no group of a run"),
        ("+hydra: {callbacks: {x: {_target_: os.system}}}", r"sets \+hydra"),
        ("'++hydra/launcher': joblib", "a recipe says what a run trains"),
        ("'~hydra': 1", "a recipe says what a run trains"),
        ("'x@hydra.callbacks': 1", "a recipe says what a run trains"),
        ("model: {'a=b': 2}", "a recipe says what a run trains"),
        ("hydra.callbacks.x._target_: os.system", "a recipe says what a run trains"),
        ("defaults: ['override /data@hydra.callbacks': csv]", "is no group of a run"),
        ("defaults: ['override /+hydra/launcher': joblib]", "is no group of a run"),
        ("defaults: [model]", "'model' in its defaults is no group and option"),
        ("- 1\n- 2", "it is no mapping"),
        ("a: [", "cannot be read as a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipes.expand_recipes([f"experiment={tmp_path / 'r.yaml'}"])


def test_a_recipe_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"experiment=gone\.yaml: there is no such file"):
        recipes.expand_recipes(["experiment=gone.yaml"])
    assert recipes.expand_recipes(["experiment=hotdog_resnet18", "seed=1"]) == ["experiment=hotdog_resnet18", "seed=1"]


# --- preset=NAME ---------------------------------------------------------------------------------------------------


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


PRESETS = sorted(path.stem for path in (CONF / "presets").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_composes_what_its_file_says(name: str) -> None:
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF / "presets" / f"{name}.yaml"))
    cfg = composed(recipes.expand_recipes([f"preset={name}"]))
    assert cfg.preset == name
    for entry in file.pop("defaults"):
        ((group, option),) = entry.items()
        assert cfg.hydra.runtime.choices[group.removeprefix("override ").removeprefix("/")] == option
    flat = dict(leaves(file))
    assert bool(flat) == (name != "fast")
    assert {key: OmegaConf.select(cfg, key) for key in flat} == flat


def test_without_a_word_on_training_the_preset_is_good() -> None:
    words = recipes.expand_recipes(["data=imagefolder", "data.root=photos"])
    assert words[:2] == ["preset=good", "strategy=lp_ft"]
    assert words[-2:] == ["data=imagefolder", "data.root=photos"]


@pytest.mark.parametrize(
    "word", ["strategy=finetune", "optimizer.lr=0.1", "+trainer.max_steps=3", "scheduler=cosine", "+callbacks=ema", "data/augment=trivial", "experiment=tutorial_finetune", "ckpt_path=a.ckpt", "resume=run", "preset=null", "sweep=random", "trainer=debug"]
)  # fmt: skip
def test_whoever_says_how_to_train_gets_no_preset(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.expand_recipes(["seed=3", word]) == ["seed=3", word]
    assert capsys.readouterr().out == ""


def test_the_augmentation_of_a_preset_is_for_all_data() -> None:
    words = recipes.expand_recipes(["preset=best", "data=imagefolder", "data.root=photos"])
    assert composed(words).hydra.runtime.choices["data/augment"] == "light"
    own = recipes.expand_recipes(["preset=best", "data=imagefolder", "data.augment=none"])
    assert composed(own).data.augment == "none"


def test_a_data_file_of_ones_own_that_says_how_to_augment_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for augment in ("none", "auto"):
        (tmp_path / "data" / f"{augment}.yaml").write_text(
            f"defaults: [_base, _self_]\nroot: photos\naugment: {augment}\n"
        )
    assert {augment_of(path) for path in (CONF / "data").glob("*.yaml")} == {None, "auto"}
    for flag in ([f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        assert "data/augment=light" in recipes.expand_recipes([*flag, "data=auto"])
        words = recipes.expand_recipes([*flag, "data=none"])
        assert words[0] == "preset=good"
        assert not any("augment" in word for word in words)


def augment_of(path: Path) -> Any:
    return OmegaConf.select(OmegaConf.load(path), "augment")


def test_a_debugging_run_of_a_preset_has_its_one_epoch() -> None:
    assert composed(recipes.expand_recipes(["preset=good", "trainer=debug"])).trainer.max_epochs == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer=debug"], "Preset none, because trainer=debug says how to train"),
        (["trainer.max_epochs=3"], "Preset none, because trainer.max_epochs says how to train: strategy=feature_extract is taken."),
        (["optimizer=adamw", "scheduler=cosine"], "Preset none, because optimizer, scheduler say how to train"),
        (["strategy=finetune", "optimizer=adamw"], ""),
        (["preset=null", "trainer.max_epochs=3"], ""),
        (["model=resnet18", "preset=null"], ""),
    ],
)  # fmt: skip
def test_a_run_says_which_word_has_taken_the_default_preset_away(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(recipes.expand_recipes(words))
    cfg.hydra.mode = "RUN"
    monkeypatch.setattr(HydraConfig, "get", lambda: cfg.hydra)
    recipes.announce_preset(cfg)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(said)
    assert bool(printed) == bool(said)


def test_a_strategy_with_dashes_is_one_too() -> None:
    """As the agent of W&B sends its words."""
    cfg = finetune.compose(["--strategy=finetune", "--seed=3"])
    assert (cfg.preset, cfg.trainer.max_epochs, cfg.hydra.runtime.choices["strategy"]) == (None, 15, "finetune")


def test_explicit_keys_win_over_a_preset() -> None:
    cfg = composed(recipes.expand_recipes(["optimizer=sgd", "trainer.max_epochs=3", "preset=good"]))
    assert cfg.trainer.max_epochs == 3
    assert str(cfg.optimizer._target_).endswith("SGD")
    assert cfg.optimizer.lr == 1e-3  # the file's own: that of the preset was meant for another optimizer
    assert cfg.optimizer.weight_decay == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["trainer.max_epochs=3"], "other than in the preset: trainer.max_epochs=3"),
        (["data.augment=basic"], "other than in the preset: data.augment=basic"),
        (["optimizer=sgd"], "other than in the preset: optimizer=sgd optimizer.lr=0.001 optimizer.weight_decay=0"),
    ],
)
def test_a_preset_is_announced_with_what_is_other_than_in_it(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(recipes.expand_recipes(["preset=good", *words]))
    monkeypatch.setattr(HydraConfig, "get", lambda: cfg.hydra)
    assert capsys.readouterr().out == ""
    recipes.announce_preset(cfg)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("Preset good: the head is solved")
    assert printed.partition("is taken instead.")[2].strip() == said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["preset=goood"], "There is no preset 'goood'. The nearest is good"),
        (["-m", "preset=fast,good"], "a preset is no point of a sweep"),
        (["preset=fast", "experiment=tutorial_finetune"], "give one of them"),
    ],
)
def test_a_preset_that_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.expand_recipes(words)


def test_words_on_a_training_are_named_where_nothing_is_trained(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("train", *TINY, f"data.root={photos}", "strategy=linear_probe")
    said = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "Note trainer.max_epochs, optimizer.lr change nothing: the head is solved, and nothing is trained." in said
    command("train", *TINY, f"data.root={photos}", "strategy=lp_ft")
    assert "nothing is trained" not in capsys.readouterr().out
