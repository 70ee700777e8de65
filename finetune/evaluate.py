"""`python -m finetune.evaluate`: evaluate a checkpoint on the images that its run held out, or on others."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli.direct import hydra_task
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run
from finetune.runtime.process import heavy_imports


@hydra_task("evaluate")
def evaluate(cfg: DictConfig) -> float:
    """Evaluate one checkpoint; return its accuracy."""
    folder = begin_run(cfg, "evaluate")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.inference import eval_data, evaluation
        from finetune.reporting import evaluation_files
        from finetune.runtime.console import echo, field_line

    factories.prepare_process()
    model = factories.make_classifier(cfg)
    record, data = model.module.metadata.data, factories.make_evaluation_data(cfg, model)
    images = eval_data.find_cut_off(eval_data.find_eval_data(record, model.classes, cfg.split, data))
    images = eval_data.find_trained_on(record, images, data)
    echo(field_line("Images", images.description))
    for note in images.notes:
        echo(field_line("Note", note))
    if images.bad_files:
        echo(field_line("Left out", f"{len(images.bad_files)} unreadable files (bad_files.csv lists them)"))
    more = factories.make_evaluation_metrics(cfg, model)
    result = evaluation.evaluate(model, images, cfg.top_k, cfg.data.batch_size, cfg.data.num_workers, more)
    result.values.update(ckpt=str(cfg.ckpt), split=cfg.split, tta=cfg.tta)
    evaluation_files.write_evaluation(model, images, result, folder, cfg.report)
    evaluation_files.print_evaluation(result.values, folder)
    return float(result.values["acc"])


def main(argv: Sequence[str] | None = None) -> float | list[float] | None:
    """Run the command; return the accuracy, of a sweep those of its jobs."""
    return hydra_command("evaluate", evaluate, argv)


if __name__ == "__main__":
    main()
