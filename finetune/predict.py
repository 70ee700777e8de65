"""`python -m finetune.predict`: predict labels and probabilities of images, a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from finetune.cli.direct import hydra_task
from finetune.cli.errors import INTERRUPTED, SOME_FAILED, Exit
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run
from finetune.runtime.process import heavy_imports


@hydra_task("predict")
def predict(cfg: DictConfig) -> Path:
    """Classify the images of one source; return the path of the table."""
    folder = begin_run(cfg, "predict")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.inference import inputs, prediction
        from finetune.reporting import figures
        from finetune.runtime.console import echo, field_line, short_path

    source = inputs.find_inputs(cfg.source)
    for note in source.notes:
        echo(field_line("Note", note))
    factories.prepare_process()
    model = factories.make_classifier(cfg)
    threshold = factories.make_threshold(cfg, model)
    table, embeddings = folder / f"predictions.{cfg.format}", folder / "embeddings.npy" if cfg.embeddings else None
    options = {"embeddings": embeddings, "copy_to": Path(cfg.copy_to) if cfg.copy_to is not None else None}
    try:
        outcome = prediction.predict(model, source, table, k=cfg.top_k, min_confidence=threshold, **options)
    except KeyboardInterrupt as error:
        raise Exit(f"interrupted; the rows so far are in {short_path(table)}.part", INTERRUPTED) from error
    if outcome.total == 0:
        raise ValueError(f"source={cfg.source}: no path came, so there was nothing to do.")
    if cfg.report:
        figures.save_gallery(outcome.gallery.rows(), folder / "plots" / "certain.png")
    echo("\n".join(prediction.summary_lines(outcome, table)))
    if embeddings is not None:
        echo(field_line("", short_path(embeddings)))
    if cfg.copy_to is not None:
        echo(field_line("Copies", short_path(cfg.copy_to)))
    if outcome.failures:
        text = f"{outcome.failures} of {outcome.total} images have no prediction; their rows say why"
        raise Exit(text, SOME_FAILED, table)
    return table


def main(argv: Sequence[str] | None = None) -> Path | list[Path] | None:
    """Run the command; return the path of the table, of a sweep those of its jobs."""
    return hydra_command("predict", predict, argv)


if __name__ == "__main__":
    main()
