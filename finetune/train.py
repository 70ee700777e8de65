"""`python -m finetune.train`: from a configuration to a trained model, its record and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from finetune.cli import begin, heavy_imports, hydra_command, typed
from finetune.errors import INTERRUPTED, TERMINATED, Exit


def train(cfg: DictConfig) -> float | None:
    """Train one model; returns the best value of `monitor`, which is what a sweeper looks at."""
    folder = begin(cfg, "train")

    with heavy_imports():  # what is wrong above is answered without
        from finetune import build, results

    build.prepare_process()
    clock = results.Clock()
    with clock("data"):
        data = build.make_data(cfg)
    with clock("network"):
        module = build.make_module(cfg, data)
        trainer = build.make_trainer(cfg, folder)
        ckpt_path = build.resume_path(cfg, module, data, folder)
    results.introduce(trainer, module, data, folder, cfg.report)
    try:
        with clock("fit"):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        with clock("test"):
            results.test_best(trainer, module, data)
    except (
        SystemExit,
        Exit,
    ) as error:  # from StopGracefully; Lightning's answer to Ctrl-C; SIGTERM outside of training
        in_peace = isinstance(error, SystemExit) and error.code in (INTERRUPTED, TERMINATED)
        code = TERMINATED if error.code == TERMINATED else INTERRUPTED
        raise Exit(results.how_to_resume(folder, in_peace), code) from error
    return results.finish(trainer, module, data, folder, cfg, clock, typed("train"))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("train", train, argv, _compare)


def _compare(folder: Path) -> None:
    from finetune.compare import after_sweep

    after_sweep(folder)


if __name__ == "__main__":
    main()
