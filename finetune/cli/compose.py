"""From the words of a shell line to a configuration, or to all that is wrong with them.

Importing this does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import help, validation
from finetune.cli.arguments import key_of
from finetune.cli.groups import group_options
from finetune.io.paths import CONF
from finetune.runtime.mappings import select
from finetune.runtime.suggestions import closest_matches, unknown_name


def compose(name: str, words: Sequence[str]) -> DictConfig:
    """The configuration of a command, Hydra's own node included.

    Raises:
        ValueError: lists all faults of the words, a line each: what Hydra cannot compose, and what makes no sense in
            the rest.
    """
    cfg, found = _compose_what_can_be(name, words)
    if cfg is not None:
        alone = _without_hydra(cfg)
        found += [*validation.find_faults(alone, name), *_mistyped_root(alone, words)]
    if cfg is None or found:
        raise ValueError(validation.list_faults(found))
    return cfg


def first_point(words: Sequence[str]) -> list[str] | None:
    """The words of the first run of a sweep; None where only a sweeper knows: `interval(0, 1)`, `glob(*)`."""
    parser, first = OverridesParser.create(), []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException:
            first.append(word)  # composing says what is wrong with it
            continue
        if not override.is_sweep_override():
            first.append(word)
        elif override.is_discrete_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            first.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        else:
            return None
    return first


def _compose_what_can_be(name: str, words: Sequence[str]) -> tuple[DictConfig | None, list[str]]:
    """Without the words that are at fault, if it is known which are."""
    overrides, found = list(words), []
    for word in words:
        if fault := _no_name(name, word):
            found.append(fault)
            overrides.remove(word)
    while True:
        try:
            return _compose(name, overrides), found
        except Exception as error:  # Hydra answers some words with errors of Python's
            at_fault = _culprit(error, overrides) or [word for word in overrides if not _composes(name, word)]
            known = isinstance(error, HydraException | OmegaConfBaseException)
            found.append(
                explain_composition(error, name) if known else f"{' '.join(at_fault)}: {str(error).split(' : ')[0]}"
            )
            if not at_fault:
                return None, found
            overrides = [word for word in overrides if word not in at_fault]


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3", job_name=name):
        return hydra.compose(name, list(overrides), return_hydra_config=True)


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _composes(name: str, word: str) -> bool:
    try:
        _compose(name, [word])
    except Exception:
        return False
    return True


def _no_name(name: str, word: str) -> str | None:
    """What Hydra answers with a traceback: a word without a key, and a group without a name."""
    key, _, value = word.partition("=")
    if not key.strip("+~"):
        return f"{word!r} is not key=value: there is no key."
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    key = key.lstrip("+~")
    if key in groups and re.fullmatch(r"null|true|false|-?[\d.]+|", value):
        return unknown_name(key, value, group_options(key), f"{key}= takes a name of that group.")
    return None


def _mistyped_root(cfg: DictConfig, words: Sequence[str]) -> Iterator[str]:
    """A root without a choice of data would be where the default's example pictures go."""
    keys, root = {key_of(word) for word in words}, select(cfg, "data.root")
    if (
        root is not None
        and "data.root" in keys
        and not {"data", "experiment"} & keys
        and not Path(str(root)).expanduser().exists()
    ):
        yield (
            f"data.root={root}: there is no such folder (looked from {Path.cwd()}). "
            "Your own pictures are data=imagefolder data.root=FOLDER."
        )


def _culprit(error: Exception, overrides: Sequence[str]) -> list[str]:
    """The words that an error of composition is about."""
    if isinstance(error, OverrideParseException):
        return [word for word in overrides if word == str(error.override)]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return [word for word in overrides if key_of(word) == group and option in word]
    text = f"{error}\n{error.__cause__ or ''}"
    if found := re.search(r"Could not (?:override|append|delete) '([^'@]+)", text):
        return [word for word in overrides if key_of(word) == found[1]]
    return [word for word in overrides if word in text]


def explain_composition(error: BaseException, name: str) -> str:
    """An error of composition as a sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        hint = "`python -m finetune.models` lists all." if group == "model" else f"{group}= takes a name of that group."
        return unknown_name(group, option, group_options(group), hint) if group else str(error)
    if isinstance(error, OverrideParseException) and "=" not in str(error.override):
        return (
            f"{error.override!r} is not key=value, as every argument is: ckpt=best.ckpt source=photos, say. "
            "A pattern goes in quotes, or the shell makes several words of it: source='photos/*.jpg'."
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as key=value: quote the value, inside the shell's quotes: 'key=\"a,b\"'."
    text = f"{error}\n{error.__cause__ or ''}"
    found = re.search(r"Could not (?:override|append|delete) '([^'@]+)", text)
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]} is missing: give it as {missing[1]}=..."
    if not found:
        return str(error).splitlines()[0]
    key = found[1]
    known = known_keys(name)
    if key in known:
        return " ".join(text.split())
    meant = [k for k in known if ("." in k) >= ("." in key) and not k.endswith("._target_")]
    close = [k for k in meant if _last_part(k) == _last_part(key)][:3] or closest_matches(key, meant)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    add = f"; +{key}=... adds a new one" if key.split(".")[0] in ("optimizer", "scheduler", "trainer") else ""
    return f"There is no key {key!r}.{hint} `python -m finetune.{name} --help` lists all{add}."


def _last_part(key: str) -> str:
    return re.sub("[-_]", "", key.rpartition(".")[2]).lower()


def known_keys(name: str) -> list[str]:
    """All keys of a command's default configuration, and its groups."""
    cfg = _without_hydra(_compose(name, []))
    return [*help.command_groups(cfg), *_flat(OmegaConf.to_container(cfg, resolve=False), "")]


def _flat(value: Any, prefix: str) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [prefix] if prefix else []
    return [key for k, v in value.items() for key in _flat(v, f"{prefix}.{k}" if prefix else str(k))]
