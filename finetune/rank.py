"""`python -m finetune.rank`: rank backbones on a data set by a linear head on their features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from finetune.cli.direct import hydra_task
from finetune.cli.errors import SOME_FAILED, Exit, log_error
from finetune.cli.main import hydra_command
from finetune.cli.run_folder import begin_run, command_line, train_words
from finetune.runtime.process import heavy_imports

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.data.datamodule import ImageDataModule
    from finetune.models.candidates import Candidate
    from finetune.training.ranking import RankedBackbone


@hydra_task("rank")
def rank(cfg: DictConfig) -> list[RankedBackbone]:
    """Rank backbones; return a result for each, the most accurate first and those that failed last."""
    folder = begin_run(cfg, "rank")

    with heavy_imports():
        from finetune.cli import factories
        from finetune.data import grouping
        from finetune.reporting import ranking_page
        from finetune.training import ranking

    factories.prepare_process()
    candidates = factories.make_candidates(cfg)
    data = factories.make_ranked_data(cfg)
    folds = grouping.assign_folds(data, cfg.folds, cfg.seed)
    ranking_page.print_data(data, cfg.folds)
    results = ranking.sort_results([_rank_one(cfg, candidate, data, folds, folder) for candidate in candidates])
    page = ranking_page.Ranking(results, data, cfg.folds, train_words(), command_line("rank"))
    page.write(folder, cfg.report)
    page.print(folder, cfg.report)
    if failed := sum(1 for result in results if result.reason):
        raise Exit(f"{failed} of {len(results)} backbones failed; the others are ranked.", SOME_FAILED, results)
    return results


def _rank_one(
    cfg: DictConfig, candidate: Candidate, data: ImageDataModule, folds: list[int], folder: Path
) -> RankedBackbone:
    from finetune.cli import factories
    from finetune.reporting import ranking_page
    from finetune.training import ranking

    began = time.perf_counter()
    try:
        module = factories.make_ranked_module(cfg, candidate, data, folder)
        result = ranking.rank_backbone(module, data, candidate, folds, began)
    except Exception as error:  # whatever it is, the others go on
        log_error(error)
        result = ranking.failed_backbone(candidate, error)
    ranking_page.print_progress(result)
    return result


def main(argv: Sequence[str] | None = None) -> list[RankedBackbone] | list[list[RankedBackbone]] | None:
    """Run the command; return its results, of a sweep those of each of its jobs."""
    return hydra_command("rank", rank, argv)


if __name__ == "__main__":
    main()
