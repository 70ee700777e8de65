"""Read what the comments of the YAML files say of the keys beside them: `--help` and the configuration reference show it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from finetune.io.paths import CONF

_KEY = re.compile(r"( *)([\w./]+):(?: |$)")
COMMENT = re.compile(r"(?:^|(?<=\s))# (.+)$")
_PACKAGE = re.compile(r"^# @package (\S+)\n", re.MULTILINE)
_CHOICE = re.compile(r"^  - ([\w/]+): [^#]*# (.+)$", re.MULTILINE)


def key_comments(command: str, choices: Mapping[str, object], folders: Sequence[Path] = ()) -> dict[str, str]:
    """Return the comment of each key of a composed configuration by its dotted name.

    A key that the chosen option leaves without a comment takes that of `_base.yaml`, else of another option of its group.

    Args:
        command: its YAML file is `conf/<command>.yaml`.
        choices: config group to the option that is chosen.
        folders: of YAML files of the user's own.
    """
    comments: dict[str, str] = {}
    for group, option in choices.items():
        files = [file for folder in (CONF, *folders) for file in sorted((folder / group).glob("*.yaml"))]
        for file in sorted(files, key=lambda file: (file.stem == option, file.stem == "_base")):  # the last counts
            text = file.read_text(encoding="utf-8", errors="replace")
            comments |= {prefix_of(text, group) + key: comment for key, comment in read_comments(text).items()}
    return comments | read_comments((CONF / f"{command}.yaml").read_text(encoding="utf-8"))


def choice_comments(command: str) -> dict[str, str]:
    """Return what the list of defaults of a command says of the groups, by the group's name."""
    return dict(_CHOICE.findall((CONF / f"{command}.yaml").read_text(encoding="utf-8")))


def read_comments(text: str) -> dict[str, str]:
    """Return the comment of each key of a YAML text by its dotted name; it goes on in lines whose # is below its own.

    >>> read_comments("a:\\n  b: 1    # first\\n          # second\\nc: 2  # third")
    {'a.b': 'first second', 'c': 'third'}
    """
    comments: dict[str, str] = {}
    above = ("", -1)  # the key whose comment may go on, and the column of its #
    for line, key in iterate_keys(text):
        comment = COMMENT.search(line)
        if comment and line.strip().startswith("#") and comment.start() == above[1]:
            comments[above[0]] += f" {comment[1]}"
        elif comment and key:
            above = (key, comment.start())
            comments[key] = comment[1]
        else:
            above = ("", -1)
    return comments


def read_header(text: str) -> str:
    """Return the comment at the top of a YAML text, as lines."""
    lines = _PACKAGE.sub("", text).splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


def prefix_of(text: str, group: str) -> str:
    """Return what stands before the keys of an option in the composed configuration: `optimizer.`."""
    package = found[1] if (found := _PACKAGE.search(text)) else group.replace("/", ".")
    return "" if package == "_global_" else f"{package}."


def iterate_keys(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line of a YAML text, and the dotted name of the key that it begins; empty within lists, and for no key."""
    parents: list[tuple[int, str]] = []
    list_indent = -1
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("- "):
            list_indent = indent
        elif line.strip() and indent <= list_indent:
            list_indent = -1
        if list_indent < 0 and (found := _KEY.match(line)):
            parents = [parent for parent in parents if parent[0] < indent] + [(indent, found[2])]
            yield line, ".".join(name for _, name in parents)
        else:
            yield line, ""
