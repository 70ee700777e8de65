"""`python -m finetune.demo`: what transfer is worth, on real handwritten digits, offline, in four commands.

A small network learns the digits 0-4. It is then adapted to the digits 5-9 from five images of each, with its trunk
frozen and with its trunk learning slowly, and the same network learns those same images from random weights. Whatever
comes out is shown.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune import compare
from finetune.cli.main import argparse_command
from finetune.runtime.console import echo_link

COMMON = (
    "data=digits", "data.image_size=32", "data.augment=none", "optimizer=adamw", "model.preprocess={mean:0.5,std:0.5}",
)  # fmt: skip

FEW = (
    "data.classes=[5,6,7,8,9]",
    "data.per_class=5",
    "data.val_fraction=0.5",
    "trainer.max_epochs=12",
    "data.batch_size=5",
)


def train(folder: Path, *overrides: str) -> None:
    """One run of the real command, printed as it is typed."""
    command = [
        "-m",
        "finetune.train",
        *overrides,
        *COMMON,
        f"paths.data_dir={folder.parent}/data",
        f"hydra.run.dir={folder}",
    ]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        sys.exit(code)


def demo(argv: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where its runs go (default: %(default)s)")
    out = parser.parse_args(argv).out
    for name in ("source", "frozen", "differential", "scratch"):
        shutil.rmtree(out / name, ignore_errors=True)  # of an earlier demonstration
    print("1. A source model: the digits 0-4, from random weights.")
    train(out / "source", "strategy=scratch", "data.classes=[0,1,2,3,4]", "trainer.max_epochs=8")
    weights = out / "source" / "checkpoints" / "best.ckpt"
    # a new head takes ten times the rate of a whole network, as in the tutorials
    transfer = (f"model.weights={weights}", "optimizer.lr=1e-2", *FEW)
    print("\n2. Transfer: its trunk is frozen, a new head learns the digits 5-9 from five images of each.")
    train(out / "frozen", "strategy=feature_extract", *transfer)
    print("\n3. Transfer: the same, and the trunk learns too, at a tenth of the head's rate.")
    train(out / "differential", "strategy=differential", *transfer)
    print("\n4. The same 25 images, the same network, from random weights.")
    train(out / "scratch", "strategy=scratch", "optimizer.lr=1e-3", *FEW)
    print("\nTransfer against scratch, on the same validation images:\n")
    runs = [str(out / name) for name in ("frozen", "differential", "scratch")]
    compare.compare([*runs, "--out", str(out)])
    print("One seed, 25 images and a source of five digits: expect other numbers, and more of ImageNet's weights.")
    print("What the second is worth, and what it says of pictures:")
    print(f"  python -m finetune.evaluate ckpt={out}/differential")
    print(f"  python -m finetune.predict ckpt={out}/differential source={out}/data/digits/7")
    print(
        "Your own pictures are next:\n  python -m finetune.check data.root=FOLDER\n  python -m finetune.train data=imagefolder data.root=FOLDER"
    )
    print("\nTo look at, in a browser:")
    echo_link("", out / "differential" / "report.html")
    echo_link("", out / "compare.html")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    argparse_command(demo, argv)


if __name__ == "__main__":
    main()
