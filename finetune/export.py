"""`python -m finetune.export`: a checkpoint as a file that other programs load, compared with the model."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli import begin, heavy_imports, hydra_command


def export(cfg: DictConfig) -> float:
    """Write one file; returns the largest difference between its probabilities and the model's."""
    folder = begin(cfg, "export")

    with heavy_imports():
        from finetune import build, exporters, parity
        from finetune.checkpoint import write_json
        from finetune.classifier import load
        from finetune.console import entry, say

    build.prepare_process()
    model = load(cfg.ckpt, device="cpu", precision="32-true")
    say(entry("Model", f"{model.module.hparams['model']} for {len(model.classes)} classes"))
    pictures = parity.pictures(model, cfg.source, cfg.images)
    if cfg.quantize is not None and len(pictures.images) < parity.FEWEST:
        raise ValueError(
            f"quantize=int8 needs {parity.FEWEST} pictures or more, half of them to compare on; got {pictures.what}."
        )
    model.module.evaluate_as({})  # the network itself, as it is exported
    expected = parity.probabilities(lambda images: model.logits(images).softmax(dim=1), pictures.images)
    exported = exporters.EXPORTERS[cfg.format](model.module, folder)
    found = parity.compare(expected, parity.probabilities(exported.run, pictures.images), pictures.labels)
    good = found["max_dp"] <= cfg.tolerance  # a NaN is not
    values = {"ckpt": str(cfg.ckpt), "format": cfg.format, "file": exported.path.name, "good": good}
    values |= {"bytes": exported.path.stat().st_size, "compared_on": pictures.what, "tolerance": cfg.tolerance, **found}
    write_json(values, folder / "export.json")
    say(entry("Compared", f"on {pictures.what}: {parity.words(found)}"))
    if not good:
        exported.path.rename(exported.path.with_name(f"{exported.path.name}.rejected"))
        raise ValueError(
            f"The export differs by {found['max_dp']:.2g}, more than tolerance={cfg.tolerance:g}; it is now "
            f"{exported.path.name}.rejected in {folder}, and export.json has the numbers."
        )
    say(entry("File", f"{exported.path} ({values['bytes'] / 2**20:.1f} MiB)"))
    if cfg.quantize == "int8":
        write_json({**values, "int8": parity.quantized(exported, pictures, expected)}, folder / "export.json")
    say(entry("", "model.json says how to use it, export.json how it was compared"))
    return float(found["max_dp"])


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("export", export, argv)


if __name__ == "__main__":
    main()
