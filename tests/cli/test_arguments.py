"""Test `finetune.cli.arguments`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from finetune.cli.arguments import (
    drop_sweep_words,
    expand_resume,
    is_hydra_flag,
    prepare_arguments,
    quote_paths,
    strip_dashes,
    unquote_path,
)
from finetune.cli.schema import conf_keys


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("data.root=my photos", 'data.root="my photos"'),
        ("data.root=a=b,c(d)[e]", 'data.root="a=b,c(d)[e]"'),
        (r"data.group=(patient\d{1,2})_", r'data.group="(patient\d{1,2})_"'),
        (r"+data.group=[^/]+\\", r'+data.group="[^/]+\\\\"'),
        ("data.group=patient_id", 'data.group="patient_id"'),
        ("data.group=null", "data.group=null"),
        ("model.weights=größe/猫.pth", 'model.weights="größe/猫.pth"'),
        ("weights=a b=c.pth", 'weights="a b=c.pth"'),
        ("ckpt_path=it's", 'ckpt_path="it\'s"'),
        ('data.root=say "a"', 'data.root="say \\"a\\""'),
        ("hydra.run.dir=out/x", 'hydra.run.dir="out/x"'),
        ("paths.data_dir=/d", 'paths.data_dir="/d"'),
        ("+data.root=x", '+data.root="x"'),
        ("ckpt_path=null", "ckpt_path=null"),
        ("data.root=", "data.root="),
        ('data.root="done"', 'data.root="done"'),
        ("hydra.run.dir=a/${now:%Y}", "hydra.run.dir=a/${now:%Y}"),
        ("model=resnet18", "model=resnet18"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_quote_paths(given: str, quoted: str) -> None:
    assert quote_paths([given]) == [quoted]


@pytest.mark.parametrize(
    "typed", ["data.root=my photos", r"data.group=(a\d)_", 'data.root=say "a"', "data.root=", "seed=1", 'x="1"']
)
def test_quotes_of_paths_can_be_taken_away(typed: str) -> None:
    assert [unquote_path(word) for word in quote_paths([typed])] == [typed]


def test_quote_paths_expands_home_and_keeps_choices_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["-m", r"data.group=a{1,2}"]) == [
        "-m",
        r'data.group="a{1,2}"',
    ]  # one expression, not two choices
    assert quote_paths(["data.root=~/photos"]) == ['data.root="/home/me/photos"']
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", "data.root=a,b"]
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", 'data.root="a,b"']


def test_quote_paths_moves_flags_to_the_front() -> None:
    assert quote_paths(["a=1", "--config-dir", "x y", "b=2", "-m"]) == ["--config-dir", "x y", "-m", "a=1", "b=2"]


def test_dashes_of_keys_are_stripped_and_flags_of_hydra_stay() -> None:
    sent = [
        "--optimizer.lr=0.01",
        "--model=resnet18",
        "--data.root=a=b",
        "--seed=1",
        "report=false",
        "--+trainer.max_steps=3",
    ]
    assert strip_dashes(sent) == [
        "optimizer.lr=0.01", "model=resnet18", "data.root=a=b", "seed=1", "report=false", "+trainer.max_steps=3",
    ]  # fmt: skip
    flags = [
        "--config-dir",
        "--odd",
        "-m",
        "--cfg=job",
        "--info=defaults",
        "--resolve",
        "-c",
        "job",
        "--multirun",
        "source=-",
    ]
    assert strip_dashes(flags) == flags


@pytest.mark.parametrize(
    ("word", "form"), [("--optimizer.lr", "optimizer.lr"), ("--source", "source"), ("-x", "x"), ("-x=3", "x")]
)
def test_other_flags_are_answered_with_the_right_form(word: str, form: str) -> None:
    with pytest.raises(ValueError, match=rf"^{word} is no flag\. Arguments have no dashes here: {form}=\.\.\.$"):
        strip_dashes(["seed=1", word, "0.01"])


def test_every_flag_of_hydra_is_known() -> None:
    """By its own parser."""
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    assert len(flags) > 20
    assert [flag for flag in flags if not is_hydra_flag(flag)] == []


def test_no_key_is_taken_for_a_flag() -> None:
    for command in ("train", "check", "evaluate", "predict", "export", "rank"):
        assert [key for key in conf_keys(f"{command}.yaml") if is_hydra_flag(f"--{key}=1")] == []


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["--info", "defaults", "seed=1"], ["--info=defaults", "seed=1"]),
        (["seed=1", "-i", "searchpath"], ["--info=searchpath", "seed=1"]),
        (["--info=plugins", "seed=1"], ["--info=plugins", "seed=1"]),
        (["--info", "seed=1"], ["--info=all", "seed=1"]),
        (["seed=1", "--info"], ["--info=all", "seed=1"]),
    ],
)
def test_info_takes_its_own_words_and_no_override(given: list[str], joined: list[str]) -> None:
    assert quote_paths(given) == joined
    assert get_args_parser().parse_args(joined).overrides == ["seed=1"]


def test_a_sweep_is_repeated_in_its_folder_with_paths_from_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start/a", "start/b, c", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    words = ["data.root=a,gone", 'ckpt_path="a"', "seed=0,1", "model.weights=a,b"]
    record = {"hydra": {"runtime": {"cwd": str(tmp_path / "start")}, "overrides": {"task": words}}}
    OmegaConf.save(OmegaConf.create(record), tmp_path / "multirun.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    # a path of which a part is not there is left as it is; what is given beside counts more
    assert expand_resume([f"resume={tmp_path}", "seed=2", "-m"]) == [
        "-m", "data.root=a,gone", f"ckpt_path={tmp_path}/start/a", "model.weights=a,b", "seed=2", f"hydra.sweep.dir={tmp_path}",
    ]  # fmt: skip
    (tmp_path / "start" / "b").mkdir()
    assert f"model.weights={tmp_path}/start/a,{tmp_path}/start/b" in expand_resume([f"resume={tmp_path}"])


@pytest.mark.parametrize("given", ["data/augment=trivial", "data.augment=trivial"])
@pytest.mark.parametrize("recorded", ["data.augment=basic", "data/augment=basic"])
def test_an_option_replaces_the_value_of_the_same_name_that_was_recorded(
    given: str, recorded: str, tmp_path: Path
) -> None:
    record = {"hydra": {"runtime": {"cwd": str(tmp_path)}, "overrides": {"task": ["seed=0", recorded]}}}
    OmegaConf.save(OmegaConf.create(record), tmp_path / "multirun.yaml")
    assert expand_resume([f"resume={tmp_path}", given])[:3] == ["-m", "seed=0", given]


@pytest.mark.parametrize(
    ("word", "message"), [("hydra/launcher=joblib", "which is no choice of a run"), ("-m", "no choice")]
)
def test_the_record_of_a_sweep_neither_starts_programs_nor_sets_hydras_keys(
    word: str, message: str, tmp_path: Path
) -> None:
    record = {"hydra": {"runtime": {"cwd": str(tmp_path)}, "overrides": {"task": ["seed=0", word]}}}
    OmegaConf.save(OmegaConf.create(record), tmp_path / "multirun.yaml")
    with pytest.raises(ValueError, match=message):
        expand_resume([f"resume={tmp_path}"])


@pytest.mark.parametrize(
    ("words", "is_sweep"),
    [
        (["sweep=optuna"], True),
        (["seed=1", "sweep/space=head"], True),
        (["sweep=optuna", "--config-dir", "mine"], True),
        (["sweep/space=null"], False),
        (["sweep.retry=false"], False),
        (["sweep=optuna", "--cfg", "job"], False),
        (["sweep=optuna", "--help"], False),
    ],
)
def test_name_of_a_sweep_asks_for_it(words: list[str], is_sweep: bool) -> None:
    assert ("-m" in prepare_arguments("train", words)) == is_sweep
    assert prepare_arguments("train", ["-m", *words]).count("-m") == 1


@pytest.mark.parametrize(
    ("storage", "repeated"),
    [
        ("journal:st.journal", '"journal:/started/st.journal"'),
        ("'sqlite:///a/st.db'", '"sqlite:////started/a/st.db"'),
        ("sqlite:////data/st.db", '"sqlite:////data/st.db"'),
        ("postgresql://host/x", '"postgresql://host/x"'),
        ("null", "null"),
    ],
)
def test_storage_of_a_sweep_that_is_repeated_is_where_the_first_one_made_it(
    storage: str, repeated: str, tmp_path: Path
) -> None:
    """Whether it is there or not: it would be made in the folder of the moment."""
    task = ["sweep=optuna", f"sweep.storage={storage}"]
    OmegaConf.save({"hydra": {"runtime": {"cwd": "/started"}, "overrides": {"task": task}}}, tmp_path / "multirun.yaml")
    assert f"sweep.storage={repeated}" in expand_resume([f"resume={tmp_path}"])


def test_run_of_a_sweep_that_is_resumed_alone_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {cwd: /}}")
    words = ["sweep=optuna", "sweep/space=head", "sweep.n_trials=3", "optimizer.lr=0.1", "sweep.trial=2"]
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    resumed = prepare_arguments("train", [f"resume={tmp_path}"])
    assert resumed == ["optimizer.lr=0.1", f'ckpt_path="{tmp_path}/checkpoints/last.ckpt"']


def test_words_of_a_sweep_are_those_of_its_group() -> None:
    words = ["sweep=optuna", "seed=1", "sweep/space=head", "sweep.n_trials=3", "+sweep.trial=1", "sweeper=1"]
    assert drop_sweep_words(words) == ["seed=1", "sweeper=1"]
