"""Find the learning rate of a run before its first step: `optimizer.lr=auto`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import OmegaConf

from finetune.io.files import write_atomically
from finetune.runtime.console import echo, field_line
from finetune.training import optimization
from finetune.training.distributed import DivergedError
from finetune.training.range_test import RULE, RangeCurve, has_diverged, trial_rates
from finetune.training.uncounted import uncounted

AUTO = "auto"
"""Value of `optimizer.lr` that asks for it."""


class LRFinder(Callback):
    """Runs an LR range test (Smith 2017) before the first step, and trains at the rate that it finds.

    All groups' rates rise together, each its multiple of one number. After the test everything is as it was before, to the
    last bit: weights, running statistics, random numbers, the optimizer. A checkpoint keeps the rate, so that a resumed run
    does not search again.

    Attributes:
        lr: the rate that was found; None before.
        curve: the losses at the rates that were tried; None before.
    """

    def __init__(self, config: Path | None = None) -> None:
        """Name the `config.yaml` of the run, in which the rate is written; None is nowhere."""
        self.config = config
        self.lr: float | None = None
        self.curve: RangeCurve | None = None
        self._is_restored = False

    def state_dict(self) -> dict[str, Any]:
        """Return the rate, and the curve that it was found on."""
        curve = self.curve or RangeCurve([], [])
        return {"lr": self.lr, "rates": list(curve.rates), "losses": list(curve.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rate of the run that is resumed."""
        self.lr, self._is_restored = state_dict["lr"], True
        self.curve = RangeCurve(state_dict["rates"], state_dict["losses"]) if state_dict["rates"] else None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Let the module have no rate yet."""
        if stage == "fit":
            self.lr, self.curve, self._is_restored = None, None, False
            pl_module.lr = math.nan

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Give the module the rate of the run that is resumed.

        Raises:
            ValueError: that run did not search for one, or a search would not find what the training needs.
        """
        _require_searchable(pl_module, trainer)
        if trainer.ckpt_path is not None and not self._is_restored:
            raise ValueError(
                "optimizer.lr=auto: the run to resume was given its rate, and goes on at that. Leave optimizer.lr out."
            )
        if self.lr is not None:
            self._use(pl_module, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Search, unless the rate is known; then make the optimizer and the scheduler with it.

        Raises:
            ValueError: nothing is trained in the first epoch, or no rate lowers the loss.
        """
        if self.lr is not None:
            return
        if not pl_module.schedule.trainable_names(trainer.current_epoch):
            raise ValueError(
                f"optimizer.lr=auto: strategy {pl_module.strategy.name} trains nothing in its first epoch, on which a rate could be "
                "tried: give a number."
            )
        begin = time.perf_counter()
        self.curve = run_range_test(pl_module, trainer)
        self.lr = self.curve.suggestion()
        self._use(pl_module, trainer)
        trainer.strategy.setup_optimizers(trainer)
        starts = zip(pl_module.schedule.groups, pl_module.schedule.start_epochs(), strict=True)
        moving = [(group, start) for (group, _), start in starts if start is not None and group.lr > 0]
        rates = ", ".join(f"{group.name} {self.lr * group.lr:.3g}" for group, _ in moving)
        text = f"{rates}: {RULE} ({len(self.curve.losses)} steps, {time.perf_counter() - begin:.1f} s)"
        later = ", ".join(group.name for group, start in moving if start > trainer.current_epoch)
        text += f"; tried without {later}, trainable later" if later else ""
        echo(field_line("Rate", text))

    def _use(self, module: Any, trainer: Trainer) -> None:
        """Give the module the rate, and write it where the run says what it is."""
        module.lr = self.lr
        config = module.metadata.config
        if "lr" in (config.get("optimizer") or {}):
            config = {**config, "optimizer": {**config["optimizer"], "lr": self.lr}}
            module.metadata = replace(module.metadata, config=config)
        if self.config is not None and self.config.is_file() and trainer.is_global_zero:
            recorded: Any = OmegaConf.load(self.config)
            recorded.optimizer.lr = self.lr
            write_atomically(self.config, OmegaConf.to_yaml(recorded).encode())


def find_lr_finder(trainer: Trainer) -> LRFinder | None:
    """Return the finder of a Trainer that has found a rate, if it has one."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, LRFinder) and c.lr is not None), None)


def _require_searchable(module: Any, trainer: Trainer) -> None:
    keywords = getattr(module.make_scheduler, "keywords", {})
    for own in ("max_lr", "base_lr"):
        if own in keywords:
            raise ValueError(
                f"optimizer.lr=auto: the scheduler has its own {own}={keywords[own]}, and the rate that is found would change "
                f"nothing. Leave {own} out, or give optimizer.lr a number."
            )
    if trainer.world_size > 1:
        raise ValueError(
            f"optimizer.lr=auto searches in one process, and this run has {trainer.world_size}: search with "
            "trainer.devices=1, and give the number."
        )
    if not module.automatic_optimization:
        raise ValueError("optimizer.lr=auto: with automatic_optimization=False the steps are yours; give a number.")


def run_range_test(module: Any, trainer: Trainer) -> RangeCurve:
    """Train with a rate that rises from step to step, and return the loss after each; restore everything after it.

    Args:
        module: a FineTuner in its first epoch.
        trainer: about to train it, in one process.
    """
    rates, losses = trial_rates(), list[float]()
    with _unchanged(module, trainer):
        optimizer = optimization.make_module_optimizer(module, trainer, rates[0])
        optimization.set_train_mode([optimizer], training=True)
        multiples = [options["lr"] / rates[0] for options in optimizer.param_groups]
        with uncounted(module), _closing(_batches(module, trainer)) as batches:
            try:
                # the loss of a step is that of the weights before it, so that one more follows the last rate
                for rate in [*rates, 0.0]:
                    for options, multiple in zip(optimizer.param_groups, multiples, strict=True):
                        options["lr"] = rate * multiple
                    losses.append(_step(module, trainer, optimizer, batches))
                    if has_diverged(losses):
                        break
            except DivergedError:
                pass
    losses = [loss for loss in losses[1:] if math.isfinite(loss)]
    return RangeCurve(rates[: len(losses)], losses)


def _step(module: Any, trainer: Trainer, optimizer: Any, batches: Iterator[Any]) -> float:
    """Do one step of the optimizer as Lightning does it, clipping and other hooks included; return the loss before it."""
    several = [next(batches) for _ in range(trainer.accumulate_grad_batches)]
    found: list[float] = []

    def closure() -> Any:
        optimizer.zero_grad()
        total = 0.0
        for batch in several:
            with torch.enable_grad():
                output: Any = trainer.strategy.training_step(batch, 1)  # the first batch is checked in the run itself
                loss = (output["loss"] if isinstance(output, Mapping) else output) / len(several)
                trainer.strategy.backward(loss, optimizer)
            total += float(loss.detach())
        found.append(total)
        return loss.detach()

    trainer.precision_plugin.optimizer_step(optimizer, model=module, closure=closure)
    return found[0]


def _batches(module: Any, trainer: Trainer) -> Iterator[Any]:
    """Yield the batches of the first epoch on the device, again and again."""
    loader: Any = trainer.train_dataloader
    limit = None if math.isinf(trainer.num_training_batches) else int(trainer.num_training_batches)
    while True:
        for batch in itertools.islice(loader, limit):
            converted = trainer.precision_plugin.convert_input(batch)
            converted = module._on_before_batch_transfer(converted, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(converted, dataloader_idx=0)


@contextmanager
def _closing(batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    try:
        yield batches
    finally:
        batches.close()  # type: ignore[attr-defined]


@contextmanager
def _unchanged(module: Any, trainer: Trainer) -> Iterator[None]:
    """Restore parameters, random numbers and the scaling of 16-bit gradients after a block."""
    weights = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    scaling = trainer.precision_plugin.state_dict()
    with isolate_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in weights:
                    parameter.copy_(value)
                    parameter.grad = None
            trainer.precision_plugin.load_state_dict(scaling)
