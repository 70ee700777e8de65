"""`python -m finetune.evaluate`: what a checkpoint is worth, on the images that its run held out or on others."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli import begin, heavy_imports, hydra_command


def evaluate(cfg: DictConfig) -> float:
    """Judge one checkpoint; returns its accuracy."""
    folder = begin(cfg, "evaluate")

    with heavy_imports():
        from finetune import build, evaluation, held_out
        from finetune.console import entry, say

    build.prepare_process()
    model = build.make_classifier(cfg)
    images = held_out.find(model.module.about, model.classes, cfg.split, build.make_evaluation_data(cfg))
    say(entry("Images", images.what))
    for note in images.notes:
        say(entry("Note", note))
    if images.bad_files:
        say(entry("Left out", f"{len(images.bad_files)} unreadable files (bad_files.csv lists them)"))
    judgement = evaluation.judge(model, images, cfg.top_k, cfg.data.batch_size, cfg.data.num_workers)
    judgement.values.update(ckpt=str(cfg.ckpt), split=cfg.split, tta=cfg.tta)
    evaluation.write(model, images, judgement, folder, cfg.report)
    evaluation.show(judgement.values, folder)
    return float(judgement.values["acc"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("evaluate", evaluate, argv)


if __name__ == "__main__":
    main()
