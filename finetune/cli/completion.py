"""Complete command lines in a shell.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from omegaconf import DictConfig

from finetune.cli import compose, groups, help
from finetune.cli.errors import HYDRA_COMMANDS
from finetune.cli.schema import CHOICES
from finetune.runtime.mappings import select

SCRIPTS = {
    "bash": """\
_finetune() {
    local IFS=$'\\n'
    COMPREPLY=($(finetune --complete "${COMP_LINE:0:COMP_POINT}"))
}
complete -o default -o nospace -F _finetune finetune
""",
    "zsh": """\
autoload -Uz compinit && compinit
_finetune() {
    local -a found
    found=(${(f)"$(finetune --complete "$LBUFFER")"})
    compset -P '*='
    (( $#found )) && compadd -Q -S '' -a found || _files
}
compdef _finetune finetune
""",
}
"""Shell to what it evaluates once. Where nothing is known, the names of files are completed."""


def complete(line: str, commands: Collection[str]) -> list[str]:
    """Return what may stand in place of the last word of a line, from its last `=` on: what a shell replaces.

    Args:
        line: up to the cursor, with `finetune` in front.
        commands: their names.
    """
    _, *words = [*line.split(), *([""] if line.endswith(" ") else [])]
    if len(words) < 2:
        return [f"{name} " for name in commands for typed in words if name.startswith(typed)]
    command, *before, word = words
    if command not in HYDRA_COMMANDS:
        return []  # runs and files
    start = word.rfind("=") + 1
    try:
        cfg = compose.compose_without_validation(command, [w for w in before if "=" in w and w[0] not in "-+~"])
    except (ValueError, OSError):  # a word before is none
        cfg = compose.compose_without_validation(command, [])
    return sorted({each[start:] for each in _arguments(cfg, word) if each.startswith(word)})


def _arguments(cfg: DictConfig, word: str) -> Iterator[str]:
    """Yield the groups, with a key their options, and the keys and values on the level of a word."""
    key = word.partition("=")[0]
    options = {name: groups.group_options(name) for name in help.command_groups(cfg) if name != "hydra"}
    options["preset"] = groups.group_options("presets") if "preset" in cfg else []
    if "=" in word:
        yield from (f"{key}={value} " for value in [*options.get(key, ()), *_values(CHOICES.get(key, ()))])
        return
    yield from (f"{name}=" for name, names in options.items() if names)
    parent = key.rpartition(".")[0]
    level = select(cfg, parent) if parent else cfg
    for name in level if isinstance(level, DictConfig) else ():
        if name != "hydra":
            node = level._get_node(name)
            yield f"{parent}.{name!s}".lstrip(".") + ("." if isinstance(node, DictConfig) and len(node) else "=")


def _values(values: Sequence[object]) -> list[str]:
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
