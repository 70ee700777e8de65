"""The tutorial's experiment on the real ants and bees: three strategies, five seeds, one table.

    python benchmarks/hymenoptera.py [--shared ../shared] [--model timm:tf_efficientnet_lite0] [--out hymenoptera.json]

squeezenet1_1 or EfficientNet-Lite0 with its ImageNet trunk, batch 8, SGD 1e-3 with momentum 0.9, 15 epochs: the settings of torchvision's
"Finetuning Torchvision Models", nothing tuned on these 153 validation images, every seed in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STRATEGIES = ("feature_extract", "finetune", "scratch")
TRUNKS = {
    "squeezenet1_1": "squeezenet1_1-imagenet-features.pth",
    "timm:tf_efficientnet_lite0": "tf_efficientnet_lite0-imagenet.pth",
}


def run(shared: Path, model: str, strategy: str, seed: int, folder: Path) -> dict[str, float]:
    """One run of the command, in a process of its own; its best accuracy and its seconds."""
    command = [
        sys.executable, "-m", "finetune.train", f"model={model}", f"model.weights={shared}/weights/{TRUNKS[model]}",
        "data=hymenoptera", f"data.root={shared}/data/hymenoptera_data", f"strategy={strategy}",
        "trainer.max_epochs=15", "data.batch_size=8", "optimizer.lr=0.001", f"seed={seed}", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "metrics.json").read_text())
    return {
        "acc": found["best"]["val/acc"],
        "last": found["last"]["val/acc"],
        "seconds": found["seconds"]["total"],
    }


def main() -> None:
    """Run everything and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--model", choices=TRUNKS, default="squeezenet1_1")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("hymenoptera.json"))
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for strategy in options.strategies:
            results[strategy] = []
            for seed in range(options.seeds):
                results[strategy].append(
                    run(options.shared, options.model, strategy, seed, Path(folder) / f"{strategy}_{seed}")
                )
                options.out.write_text(json.dumps(results, indent=1))
                print(strategy, seed, results[strategy][-1], flush=True)
    print("| strategy | " + " | ".join(f"seed {i}" for i in range(options.seeds)) + " | mean | seconds (median) |")
    print("|---|" + "---|" * (options.seeds + 2))
    for strategy, runs in results.items():
        accuracies = [r["acc"] for r in runs]
        cells = [f"{a:.4f}" for a in (*accuracies, statistics.mean(accuracies))]
        print(f"| `{strategy}` | {' | '.join(cells)} | {statistics.median(r['seconds'] for r in runs):.0f} |")


if __name__ == "__main__":
    main()
