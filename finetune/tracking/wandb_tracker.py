"""Record a run with Weights & Biases, online or in files that are sent later."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from finetune.runtime.passwords import without_password
from finetune.runtime.suggestions import require_known
from finetune.tracking.addresses import is_answering
from finetune.tracking.tracked_run import TrackedRun
from finetune.tracking.tracker import FINISHED, STOPPED, Results, Tracker
from finetune.tracking.worker import PATIENCE_S, first_line

_EXIT_CODES = {FINISHED: 0, STOPPED: 130}

_TAG_LENGTH = 64

OWN_KEYS = ("save_dir", "project", "entity", "offline", "log_model")


class WandbTracker(Tracker):
    """Makes a run of W&B, which ends with the run: each point of a sweep is one of its own."""

    label = "W&B"

    def __init__(
        self,
        save_dir: str,
        project: str = "finetune",
        entity: str | None = None,
        offline: bool = False,
        log_model: bool = True,
        **options: Any,
    ) -> None:
        """Say where the run is recorded.

        Args:
            save_dir: folder in which W&B makes its own, wandb/.
            project: of W&B.
            entity: user or team; None is the key's own.
            offline: whether the run is kept in files; it is where there is no key, or no connection.
            log_model: whether best.ckpt is logged as an artifact.
            options: of `wandb.init`: notes, group, job_type and the like.

        Raises:
            ValueError: `wandb.init` has no such option.
        """
        self.folder = Path(save_dir).expanduser()
        self.project, self.entity, self.offline, self.log_model = project, entity, offline, log_model
        self.options = options
        if options:
            import wandb

            for name in options:
                require_known("key of logger.wandb", name, [*OWN_KEYS, *signature(wandb.init).parameters])
        self._run: Any = None
        self._reason = ""

    def is_reachable(self) -> bool:
        """Return whether W&B answers; files do."""
        if self._run is None or self._run.settings.mode in ("offline", "dryrun"):
            return True
        return is_answering(self._run.settings.base_url)

    def start(self, run: TrackedRun) -> int | None:
        """Begin the run, or go on with the one that it resumes."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = run.find_ids("wandb")
        mode = self._mode(wandb.setup().settings)
        options = {
            "project": self.project,
            "entity": self.entity,
            "dir": str(self.folder),
            "name": run.name,
            "group": run.sweep.name if run.sweep is not None else None,
            "config": run.recorded_config() | _commit(run.tags),
            "tags": [value[:_TAG_LENGTH] for name, value in run.tags.items() if name != "git_commit" and value],
            "reinit": "finish_previous",
            **({"id": earlier["id"]} if earlier else {}),
            **self.options,
        }
        try:
            self._run = self._begin(options, mode, earlier is not None)
        except Exception as error:
            if mode != "online":
                raise
            self._reason = f"as {wandb.setup().settings.base_url} failed: {first_line(error)}"
            mode = "offline"
            self._run = self._begin(options, mode, False)
        run.keep_ids("wandb", {"id": self._run.id, "project": self._run.project, "entity": self._run.entity})
        if earlier is None:
            return 0
        return int(dict(self._run.summary).get("epoch", 0)) if mode != "offline" else None

    def _begin(self, options: dict[str, Any], mode: str | None, resume: bool) -> Any:
        import wandb

        given = {**options, "mode": mode, "resume": "allow" if resume and mode != "offline" else None}
        settings = {"silent": True, "init_timeout": PATIENCE_S, **dict(given.pop("settings", None) or {})}
        if any(without_password(word) != word for word in sys.argv):
            settings["x_disable_meta"] = True  # W&B would record the command line as it was typed
        return wandb.init(**given, settings=wandb.Settings(**settings))

    def _mode(self, settings: Any) -> str | None:
        """Return W&B's mode: offline where there is no key or no connection; None is as the environment says."""
        if settings.mode in ("offline", "dryrun", "disabled", "shared"):  # WANDB_MODE
            return None
        if self.offline:
            self._reason = "as was asked for"
        elif not _has_key(settings):
            self._reason = "as there is no API key (wandb login)"
        elif not is_answering(settings.base_url):
            self._reason = f"as {settings.base_url} does not answer"
        else:
            return "online"
        return "offline"

    def describe(self) -> str:
        """Return the address of the run, or the command that sends it."""
        if self._run.settings.mode not in ("offline", "dryrun"):
            return str(self._run.url)
        folder = shlex.quote(str(self._run.settings.sync_dir))
        return f"wandb sync {folder}  (offline{', ' * bool(self._reason)}{self._reason})"

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log the metrics of an epoch, over the epochs."""
        for name in row:
            if name not in ("epoch", "step"):
                self._run.define_metric(name, step_metric="epoch")
        self._run.log({**row, "epoch": int(row["epoch"]), "step": int(row["step"])})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step, over the steps."""
        for name in metrics:
            self._run.define_metric(name, step_metric="step")
        self._run.log({**metrics, "step": step})

    def log_results(self, results: Results) -> None:
        """Log the best and the test metrics as summary, the pictures, the page, and best.ckpt as an artifact."""
        import wandb

        self._run.summary.update(results.metrics)
        media: dict[str, Any] = {f"plots/{name}": wandb.Image(str(path)) for name, path in results.pictures.items()}
        if results.report is not None:
            media["report"] = wandb.Html(str(results.report), inject=False)  # the page is whole
        if media:
            self._run.log(media)
        if results.checkpoint is not None and self.log_model:
            artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata=results.metrics)
            artifact.add_file(str(results.checkpoint), "best.ckpt")
            self._run.log_artifact(artifact, aliases=["best"])

    def finish(self, status: str) -> None:
        """End the run; W&B sends what is left."""
        self._run.finish(_EXIT_CODES.get(status, 1))

    @property
    def experiment(self) -> Any:
        """Return the run of W&B."""
        return self._run


def _commit(tags: Mapping[str, str]) -> dict[str, str]:
    return {"git_commit": tags["git_commit"]} if "git_commit" in tags else {}


def _has_key(settings: Any) -> bool:
    """Return whether W&B has what it logs in with, from the environment, its settings or .netrc."""
    from requests.utils import get_netrc_auth

    return bool(settings.api_key or settings.identity_token_file or get_netrc_auth(settings.base_url))
