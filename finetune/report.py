"""`python -m finetune.report RUN`: write the page of a finished run again, as every run does at its end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def report(argv: Sequence[str] | None = None) -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(prog="python -m finetune.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a sweep's")
    parser.add_argument("--root", type=Path, help="where the pictures are now, if they were moved")
    options = parser.parse_args(argv)

    from finetune.runtime.process import heavy_imports

    with heavy_imports():
        from finetune.cli import factories
        from finetune.reporting import runs
        from finetune.reporting.run_report import write_report
        from finetune.runtime.console import echo, echo_link, field_line

    factories.prepare_process()
    found, faults = runs.read_runs(runs.find_runs(options.runs))
    for run in found:
        try:
            note = write_report(run, root=options.root)
        except ValueError as error:
            faults.append(str(error))
            continue
        if note:
            echo(field_line("Note", note))
        echo_link("Report", run.folder / "report.html")
    if faults:
        raise ValueError("\n".join(faults))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    from finetune.cli.main import argparse_command  # here: the page of a run is written without hydra too

    argparse_command(report, argv)


if __name__ == "__main__":
    main()
