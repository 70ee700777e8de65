"""Say on the command line which images data are made of, so that another command reads the same ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from finetune.data.datamodule import ImageDataModule

VERBATIM = ("images", "group")
"""Keys of data whose values `finetune.cli` quotes for Hydra by itself: paths and regular expressions."""

_PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|inf|nan)$)[A-Za-z_][\w/-]*", re.IGNORECASE | re.ASCII)


def data_words(data: ImageDataModule) -> list[str]:
    """Return the arguments that name the data and how they are read and split, where that is not the default.

    They are not quoted for a shell: `shlex.join` does that.
    """
    words = {} if data.root is None else {"root": f"data.root={data.root}"}
    for options in (data.reading, data.splitting):
        for option in fields(options):
            value = getattr(options, option.name)
            if value != option.default and value not in (None, {}, []):
                words[option.name] = f"data.{option.name}={_hydra_value(value, option.name in VERBATIM)}"
    return list(words.values())


def _hydra_value(value: Any, verbatim: bool = False) -> str:
    """Return a value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra_value, value)) + "]"
    text = str(value)
    if (
        isinstance(value, int | float)
        or _PLAIN.fullmatch(text)
        or (verbatim and text[0] not in "'\"" and "${" not in text)
    ):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
