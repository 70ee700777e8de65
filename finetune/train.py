"""`python -m finetune.train`: from a configuration to a trained model, its record and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from finetune.cli.errors import INTERRUPTED, TERMINATED, Exit
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run, command_line
from finetune.runtime.process import heavy_imports


def train(cfg: DictConfig) -> float | None:
    """Train one model; returns the best value of `monitor`, which is what a sweeper looks at."""
    folder = begin_run(cfg, "train")

    with heavy_imports():  # what is wrong above is answered without
        from finetune.cli import factories
        from finetune.reporting import summary
        from finetune.runtime import timing

    factories.prepare_process()
    clock = timing.PhaseTimer()
    with clock("data"):
        data = factories.make_data(cfg)
    with clock("network"):
        module = factories.make_module(cfg, data)
        trainer = factories.make_trainer(cfg, folder)
        ckpt_path = factories.resume_path(cfg, module, data, folder)
    summary.print_header(trainer, module, data, folder, cfg.report)
    try:
        with clock("fit"):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        with clock("test"):
            summary.test_best(trainer, module, data)
    except (
        SystemExit,
        Exit,
    ) as error:  # from StopGracefully; Lightning's answer to Ctrl-C; SIGTERM outside of training
        in_peace = isinstance(error, SystemExit) and error.code in (INTERRUPTED, TERMINATED)
        code = TERMINATED if error.code == TERMINATED else INTERRUPTED
        raise Exit(summary.how_to_resume(folder, in_peace), code) from error
    return summary.write_summary(trainer, module, data, folder, cfg, clock, command_line("train"))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("train", train, argv, _compare)


def _compare(folder: Path) -> None:
    from finetune.reporting.leaderboard import compare_sweep

    compare_sweep(folder)


if __name__ == "__main__":
    main()
