"""Read and validate checkpoints of every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from finetune.checkpoints.metadata import FORMAT, CheckpointMetadata, ModelRecord, RunRecord
from finetune.io import paths
from finetune.io.tensors import read_tensors

METADATA = "finetune"
"""The entry that makes a checkpoint one of finetune, beside Lightning's own."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in today's format, whatever format the file has."""

    entries: Mapping[str, Any]
    """Lightning's entries, upgraded."""
    model: ModelRecord
    metadata: CheckpointMetadata

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Self:
        """Build it from what a file holds.

        Raises:
            ValueError: an entry is missing or makes no sense; says which.
        """
        found = entries.get(METADATA)
        if isinstance(found, Mapping) and not (isinstance(found.get("format"), int) and found["format"] <= FORMAT):
            raise ValueError(
                f"it was written by a newer finetune (format {found.get('format')}, this one knows {FORMAT}): upgrade it"
            )
        upgraded = dict(entries)
        upgrade(upgraded)
        model = ModelRecord.from_dict(upgraded.get("hyper_parameters"))
        metadata = CheckpointMetadata.from_dict(upgraded[METADATA], len(model.classes))
        return cls(upgraded, model, metadata)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Return the network's tensors by name: the file's own object, whose version torchvision's MNASNet asks for."""
        state: dict[str, Tensor] = self.entries["state_dict"]
        return state

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, a subclass's included; nothing is fetched, whatever the file says."""
        return {**self.entries["hyper_parameters"], "weights": self.model.weights}

    @property
    def run(self) -> RunRecord:
        """Return the state of the run; that of a run which has not begun where only weights were saved."""
        return self.metadata.run or RunRecord()

    @property
    def is_resumable(self) -> bool:
        """Return whether it holds the state of a run and not only weights."""
        return "optimizer_states" in self.entries and "loops" in self.entries

    @property
    def averages_weights(self) -> bool:
        """Return whether the run kept an average of its weights."""
        return "averaging_state" in self.entries

    @property
    def callback_names(self) -> set[str]:
        """Return the class names of the callbacks whose state it holds."""
        return {str(key).partition("{")[0] for key in self.entries.get("callbacks") or {}}

    @property
    def scheduler_states(self) -> list[Mapping[str, Any]]:
        """Return the state of each learning rate scheduler."""
        return list(self.entries["lr_schedulers"])

    @property
    def progress(self) -> tuple[int, int]:
        """Return the epoch, counted from 0, in which its run goes on, and how many of its batches are done."""
        return read_progress(self.entries)


RAW_IS_SAVED = "raw_weights_saved"
"""Entry of a checkpoint whose weights are not the average that its run kept, which were worse there."""


