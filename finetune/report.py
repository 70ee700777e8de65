"""`python -m finetune.report RUN`: write the page of a finished run again, as every run does at its end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.cli.main import argparse_command
from finetune.runtime.process import heavy_imports


def report(argv: Sequence[str] | None = None) -> None:
    """Write the pages of the runs that are named."""
    parser = argparse.ArgumentParser(prog="python -m finetune.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--root", type=Path, help="where the images are now, if they were moved")
    options = parser.parse_args(argv)

    with heavy_imports():
        from finetune.cli import factories
        from finetune.data.datamodule import ImageDataModule
        from finetune.reporting import run_report, runs
        from finetune.runtime.console import echo, echo_link, field_line

    factories.prepare_process()
    found, errors = runs.read_runs(runs.find_runs(options.runs))
    for run in found:
        try:
            note = run_report.write_report(run, data=ImageDataModule(**_data_options(run, options.root)))
        except ValueError as error:
            errors.append(str(error))
            continue
        if note:
            echo(field_line("Note", note))
        echo_link("Report", run.folder / "report.html")
    if errors:
        raise ValueError("\n".join(errors))


def _data_options(run: Any, root: Path | None) -> dict[str, Any]:
    from finetune.cli import factories

    cfg: Any = OmegaConf.create(run.config)
    options = factories.data_options(cfg)
    if root is None and options["dataset"] is None:
        return {}  # where the checkpoint says
    return {**options, "root": root or (options["root"] and run.metrics["data"])}  # that of the options may be relative


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(report, argv)


if __name__ == "__main__":
    main()
