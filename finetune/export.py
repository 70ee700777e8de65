"""`python -m finetune.export`: export a checkpoint to a file that other programs load, and compare it with the model."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli.direct import hydra_task
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run
from finetune.runtime.process import heavy_imports


@hydra_task("export")
def export(cfg: DictConfig) -> float:
    """Export one checkpoint; return the largest difference between the probabilities of the file and of the model."""
    folder = begin_run(cfg, "export")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.exporting import formats, verify
        from finetune.inference.classifier import load
        from finetune.io.files import write_json
        from finetune.runtime.console import echo, field_line, short_path

    factories.prepare_process()
    model = load(cfg.ckpt, device="cpu", precision="32-true")
    text = f"{model.module.model_name} for {len(model.classes)} classes"
    echo(field_line("Model", text + model.describe_temperature()))
    compared = verify.comparison_images(model, cfg.source, cfg.images)
    if cfg.quantize is not None:
        verify.require_int8_images(compared, cfg.images)
    expected = verify.model_probabilities(model, compared.images)
    if cfg.resize == "shared":
        exported = formats.RESIZING_EXPORTERS[cfg.format](model.module, folder)
        actual = verify.decoded_probabilities(exported.run, compared)
    else:
        exported = formats.EXPORTERS[cfg.format](model.module, folder)
        actual = verify.probabilities(exported.run, compared.images)
    result = verify.compare_probabilities(expected, actual, compared.labels)
    passed = result["max_abs_diff"] <= cfg.tolerance  # a NaN is not
    values = {
        "ckpt": str(cfg.ckpt),
        "format": cfg.format,
        "resize": cfg.resize,
        "file": exported.path.name,
        "passed": passed,
        **result,
    }
    values |= {"bytes": exported.path.stat().st_size, "compared_on": compared.description, "tolerance": cfg.tolerance}
    write_json(values, folder / "export.json")
    if cfg.resize == "shared":
        echo(field_line("Resize", "in the graph, exactly as here; it takes decoded images of any size"))
    echo(field_line("Compared", f"on {compared.description}: {verify.describe_comparison(result)}"))
    if not passed:
        exported.path.rename(exported.path.with_name(f"{exported.path.name}.rejected"))
        raise ValueError(
            f"The export differs by {result['max_abs_diff']:.2g}, more than tolerance={cfg.tolerance:g}; it is now "
            f"{exported.path.name}.rejected in {short_path(folder)}, and export.json has the numbers."
        )
    echo(field_line("File", f"{short_path(exported.path)} ({values['bytes'] / 2**20:.1f} MiB)"))
    if cfg.quantize == "int8":
        write_json({**values, "int8": verify.export_int8(exported, compared, expected)}, folder / "export.json")
    echo(field_line("", "model.json says how to use it, export.json how it was compared"))
    return float(result["max_abs_diff"])


def main(argv: Sequence[str] | None = None) -> float | list[float] | None:
    """Run the command; return the largest difference of a probability, of a sweep those of its jobs."""
    return hydra_command("export", export, argv)


if __name__ == "__main__":
    main()
