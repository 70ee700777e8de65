"""`python -m finetune.models [pattern]`: list the models by name, with their size, accuracy and head."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from finetune.cli.main import argparse_command
from finetune.runtime.process import heavy_imports


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
    pattern = parser.parse_args(argv).pattern

    with heavy_imports():
        from finetune.models.candidates import matching_names
        from finetune.runtime.console import print_table

    names = matching_names(pattern)

    columns, cells = ["model", "parameters", "pixels", "top-1 %", "head", "weights"], rows(names)
    shown = [i for i in range(len(columns)) if columns[i] in ("model", "weights") or {row[i] for row in cells} != {"-"}]
    title = f"{len(names)} model{'s' if len(names) > 1 else ''} (default ImageNet weights)"
    table = [[row[i] for i in shown] for row in cells]
    print_table(title, [columns[i] for i in shown], table, right_to=len(shown) - 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(list_models, argv)


if __name__ == "__main__":
    main()
