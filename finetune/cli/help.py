"""Print the help of a command: its groups and keys, with the comments of its YAML file."""

from __future__ import annotations

from collections.abc import Container
from textwrap import fill

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from finetune.cli import key_comments
from finetune.cli.arguments import SWEEP_FLAGS, config_folders
from finetune.cli.groups import group_options
from finetune.io import paths
from finetune.models.specs import FAMILIES

EXAMPLES = {
    "train": (
        "data=imagefolder data.root=my_photos model=resnet18",
        "-m optimizer.lr=1e-3,1e-2 seed=0,1,2    # 6 runs",
    ),
    "check": ("data.root=my_photos", "data=csv data.root=table.csv model=convnext_tiny"),
    "rank": ("data.root=my_photos", "data.root=my_photos models=[resnet18,convnext*]"),
    "evaluate": ("ckpt=best.ckpt", "ckpt=best.ckpt data.root=other_photos"),
    "predict": ("ckpt=best.ckpt source=my_photos", "ckpt=best.ckpt source=photo.jpg top_k=3"),
    "export": ("ckpt=best.ckpt format=onnx",),
}

FIRST_KEYS = {
    "train": (
        "data", "data.root", "model", "preset", "time_limit", "strategy", "optimizer.lr", "trainer.max_epochs", "seed", "resume",
    ),
    "evaluate": ("ckpt", "data.root", "split", "tta", "temperature", "top_k"),
    "rank": ("data.root", "models", "weights"),
}  # fmt: skip
"""The keys of a command that everybody needs, where it has many."""

HELP = """\
python -m finetune.{name} [key=value ...]

Give a group's name to choose a file of it, a dotted key to change one value:
{examples}

{first_keys}{options}== Keys and their values with these arguments (key=value) ==
{keys}{targets}
== Flags ==
-m                sweep: a run for every combination of values
--cfg job         show the configuration and stop
--config-dir DIR  your own YAML files
--hydra-help      all flags
"""


TARGETS = """
`_target_` is a class, and the keys beside it are its arguments: more of them
can be given with a plus, +optimizer.nesterov=true.
"""


def print_help(name: str, argv: list[str]) -> None:
    """Print groups and keys. Hydra's own help takes two seconds to list the groups, and more than 80 columns."""
    sweep = bool(SWEEP_FLAGS & set(argv))
    overrides = [word for word in argv if "=" in word and word[0] != "-" and not sweep]
    overrides += [f"hydra.searchpath=['file://{folder.resolve()}']" for folder in config_folders(argv)]
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        composed = hydra.compose(name, overrides, return_hydra_config=True)
    choices = {group: option for group, option in composed.hydra.runtime.choices.items() if "hydra" not in group}
    with open_dict(composed):
        del composed["hydra"]
    comments = key_comments.key_comments(name, choices, config_folders(argv))
    examples = "\n".join(f"  python -m finetune.{name} {example}" for example in EXAMPLES[name])
    keys = _with_comments(OmegaConf.to_yaml(composed), comments)
    values = {
        "examples": examples,
        "first_keys": _first_keys(name, comments),
        "options": _option_lists(composed, choices),
        "keys": keys,
        "targets": TARGETS if "optimizer:" in keys else "",
    }
    print(HELP.format(name=name, **values), end="")


def _first_keys(name: str, comments: dict[str, str]) -> str:
    """Return the keys that everybody needs with their comments, as text; empty for a command of few keys."""
    if name not in FIRST_KEYS:
        return ""
    comments = key_comments.choice_comments(name) | comments
    width = max(map(len, FIRST_KEYS[name])) + 2
    rows = (fill(f"{key:{width}}{comments[key]}", 80, subsequent_indent=" " * width) for key in FIRST_KEYS[name])
    return "== The keys that everybody needs ==\n" + "\n".join(rows) + "\n\n"


def _with_comments(keys: str, comments: dict[str, str]) -> str:
    """Put the comment of each key beside it, or above it where a line of 80 columns has no room for both."""
    lines = []
    for line, key in key_comments.iterate_keys(keys):
        comment = comments.get(key, "")
        beside = f"{line}  # {comment}"
        if not comment or len(beside) <= 80:
            lines.append(beside if comment else line)
        else:
            mark = " " * (len(line) - len(line.lstrip())) + "# "
            lines += [fill(comment, 80, initial_indent=mark, subsequent_indent=mark), line]
    return "\n".join(lines) + "\n"


def command_groups(cfg: DictConfig) -> list[str]:
    """Return the names of the config groups of a command."""
    optional = {"data/augment"} if "model" in cfg else set()
    if "strategy" in cfg:
        optional |= {"callbacks", "experiment", "metrics", "sweep/space"}
    folders = [*(path.name for path in paths.CONF.iterdir() if path.is_dir()), "data/augment", "sweep/space"]
    return [name for name in folders if name in cfg or name in optional]


def typed_groups(cfg: DictConfig, choices: Container[str]) -> dict[str, str]:
    """Return the groups of a command as they are typed, with a plus where it has none by itself, to their names.

    Args:
        cfg: of the command.
        choices: Hydra's record of the groups of which it has an option.
    """
    names = [name for name in command_groups(cfg) if (name in choices or name not in cfg) and name != "paths"]
    # a preset adds callbacks too, and leaves that where they are given
    return {f"+{name}" if name in ("callbacks", "metrics") else name: name for name in names}


def _option_lists(cfg: DictConfig, choices: Container[str]) -> str:
    """Return every group of a command with its options as text; the models are too many and are counted."""
    lists = {typed: group_options(name) for typed, name in typed_groups(cfg, choices).items()}
    if not lists:
        return ""
    if "model" in lists:
        lists["model"] = [f"`python -m finetune.models` lists the {len(FAMILIES)} of them; those of timm are timm:NAME"]
    width = max(map(len, lists))
    return (
        "== Groups (group=option) ==\n"
        + "".join(
            fill(f"{group + ':':{width + 2}}{', '.join(names)}", 80, subsequent_indent=" " * (width + 2)) + "\n"
            for group, names in sorted(lists.items())
        )
        + "\n"
    )
