"""`python -m finetune.compare RUN RUN ...`: compare several runs, a sweep, or evaluations, in a table and on a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetune.cli.main import argparse_command
from finetune.runtime.console import echo, field_line
from finetune.runtime.process import heavy_imports


def compare(argv: Sequence[str] | None = None) -> None:
    """Print the comparison, and write `compare.html` and a table: `leaderboard.csv`, of evaluations `evaluations.csv`."""
    parser = argparse.ArgumentParser(prog="python -m finetune.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, a sweep's, or an evaluation's"
    )
    help_out = "the folder for the table and compare.html (default: the sweep's own; of several: comparison)"
    parser.add_argument("--out", type=Path, help=help_out)
    options = parser.parse_args(argv)

    with heavy_imports():
        from finetune.reporting import evaluations, runs
        from finetune.reporting.evaluation_comparison import write_evaluation_comparison
        from finetune.reporting.leaderboard import write_comparison

    default = options.runs[0] if len(options.runs) == 1 else Path("comparison")
    if evaluated := evaluations.find_evaluations(options.runs):
        evaluations.require_evaluations_only(options.runs, evaluated)
        write_evaluation_comparison(list(map(evaluations.read_evaluation, evaluated)), options.out or default)
        return
    found, errors = runs.read_runs(runs.find_runs(options.runs))
    if not found:
        raise ValueError("\n".join(errors))
    for error in errors:
        echo(field_line("Left out", error))
    write_comparison(found, options.out or default)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(compare, argv)


if __name__ == "__main__":
    main()
