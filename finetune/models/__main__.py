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

    Raises:
        ValueError: no name does; the message names the nearest three.
    """
    wild = any(c in pattern for c in "*?[")
    names = sorted(n for n in FAMILIES if (fnmatch(n, pattern) if wild else pattern in n))
    if not names:
        raise ValueError(unknown_name("model like", pattern, FAMILIES, "`python -m finetune.models` lists all."))
    return names


def rows(names: Sequence[str]) -> list[list[str]]:
    """Return a row a model: name, parameters, input size in pixels, ImageNet top-1 in %, head, state of the weights.

    The state says whether the file of the default weights is on this machine.
    """
    from finetune.models.weights import cached_weights, find_weights

    table = []
    for name in names:
        family = FAMILIES[name]
        if family.build is not None:
            table.append([name, "-", "-", "-", family.head, "your own"])
            continue
        weights = find_weights(name, "default")
        top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        size = weights.transforms().crop_size[0]
        state = "here" if cached_weights(weights).exists() else "to fetch"
        table.append([name, f"{weights.meta['num_params'] / 1e6:.1f} M", str(size), f"{top1:.1f}", family.head, state])
    return table


def list_models(argv: Sequence[str] | None = None) -> None:
    """Print the table of models.

    Raises:
        ValueError: no model matches the pattern.
    """
    parser = argparse.ArgumentParser(prog="python -m finetune.models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, or a pattern such as 'resnet*'")
    names = matching(parser.parse_args(argv).pattern)

    from finetune.runtime.console import print_table

    columns = ["model", "parameters", "pixels", "top-1 %", "head", "weights"]
    print_table(f"{len(names)} models (default ImageNet weights)", columns, rows(names), right_to=4)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(list_models, argv)


if __name__ == "__main__":
    main()
