"""Compose a configuration from overrides, or list all that is wrong with them.

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
from finetune.cli.arguments import override_key
from finetune.cli.groups import group_options
from finetune.cli.schema import load_conf
from finetune.cli.space import read_dimension, read_space, refuse_ranges, require_dimensions
from finetune.io.paths import CONF
from finetune.runtime.mappings import select
from finetune.runtime.suggestions import closest_matches, unknown_name


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose and validate the configuration of a command, Hydra's own node included.

    Raises:
        ValueError: lists all faults of the overrides, a line each: those that Hydra cannot compose, and those that make
            no sense in the rest.
    """
    cfg, faults = _compose_valid_part(command, overrides)
    if cfg is not None:
        faults += find_faults(cfg, command, overrides)
    if cfg is None or faults:
        raise ValueError(validation.format_faults(faults))
    return cfg


def compose_without_validation(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a command, Hydra's own node included, whatever its values are.

    Raises:
        ValueError: lists the overrides that Hydra cannot compose, a line each.
    """
    cfg, faults = _compose_valid_part(command, overrides)
    if cfg is None or faults:
        raise ValueError(validation.format_faults(faults))
    return cfg


def find_faults(cfg: DictConfig, command: str, overrides: Sequence[str]) -> list[str]:
    """Return the faults of a configuration that was composed from these overrides, a sentence each."""
    own_keys = without_hydra(cfg)
    return [*validation.find_faults(own_keys, command), *_find_mistyped_root(own_keys, overrides)]


def compose_first_point(command: str, overrides: Sequence[str]) -> None:
    """Compose and validate the first point of a sweep, as far as it is known here.

    Raises:
        ValueError: lists all faults of the overrides, a line each; or a grid has a range.
    """
    point = first_point(overrides)
    if point is None:
        return
    cfg = compose(command, point)
    sweep = read_space(cfg, overrides)
    if str(cfg.hydra.sweeper._target_).endswith(".BasicSweeper"):
        refuse_ranges(sweep)
    elif command == "train":
        require_dimensions(sweep, cfg.hydra.runtime.choices.sweep)
    if cfg.hydra.sweeper.get("params"):
        compose(command, sweep.first())


def first_point(overrides: Sequence[str]) -> list[str] | None:
    """Return the overrides of a first run of a sweep; None where only a sweeper knows: `glob(*)`."""
    parser, first = OverridesParser.create(), []
    for override in overrides:
        try:
            parsed = parser.parse_override(override)
        except HydraException:
            first.append(override)  # composing says what is wrong with it
            continue
        if not parsed.is_sweep_override():
            first.append(override)
        elif parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
            return None
        else:
            first.append(f"{parsed.get_key_element()}={read_dimension(parsed).first}")
    return first


def _compose_valid_part(command: str, overrides: Sequence[str]) -> tuple[DictConfig | None, list[str]]:
    """Compose without the overrides at fault; return the configuration, if it is known which they are, and the faults."""
    valid, faults = list(overrides), []
    for override in overrides:
        if fault := _find_missing_name(override):
            faults.append(fault)
            valid.remove(override)
    while True:
        try:
            return _compose(command, valid), faults
        except Exception as error:  # Hydra raises Python's own errors for some overrides
            at_fault = _find_culprits(error, valid) or [o for o in valid if not _can_compose(command, o)]
            if isinstance(error, HydraException | OmegaConfBaseException):
                faults.append(explain_composition(error, command))
            else:
                faults.append(f"{' '.join(at_fault)}: {str(error).split(' : ')[0]}")
            if not at_fault:
                return None, faults
            valid = [override for override in valid if override not in at_fault]


def _compose(command: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3", job_name=command):
        return hydra.compose(command, list(overrides), return_hydra_config=True)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a configuration without Hydra's own node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def _can_compose(command: str, override: str) -> bool:
    try:
        _compose(command, [override])
    except Exception:
        return False
    return True


def _find_missing_name(override: str) -> str | None:
    """Return the fault of an override without a key, or of a group without a name: Hydra has a traceback for them."""
    key, _, value = override.partition("=")
    if not key.strip("+~"):
        return f"{override!r} is not key=value: there is no key."
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} | {"data/augment", "sweep/space"}
    key = key.lstrip("+~")
    if key in groups and re.fullmatch(r"null|true|false|-?[\d.]+|", value):
        return unknown_name(key, value, group_options(key), f"{key}= takes a name of that group.")
    return None


def _find_mistyped_root(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Yield the fault of a root that does not exist, given without `data=`: example images would be downloaded there."""
    keys, root = {override_key(override) for override in overrides}, select(cfg, "data.root")
    if (
        root is not None
        and "data.root" in keys
        and not {"data", "experiment"} & keys
        and not Path(str(root)).expanduser().exists()
        and select(cfg, "data.url") is not None
    ):
        yield (
            f"data.root={root}: there is no such folder (looked from {Path.cwd()}). "
            "Your own images are data=imagefolder data.root=FOLDER."
        )


def _find_culprits(error: Exception, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that an error of composition is about."""
    if isinstance(error, OverrideParseException):
        return [override for override in overrides if override == str(error.override)]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return [o for o in overrides if override_key(o) == group and option in o]
    text = f"{error}\n{error.__cause__ or ''}"
    if match := _UNKNOWN_KEY.search(text):
        return [override for override in overrides if override_key(override) == match[1]]
    return [override for override in overrides if override in text]


_UNKNOWN_KEY = re.compile(r"Could not (?:override|append|delete) '([^'@]+)")


def explain_composition(error: BaseException, command: str) -> str:
    """Return an error of composition as a sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher":
            return (
                f"There is no hydra/launcher {option!r} here. joblib, submitit_local and submitit_slurm come with the extra "
                "launchers (pip install 'finetune-lightning[launchers]'), ray with hydra-ray-launcher."
            )
        hint = (
            "`python -m finetune.models` lists all; those of timm are model=timm:NAME."
            if group == "model"
            else f"{group}= takes a name of that group."
        )
        return unknown_name(group, option, group_options(group), hint) if group else str(error)
    if isinstance(error, OverrideParseException) and "=" not in str(error.override):
        return (
            f"{error.override!r} is not key=value, as every argument is: ckpt=best.ckpt source=photos, say. "
            "A pattern goes in quotes, or the shell makes several words of it: source='photos/*.jpg'."
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as key=value: quote the value, inside the shell's quotes: 'key=\"a,b\"'."
    text = f"{error}\n{error.__cause__ or ''}"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} is missing: give it as {missing[1]}=..."
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = ambiguous.groups()
        return f"{key}={value}: a list is {key}=[{value}]; -m in front makes a run for each value."
    if match := _UNKNOWN_KEY.search(text):
        known = known_keys(command)
        if others := _sweeps_with(match[1]):
            return f"There is no key {match[1]!r} in this sweep; it is one of {' and '.join(others)}."
        return " ".join(text.split()) if match[1] in known else _explain_unknown_key(match[1], known, command)
    return str(error).splitlines()[0]


def _explain_unknown_key(key: str, known: Sequence[str], command: str) -> str:
    section, _, name = key.rpartition(".")
    if section in ("model.options", "model.preprocess") and section in known:
        return f"{key}: {section} is given as a whole, '{section}={{{name}: VALUE}}'."
    if section == "sweep":  # of whichever sweep
        keys = [k for option in group_options("sweep") for k in load_conf(f"sweep/{option}.yaml").get("sweep", ())]
        known = [f"sweep.{k}" for k in dict.fromkeys(keys)]
    meant = [k for k in known if ("." in k) >= ("." in key) and not k.endswith("._target_")]
    close = [k for k in meant if _last_part(k) == _last_part(key)][:3] or closest_matches(key, meant)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    add = f"; +{key}=... adds a new one" if key.split(".")[0] in ("optimizer", "scheduler", "trainer") else ""
    return f"There is no key {key!r}.{hint} `python -m finetune.{command} --help` lists all{add}."


def _sweeps_with(key: str) -> list[str]:
    """Return the options of `sweep=` that have a key."""
    names = group_options("sweep") if key.startswith("sweep.") else []
    return [f"sweep={name}" for name in names if select(load_conf(f"sweep/{name}.yaml"), key) is not None]


def _last_part(key: str) -> str:
    return re.sub("[-_]", "", key.rpartition(".")[2]).lower()


def known_keys(command: str) -> list[str]:
    """Return all dotted keys of a command's default configuration, and its groups."""
    cfg = without_hydra(_compose(command, []))
    return [*help.command_groups(cfg), *_flatten_keys(OmegaConf.to_container(cfg, resolve=False), "")]


def _flatten_keys(value: Any, prefix: str) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [prefix] if prefix else []
    return [key for k, v in value.items() for key in _flatten_keys(v, f"{prefix}.{k}" if prefix else str(k))]
