"""`python -m finetune.models [pattern]`: list the models by name, with their size, accuracy and head."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatch

from finetune.cli.main import argparse_command
from finetune.models.specs import FAMILIES
from finetune.runtime.suggestions import unknown_name


def matching(pattern: str) -> list[str]:
    """Return the names that contain the pattern, or match it where it has * or ?.

    A pattern that begins with `timm:` is for timm's networks; with a dot in it, for those with the tags of their weights.

    Raises:
        ValueError: no name does; the message names the nearest three. Or timm is not installed.
    """
    from finetune.models import packaged_weights, timm_library

    wild = any(c in pattern for c in "*?[")
    known = sorted(FAMILIES)
    if pattern.startswith(f"{timm_library.PREFIX}:"):
        timm_library.import_timm()
        known = timm_library.list_tagged_names() if "." in pattern else timm_library.list_names()
    elif timm_library.is_installed():
        known += packaged_weights.PACKAGED  # their weights are here, or can be installed
    names = [n for n in known if (fnmatch(n, pattern) if wild else pattern in n)]
    if not names:
        hint = "`python -m finetune.models` lists all; 'timm:*' those of timm."
        raise ValueError(unknown_name("model like", pattern, known, hint))
    return names


def rows(names: Sequence[str]) -> list[list[str]]:
    """Return a row a model: name, parameters, input size in pixels, ImageNet top-1 in %, head, state of the weights.

    The state says whether the file of the default weights is on this machine. Parameters of timm's networks are counted by
    building each, for at most a hundred.
    """
    from finetune.models.libraries import find_library

    return [[name, *find_library(name).row(name, counts=len(names) <= 100)] for name in names]


def list_models(argv: Sequence[str] | None = None) -> None:
    """Print the table of models.

    Raises:
        ValueError: no model matches the pattern.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune.models", description=__doc__)
    parser.add_argument(
        "pattern", nargs="?", default="", help="part of a name, a pattern such as 'resnet*', or 'timm:conv*'"
    )
    names = matching(parser.parse_args(argv).pattern)

    from finetune.runtime.console import print_table

    columns = ["model", "parameters", "pixels", "top-1 %", "head", "weights"]
    print_table(f"{len(names)} models (default ImageNet weights)", columns, rows(names), right_to=4)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(list_models, argv)


if __name__ == "__main__":
    main()
