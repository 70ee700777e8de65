"""`python -m finetune.demo`: compare transfer with training from scratch on real handwritten digits, offline."""

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

COMMON = ("data=digits", "data.image_size=32", "data.augment=none", "optimizer=adamw", "model.preprocess={mean:0.5,std:0.5}")  # fmt: skip
FEW = ("data.classes=[5,6,7,8,9]", "data.per_class=5", "data.val_fraction=0.5", "trainer.max_epochs=12", "data.batch_size=5")  # fmt: skip
# a new head takes ten times the rate of a whole network, as in the tutorials
TRANSFER = ("model.weights=OUT/source/checkpoints/best.ckpt", "optimizer.lr=1e-2", *FEW)
RUNS = {  # folder: title, words of the command
    "source": ("A source model: the digits 0-4, from random weights.", "strategy=scratch", "data.classes=[0,1,2,3,4]", "trainer.max_epochs=8"),
    "frozen": ("Transfer: its trunk is frozen, a new head is trained on five images of each of the digits 5-9.", "strategy=feature_extract", *TRANSFER),
    "differential": ("Transfer: the same, and the trunk is trained at a tenth of the head's rate.", "strategy=differential", *TRANSFER),
    "scratch": ("The same 25 images, the same network, from random weights.", "strategy=scratch", "optimizer.lr=1e-3", *FEW),
}  # fmt: skip
NEXT = """One seed, 25 images and a source of five digits: expect other numbers, and more of ImageNet's weights.
Evaluate a run, and predict images with it; your own images are next:
  python -m finetune.evaluate ckpt=OUT/differential
  python -m finetune.predict ckpt=OUT/differential source=OUT/data/digits/7
  python -m finetune.check data.root=FOLDER
  python -m finetune.train data=imagefolder data.root=FOLDER"""


def demo(argv: Sequence[str] | None = None) -> None:
    """Run the demonstration: the real commands, printed as they are typed."""
    parser = argparse.ArgumentParser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where its runs go (default: %(default)s)")
    out = parser.parse_args(argv).out
    for number, (name, (title, *words)) in enumerate(RUNS.items(), start=1):
        words = [word.replace("OUT", str(out)) for word in (*words, *COMMON, "paths.data_dir=OUT/data")]
        command = ["-m", "finetune.train", *words, f"hydra.run.dir={out / name}"]
        shutil.rmtree(out / name, ignore_errors=True)  # of an earlier demonstration
        print(f"\n{number}. {title}\n\n$ python {shlex.join(command)}", flush=True)
        if code := subprocess.run([sys.executable, *command]).returncode:
            sys.exit(code)
    print("\nTransfer against scratch, on the same validation images:\n", flush=True)
    compare.compare([*(str(out / name) for name in RUNS if name != "source"), "--out", str(out)])
    print(NEXT.replace("OUT", str(out)))
    echo_link("See", out / "differential" / "report.html")
    echo_link("", out / "compare.html")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(demo, argv)


if __name__ == "__main__":
    main()
