"""`python -m finetune.check`: check a data set before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli.direct import hydra_task
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run, command_line
from finetune.inspection.finding import Finding
from finetune.runtime.process import heavy_imports


@hydra_task("check")
def check(cfg: DictConfig) -> list[Finding]:
    """Check every image and return what was found, the most severe first; nothing of the data is changed."""
    folder = begin_run(cfg, "check")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.inspection import inspect
        from finetune.reporting import check_page

    factories.prepare_process()
    inspection = inspect.inspect_data(factories.make_checked_data(cfg), cfg.phash_threshold)
    check_page.write_check(inspection, folder, cfg.report, command_line("check"))
    check_page.print_check(inspection, folder, cfg.report)
    return inspection.findings


def main(argv: Sequence[str] | None = None) -> list[Finding] | list[list[Finding]] | None:
    """Run the command; return what was found, of a sweep for each of its jobs."""
    return hydra_command("check", check, argv)


if __name__ == "__main__":
    main()
