"""`python -m finetune.check`: an honest picture of the data, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from finetune.cli import begin, heavy_imports, hydra_command, typed


def check(cfg: DictConfig) -> None:
    """Look at every picture; nothing of the data is changed."""
    folder = begin(cfg, "check")

    with heavy_imports():
        from finetune import build, inspection

    build.prepare_process()
    found = inspection.inspect(build.make_checked_data(cfg), cfg.near)
    inspection.write(found, folder, cfg.report, typed("check"))
    inspection.show(found, folder, cfg.report)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    hydra_command("check", check, argv)


if __name__ == "__main__":
    main()
