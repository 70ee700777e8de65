"""End an interrupted run after a batch, with a checkpoint from which it goes on exactly there."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

SAVE_EVERY_S = 600.0
"""Seconds after which an epoch that is still running is saved too: what a power cut can cost."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2) if hasattr(signal, "SIGUSR1") else ()
"""By which Slurm says that the time of a job is nearly up; who asks for its restart has a handler for one of them."""


class GracefulShutdown(Callback):
    """Finishes the batch on Ctrl-C or SIGTERM, writes `last.ckpt`, exits with 130 or 143; a second Ctrl-C stops at once.

    Between a signal and the end there is at most one step of the optimizer, or, over several processes, one validation.
    A signal that the process was started to ignore is ignored. Handlers of SIGUSR1 and SIGUSR2 that were there before,
    those of our commands in a batch job of Slurm, of submitit or of Lightning, are called after a batch too, when
    `last.ckpt` has been written: they have the job started again.
    """

    def __init__(self, last: Path) -> None:
        """Name where `last.ckpt` is written; put this callback behind those that change what is saved."""
        self.last = last
        self._before: dict[int, Any] = {}
        self._received: int | None = None
        self._told_to_requeue: int | None = None
        self._in_validation = False

    # --- signals -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers."""
        # not earlier: Lightning has put up handlers of its own since `on_fit_start`
        self._received, self._told_to_requeue, self._saved = None, None, time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # `&` in a script
        self._before = {number: signal.signal(number, self._note) for number in heard}
        for number in _REQUEUE_SIGNALS:
            if callable(signal.getsignal(number)):
                self._before[number] = signal.signal(number, self._note_requeue)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is None:
            self._received = number
            with contextlib.suppress(OSError):  # nobody may be listening any more
                # print is not safe in a handler
                os.write(2, b"\nstopping after this batch (Ctrl-C once more: at once)\n")

    def _note_requeue(self, number: int, frame: FrameType | None) -> None:
        self._told_to_requeue = number

    def _restore(self) -> dict[int, Any]:
        handlers, self._before = self._before, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return handlers

    def _requeue(self, trainer: Trainer, handlers: dict[int, Any] | None = None) -> None:
        """Let the handler that was there before ask for the restart, in all processes; submitit's ends them too."""
        handlers = self._before if handlers is None else handlers
        known = [number for number in handlers if number in _REQUEUE_SIGNALS]
        if known and self._any(trainer, self._told_to_requeue is not None):
            number, self._told_to_requeue = self._told_to_requeue or known[0], None
            handlers[number](number, None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers, and exit if a signal came in the last batch."""
        # not in `teardown`: Lightning has then put back what was there before it, and its own would stay for ever
        before = self._restore()
        if self._any(trainer, self._received is not None):
            self._exit()
        self._requeue(trainer, before)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers."""
        self._restore()

    # --- where a run may stop ----------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exit between two epochs if a signal came."""
        # the epoch before this one is saved
        if self._any(trainer, self._received is not None):
            self._exit()
        self._requeue(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time or a signal came, and exit."""
        # gradients that are being accumulated are in no checkpoint, and after the last batch comes the validation
        if (batch_idx + 1) % trainer.accumulate_grad_batches or batch_idx + 1 >= trainer.num_training_batches:
            return
        late = time.monotonic() - self._saved > SAVE_EVERY_S
        told = self._received is not None
        if not self._any(trainer, told or late or self._told_to_requeue is not None):
            return
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved = time.monotonic()
        if self._any(trainer, told):
            self._exit()
        self._requeue(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Save in the middle of a validation, and exit, or have the job started again, as after a batch of training."""
        # over several processes, which may have different numbers of batches here, at the end of the epoch
        told = self._received is not None or self._told_to_requeue is not None
        if not told or trainer.world_size > 1 or not trainer.validating or trainer.sanity_checking:
            return
        _swap_averages(trainer, pl_module)
        self._in_validation = True
        trainer.save_checkpoint(self.last, weights_only=False)
        self._requeue(trainer)
        if self._received is not None:
            self._exit()
        # Slurm may have refused; where it has not, it ends the process by another signal
        self._in_validation = False
        _swap_averages(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a validation that was stopped begin again when the run is resumed."""
        if self._in_validation:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            nothing = dict.fromkeys(progress["current"], 0)
            # what Lightning takes for a validation that stopped in its first step
            progress.update(current=nothing, total={**nothing, "ready": 1, "started": 1}, is_last_batch=False)

    def _any(self, trainer: Trainer, mine: bool) -> bool:
        """Return whether it is so in any process: all of them must do the same."""
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))

    def _exit(self) -> None:
        raise SystemExit(128 + (self._received or signal.SIGTERM))


def _swap_averages(trainer: Trainer, module: LightningModule) -> None:
    """Exchange the averaged weights, which are in the module during a validation, and those that are trained."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            callback._swap_models(module)
