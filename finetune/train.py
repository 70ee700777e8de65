"""`python -m finetune.train`: train one model from a configuration, and write its record and its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from finetune.cli import recipes
from finetune.cli.direct import hydra_task
from finetune.cli.errors import INTERRUPTED, TERMINATED, Exit
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import began, begin_run, command_line
from finetune.runtime.process import heavy_imports

if TYPE_CHECKING:
    from finetune.reporting.result import TrainingRun


@hydra_task("train")
def train(cfg: DictConfig) -> float | None:
    """Train one model; return the best value of `monitor`, which a sweeper optimizes."""
    return fit(cfg).best


def fit(cfg: DictConfig) -> TrainingRun:
    """Train one model in the run folder of its command; return its results, its module and its data."""
    folder = begin_run(cfg, "train")

    with heavy_imports():  # errors above are reported without them
        from finetune.cli import factories
        from finetune.inspection import inspect
        from finetune.reporting import header, result, run_report, summary
        from finetune.runtime import timing
        from finetune.tracking import run_logger
        from finetune.training import distributed

    factories.prepare_process()
    recipes.announce_preset(cfg)
    clock = timing.PhaseTimer(began())
    with clock("data"):
        data = factories.make_data(cfg)
        findings = inspect.training_findings(data)
    with clock("network"):
        module = factories.make_module(cfg, data)
        trainer = factories.make_trainer(cfg, folder, module.metrics.monitor_mode)
        ckpt_path = factories.resume_path(cfg, module, data, folder)
    header.print_header(trainer, module, data, findings, folder)
    with run_logger.handing_over(trainer):
        try:
            with clock("fit"):
                trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
            with clock("test"):
                summary.evaluate_best(trainer, module, data)
        except (SystemExit, Exit) as error:
            # of GracefulShutdown; of Lightning at Ctrl-C; of SIGTERM outside of training
            if error.code not in (1, INTERRUPTED, TERMINATED):
                raise  # of submitit, which starts the job again
            saved = isinstance(error, SystemExit) and error.code in (INTERRUPTED, TERMINATED)
            distributed.leave_group(saved)  # all processes have agreed to end
            code = TERMINATED if error.code == TERMINATED else INTERRUPTED
            raise Exit(summary.describe_interruption(folder, saved), code) from error
        write_page = run_report.try_report if cfg.report else None
        summary.write_summary(trainer, module, data, findings, folder, clock, command_line("train"), write_page)
    return result.collect(trainer, module, data, folder)


def main(argv: Sequence[str] | None = None) -> float | list[float] | None:
    """Run the command; return the best value of `monitor`, of a sweep those of its runs."""
    return hydra_command("train", train, argv, recipes.finish_sweep)


if __name__ == "__main__":
    main()
