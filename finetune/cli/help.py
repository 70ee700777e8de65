"""Print the help of a command: its groups and keys, with the comments of its YAML file."""

from __future__ import annotations

import re
from textwrap import fill

import hydra
from omegaconf import DictConfig, OmegaConf

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

HELP = """\
python -m finetune.{name} [key=value ...]

Give a group's name to choose a file of it, a dotted key to change one value:
{examples}

{options}== Keys and their defaults (key=value) ==
{keys}
== Flags ==
-m                sweep: a run for every combination of values
--cfg job         show the configuration and stop
--config-dir DIR  your own YAML files
--hydra-help      all flags
"""


def print_help(name: str, argv: list[str]) -> None:
    """Print groups and keys. Hydra's own help takes two seconds to list the groups, and more than 80 columns."""
    sweep = bool(SWEEP_FLAGS & set(argv))
    overrides = [word for word in argv if "=" in word and word[0] != "-" and not sweep]
    overrides += [f"hydra.searchpath=['file://{folder.resolve()}']" for folder in config_folders(argv)]
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3"):
        composed = hydra.compose(name, overrides)
    examples = "\n".join(f"  python -m finetune.{name} {example}" for example in EXAMPLES[name])
    values = {
        "examples": examples,
        "options": _option_lists(composed),
        "keys": _with_comments(name, OmegaConf.to_yaml(composed)),
    }
    print(HELP.format(name=name, **values), end="")


def _with_comments(name: str, keys: str) -> str:
    """Put the comment of a command's YAML file above each of its keys."""
    text = (paths.CONF / f"{name}.yaml").read_text(encoding="utf-8")
    comments = dict(re.findall(r"^(\w+):[^#\n]*# (.+)$", text, re.MULTILINE))
    lines = []
    for line in keys.splitlines():
        if (comment := comments.get(line.partition(":")[0])) is not None:
            lines.append(fill(comment, 80, initial_indent="# ", subsequent_indent="# "))
        lines.append(line)
    return "\n".join(lines) + "\n"


def command_groups(cfg: DictConfig) -> list[str]:
    """Return the names of the config groups of a command."""
    optional = ("callbacks", "experiment", "data/augment", "sweep/space") if "model" in cfg else ()
    folders = [*(path.name for path in paths.CONF.iterdir() if path.is_dir()), "data/augment", "sweep/space"]
    return [name for name in folders if name in cfg or name in optional]


def _option_lists(cfg: DictConfig) -> str:
    """Return every group of a command with its options as text; the models are too many and are counted."""
    lists = {name: group_options(name) for name in command_groups(cfg)}
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
