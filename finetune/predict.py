"""`python -m finetune.predict`: labels and probabilities of pictures, a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from finetune.cli import begin, heavy_imports, hydra_command
from finetune.errors import INTERRUPTED, SOME_FAILED, Exit


def predict(cfg: DictConfig) -> None:
    """Classify the pictures of one source."""
    folder = begin(cfg, "predict")

    with heavy_imports():
        from finetune import build, prediction, sources
        from finetune.console import entry, say

    source = sources.find(cfg.source)
    for note in source.notes:
        say(entry("Note", note))
    build.prepare_process()
    model = build.make_classifier(cfg)
    table = folder / f"predictions.{cfg.format}"
    try:
        outcome = prediction.predict(
            model,
            source,
            table,
            k=cfg.top_k,
            temperature=cfg.temperature,
            embeddings=folder / "embeddings.npy" if cfg.embeddings else None,
            copy_to=Path(cfg.copy_to) if cfg.copy_to is not None else None,
        )
    except KeyboardInterrupt as error:
        raise Exit(f"interrupted; the rows so far are in {table}.part", INTERRUPTED) from error
    if outcome.total == 0:
        raise ValueError(f"source={cfg.source}: no path came, so there was nothing to do.")
    if cfg.report:
        outcome.gallery.draw(folder / "plots" / "certain.png")
    say("\n".join(prediction.lines(outcome, table)))
    if cfg.embeddings:
        say(entry("", str(folder / "embeddings.npy")))
    if cfg.copy_to is not None:
        say(entry("Copies", str(cfg.copy_to)))
    if outcome.failures:
        raise Exit(f"{outcome.failures} of {outcome.total} pictures have no answer; their rows say why", SOME_FAILED)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("predict", predict, argv)


if __name__ == "__main__":
    main()
