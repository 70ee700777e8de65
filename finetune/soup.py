"""`python -m finetune.soup RUN RUN ...`: average the weights of several runs, or of a sweep's, as long as that helps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetune.cli.main import argparse_command
from finetune.runtime.process import heavy_imports


def soup(argv: Sequence[str] | None = None) -> None:
    """Write a checkpoint with the mean of the weights of some of the runs, and print which and how good it is."""
    parser = argparse.ArgumentParser(prog="python -m finetune.soup", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--out", type=Path, default=Path("soup.ckpt"), help="the checkpoint (default: soup.ckpt)")
    parser.add_argument("--root", type=Path, help="where the images are now, if they were moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(argv)
    if options.out.exists():
        raise ValueError(f"{options.out} is there already; give another --out.")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.data.datamodule import ImageDataModule
        from finetune.inference.soup import greedy_soup
        from finetune.reporting import runs
        from finetune.runtime.console import echo, echo_link, field_line

    factories.prepare_process()
    found, errors = runs.read_runs(runs.find_runs(options.runs))
    if len(found) < 2 and errors:
        raise ValueError("\n".join(errors))
    for error in errors:
        echo(field_line("Left out", error))
    data = ImageDataModule(options.root) if options.root is not None else None
    result = greedy_soup([run.best_checkpoint for run in found], options.out, options.device, data)
    echo(field_line("Soup", f"of {len(result.ingredients)} of {len(found)} runs, the best first:"))
    for path in result.ingredients:
        echo(field_line("", str(path.parent.parent)))
    if len(result.ingredients) == 1:
        echo(
            field_line(
                "Note", "no other run made it better: nothing was averaged, and the file is the best run's model."
            )
        )
    text = f"{result.acc:.4f}, of the best run alone {max(result.single_acc):.4f}; chosen on the same images, and so too good"
    echo(field_line("val/acc", text))
    echo_link("Model", options.out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(soup, argv)


if __name__ == "__main__":
    main()