def read_progress(entries: Mapping[str, Any]) -> tuple[int, int]:
    """Return the epoch, counted from 0, in which a run goes on, and how many of its batches are done."""
    loops = entries["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]["current"]
    return int(epochs["processed"]), int(batches["processed"]) if epochs["started"] > epochs["processed"] else 0


def read_run(entries: Mapping[str, Any]) -> RunRecord:
    """Return the state of a run from upgraded entries, whatever they say of the model."""
    metadata = entries.get(METADATA)
    run = metadata.get("run") if isinstance(metadata, Mapping) else None
    return RunRecord() if run is None else RunRecord.from_dict(run)


def read_flip(entries: Mapping[str, Any]) -> bool | None:
    """Return whether a run took mirrored images for images of the same class, from upgraded entries; None where no one said."""
    metadata = entries.get(METADATA)
    data = metadata.get("data") if isinstance(metadata, Mapping) else None
    flip = data.get("flip") if isinstance(data, Mapping) else None
    return flip if isinstance(flip, bool) else None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any format without running code that it may hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, was not written by finetune, or has a newer format.
    """
    if str(path).startswith(("http://", "https://")):
        raise ValueError(f"{path}: a checkpoint is a file on this machine; download it first.")
    path = paths.checkpoint_path(path)
    entries = read_tensors(path)
    hyper, state = entries.get("hyper_parameters"), entries.get("state_dict")
    named = isinstance(hyper, Mapping) and {"model", "classes"} <= hyper.keys()
    if not isinstance(state, Mapping) or not named:
        lacks = "it has no weights in it" if named else "it names no model and no classes"
        raise ValueError(
            f"{path} is not a checkpoint of finetune: {lacks}. "
            f"If it holds a network's weights, start from it with model.weights={path}."
        )
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} is damaged: its state_dict is not one of names and tensors.")
    try:
        return Checkpoint.from_entries(entries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        newer = "was written by a newer" in str(error)
        raise ValueError(f"{path}{'' if newer else ' is damaged'}: {error}.") from error


def model_record(entries: Mapping[str, Any]) -> ModelRecord | None:
    """Return what entries say of their model; None where they are not those of a checkpoint of finetune."""
    try:
        return ModelRecord.from_dict(_upgrade_arguments(entries.get("hyper_parameters")))
    except (ValueError, TypeError):
        return None


# --- older formats -----------------------------------------------------------------------------------------------

_RENAMED_ARGUMENTS = {"tail": "feature_boundary", "source": "weights_source"}


def upgrade(entries: dict[str, Any]) -> None:
    """Bring the entries of an older format into today's, in place."""
    found = entries.get(METADATA)
    metadata = dict(found) if isinstance(found, Mapping) else {"format": 1}
    if not isinstance(metadata.get("format"), int) or metadata["format"] >= FORMAT:
        return
    arguments = _upgrade_arguments(entries.get("hyper_parameters"))
    source = arguments.pop("weights_source", "") if isinstance(arguments, dict) else ""
    entries["hyper_parameters"] = arguments
    if metadata["format"] == 3:
        entries[METADATA] = {**metadata, "format": FORMAT, "weights_source": source}
        return
    validation = metadata.pop("validated", None)
    if isinstance(validation, Mapping):
        epoch = validation.get("epoch")
        validation = {**validation, "epoch": epoch + 1 if isinstance(epoch, int) else epoch}
    old_names = {"max_epochs": "max_epochs", "starts": "start_epochs", "processes": "processes", "rates": "rates", "sums": "metric_state"}  # fmt: skip
    run = {new: entries.pop(old) for old, new in old_names.items() if entries.get(old) is not None}
    entries[METADATA] = {
        **metadata,
        "format": FORMAT,
        "weights_source": source,
        "validation": validation,
        "run": run if "loops" in entries else None,
    }
    _upgrade_callbacks(entries, metadata["format"])


def _upgrade_arguments(hyper: Any) -> Any:
    return {_RENAMED_ARGUMENTS.get(k, k): v for k, v in hyper.items()} if isinstance(hyper, Mapping) else hyper


def _upgrade_callbacks(entries: dict[str, Any], version: int) -> None:
    """Count the epochs of the record from 1, and give the last checkpoint of format 1 the class that it has now."""
    callbacks = entries.get("callbacks")
    if not isinstance(callbacks, Mapping):
        return
    states = {str(key): state for key, state in callbacks.items()}
    if version == 1:
        states = {
            key.replace("ModelCheckpoint{'monitor': None", "LastCheckpoint{'monitor': None"): s
            for key, s in states.items()
        }
    history = states.get("History")
    if isinstance(history, Mapping) and isinstance(history.get("rows"), list):
        rows = [
            {**row, "epoch": row["epoch"] + 1} if isinstance(row.get("epoch"), int) else row for row in history["rows"]
        ]
        results = dict(history.get("best_results") or {})
        if "recall" in results:
            results["per_class_recall"] = results.pop("recall")
        states["History"] = {**history, "rows": rows, "best_results": results}
    entries["callbacks"] = states
