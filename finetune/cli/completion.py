"""Complete command lines in a shell.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from omegaconf import DictConfig

from finetune.cli import compose, groups, help
from finetune.cli.errors import HYDRA_COMMANDS
from finetune.cli.schema import CHOICES, FORMATS, METRICS
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
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_finetune() {
    local -a found
    found=(${(f)"$(finetune --complete "${(j: :)words[1,CURRENT-1]} $PREFIX")"})
    compset -P '*='
    (( $#found )) && compadd -Q -S '' -a found || _files
}
compdef _finetune finetune
""",
}
"""Shell to what it evaluates once. Where nothing is known, the names of files are completed."""


FLAGS = ("--help", "--cfg", "--config-dir", "-m")

NOT_TYPED = ("hydra", "sweep.trial")
"""What a person does not type."""


def complete(line: str, commands: Collection[str]) -> list[str]:
    """Return what may stand in place of the last word of a line, from its last `=` on: what a shell replaces.

    Args:
        line: up to the cursor, with `finetune` in front.
        commands: their names.
    """
    _, *words = [*(line.split() or [""]), *([""] if line.endswith(" ") else [])]
    if len(words) < 2:
        return [f"{name} " for name in commands for typed in words if name.startswith(typed)]
    command, *before, word = words
    if command == "cache":
        return [f"{action} " for action in ("clear", "list") if action.startswith(word)]
    if command not in HYDRA_COMMANDS or before[-1:] == ["--config-dir"]:
        return []  # runs, files and folders
    if word.startswith("-"):
        return sorted(f"{flag} " for flag in FLAGS if flag.startswith(word))
    start = word.rfind("=") + 1
    try:
        cfg = compose.compose_without_validation(command, [w for w in before if "=" in w and w[0] not in "-+~"])
    except (ValueError, OSError):  # a word before is none
        cfg = compose.compose_without_validation(command, [])
    return sorted({each[start:] for each in _arguments(command, cfg, word) if each.startswith(word)})


def _arguments(command: str, cfg: DictConfig, word: str) -> Iterator[str]:
    """Yield the groups, with a key their options, and the keys and values on the level of a word."""
    options = {
        name: groups.group_options(key) for name, key in help.typed_groups(cfg, cfg.hydra.runtime.choices).items()
    }
    options["preset"] = groups.group_options("presets") if "preset" in cfg else []
    if "=" in word:
        head, comma, _ = word.rpartition(",")  # several values make a sweep
        key = word.partition("=")[0]
        values = [*options.get(key, ()), *_values(command, cfg, key)]
        yield from (f"{head}{comma}{value} " if comma else f"{key}={value} " for value in values)
        return
    yield from (f"{name}=" for name, names in options.items() if names and name not in NOT_TYPED)
    parent = word.rpartition(".")[0]
    level = select(cfg, parent) if parent else cfg
    for name in level if isinstance(level, DictConfig) else ():
        if (full := f"{parent}.{name!s}".lstrip(".")) not in NOT_TYPED:
            node = level._get_node(name)
            yield full + ("." if isinstance(node, DictConfig) and len(node) else "=")


def _values(command: str, cfg: DictConfig, key: str) -> list[str]:
    """Return the values that a key may have, where they can be told."""
    known: Sequence[object] = CHOICES.get(key, ())
    if key == "format":
        known = FORMATS.get(command, ())
    elif key == "monitor":
        known = METRICS
    elif isinstance(select(cfg, key), bool):
        known = (True, False)
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in known]
