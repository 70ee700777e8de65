"""Test `finetune.training.sam`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from finetune import FineTuner
from finetune.training.callbacks import SeedEveryBatch
from finetune.training.l2_sp import L2SP
from finetune.training.lr_finder import LRFinder
from finetune.training.sam import SAM, require_two_passes
from tests.helpers import CLASSES, SmallNetwork, make_batches

Make = Callable[..., Trainer]
Closure = Callable[[], Tensor]

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def _loss_of(weights: Tensor, optimizer: Any) -> Closure:
    """A quadratic, whose gradient at w is A w."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * weights @ A @ weights
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize(
    ("base", "options"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"weight_decay": 0.1})],
)
def test_a_quadratic_is_descended_as_the_paper_says(base: Any, options: dict[str, float]) -> None:
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    by_hand = weights.detach().clone()
    optimizer, plain = SAM([weights], base, lr=0.1, rho=0.3, **options), base([by_hand], lr=0.1, **options)
    for _ in range(5):
        gradient = A @ by_hand
        expected = float(0.5 * by_hand @ A @ by_hand)
        by_hand.grad = A @ (by_hand + 0.3 * gradient / (gradient**2).sum().sqrt())
        plain.step()
        assert float(optimizer.step(_loss_of(weights, optimizer))) == pytest.approx(expected)
        torch.testing.assert_close(weights.detach(), by_hand)


def test_a_group_whose_rate_is_zero_stays_where_it_is_in_both_passes() -> None:
    still, moving = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (2.0, 3.0))
    seen: list[tuple[float, float]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append((float(still.detach()), float(moving.detach())))
        loss = (still * moving).sum()
        loss.backward()
        return loss

    optimizer = SAM([{"params": [still], "lr": 0.0}, {"params": [moving]}], lr=0.1, rho=0.5)
    optimizer.step(closure)
    assert seen == [(2.0, 3.0), (2.0, pytest.approx(3.5))]
    assert (float(still.detach()), float(moving.detach())) == (2.0, pytest.approx(3 - 0.1 * 2))


def test_both_passes_draw_the_same_random_numbers_and_a_step_as_many_as_one() -> None:
    weights = torch.ones(2, requires_grad=True)
    drawn: list[list[float]] = []
    optimizer = SAM([weights])

    def closure() -> Tensor:
        drawn.append(torch.rand(2).tolist())
        loss = weights.sum()
        loss.backward()
        return loss

    torch.manual_seed(4)
    once = [torch.rand(2).tolist(), torch.rand(1).tolist()]
    torch.manual_seed(4)
    optimizer.step(closure)
    assert [*drawn, torch.rand(1).tolist()] == [once[0], once[0], once[1]]


def test_a_step_that_is_stopped_in_its_second_pass_leaves_the_weights_as_they_were() -> None:
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SAM([weights], lr=0.1, rho=0.3)
    plain = _loss_of(weights, optimizer)

    def closure() -> Tensor:
        if weights.tolist() != [1.0, -2.0]:
            raise KeyboardInterrupt
        return plain()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert weights.tolist() == [1.0, -2.0]


def test_its_state_is_that_of_the_other_optimizer_and_its_radius() -> None:
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    first = SAM([weights], torch.optim.AdamW, lr=0.1, rho=0.3)
    first.step(_loss_of(weights, first))
    other = weights.detach().clone().requires_grad_()
    second = SAM([other], torch.optim.AdamW, lr=0.5, rho=0.9)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third: Any = copy.deepcopy(second)
    moved = third.param_groups[0]["params"][0]
    for optimizer, parameter in ((first, weights), (second, other), (third, moved)):
        optimizer.step(_loss_of(parameter, optimizer))
    assert torch.equal(weights, other)
    assert torch.equal(weights, moved)


def test_a_scheduler_sets_the_rate_that_the_other_optimizer_steps_with() -> None:
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = SAM([weights], lr=0.1, rho=0.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)  # it moves momentum too
    assert optimizer.base.param_groups[0]["momentum"] == pytest.approx(0.95)
    before = weights.detach().clone()
    optimizer.step(_loss_of(weights, optimizer))
    torch.testing.assert_close(weights.detach(), before - scheduler.get_last_lr()[0] * A @ before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho must be 0 or more, got -1"),
        ({"base": torch.optim.LBFGS}, "SAM computes each batch twice, and LBFGS as often as it likes"),
    ],
)
def test_what_could_not_be_computed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM([torch.ones(1, requires_grad=True)], **options)


def test_a_step_without_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call step\(closure\)"):
        SAM([torch.ones(1, requires_grad=True)]).step()


# --- in a training ---------------------------------------------------------------------------------------------


class Dropped(SmallNetwork):
    """With dropout, whose mask is the same in both passes."""

    def forward(self, x: Tensor) -> Tensor:
        kept = nn.functional.dropout(self.norm(self.conv(x)).relu().mean((2, 3)), 0.5, self.training)
        logits: Tensor = self.fc(kept)
        return logits


def _module(network: type[nn.Module] = Dropped, **options: Any) -> FineTuner:
    torch.manual_seed(3)
    make = partial(SAM, **{"lr": 0.1, "rho": 0.5, **(options or {"momentum": 0.9})})
    return FineTuner(network(), CLASSES, "differential", head="fc", optimizer=make)


class Epochs(Callback):
    """The training loss and accuracy of each epoch."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        values = pl_module.train_metrics.compute()
        self.rows.append((float(values["loss"]), float(values["acc"])))


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    yield
    for name, buffer in network.named_buffers():
        buffer.copy_(kept[name])


def _plain_training(network: nn.Module, epochs: int) -> list[tuple[float, float]]:
    """Train by the formulas of the paper without Lightning; the loss and the accuracy of each epoch."""
    parameters = dict(network.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}
    rows = []
    for epoch in range(epochs):
        losses, correct = [], 0
        for i, (images, labels) in enumerate(make_batches()):

            def gradients(epoch: int = epoch, i: int = i, x: Tensor = images, y: Tensor = labels) -> Any:
                trainer: Any = SimpleNamespace(
                    current_epoch=epoch, global_rank=0, strategy=SimpleNamespace(root_device=torch.device("cpu"))
                )
                SeedEveryBatch(0).on_train_batch_start(trainer, None, None, i)  # type: ignore[arg-type]
                logits = network(x.double())
                loss = nn.functional.cross_entropy(logits, y)
                return logits.detach(), loss.detach(), torch.autograd.grad(loss, list(parameters.values()))

            logits, loss, first = gradients()
            losses.append(float(loss))
            correct += int((logits.argmax(1) == labels).sum())
            norm = torch.stack([(g**2).sum() for g in first]).sum().sqrt()
            before = {name: p.detach().clone() for name, p in parameters.items()}
            with torch.no_grad():
                for p, g in zip(parameters.values(), first, strict=True):
                    p.add_(0.5 * g / norm)
            with _statistics_kept(network):
                _, _, second = gradients()
            with torch.no_grad():
                for (name, p), g in zip(parameters.items(), second, strict=True):
                    momentum[name] = 0.9 * momentum[name] + g
                    p.copy_(before[name] - 0.1 * (1.0 if name.startswith("fc.") else 0.1) * momentum[name])
        rows.append((sum(losses) / len(losses), correct / 6))
    return rows


def test_a_training_is_that_of_a_plain_loop_and_counts_each_batch_once(trainer: Make) -> None:
    module, epochs = _module(), Epochs()
    plain = copy.deepcopy(module.backbone).double().train()
    trainer(2, callbacks=[SeedEveryBatch(0), epochs], precision="64-true").fit(module, make_batches())
    assert epochs.rows == [pytest.approx(row) for row in _plain_training(plain, 2)]
    expected = plain.state_dict()
    for name, value in module.backbone.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)
    assert int(module.backbone.state_dict()["norm.num_batches_tracked"]) == 4


class Logging(FineTuner):
    """Logs something of its own in each step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.steps = getattr(self, "steps", 0) + 1
        self.log("step", float(self.steps), on_epoch=True, on_step=False)
        return loss


def test_what_a_step_logs_is_logged_once(trainer: Make) -> None:
    module = Logging(SmallNetwork(), CLASSES, "finetune", head="fc", optimizer=partial(SAM, lr=0.1))
    fit = trainer(1)
    fit.fit(module, make_batches())
    assert module.steps == 4
    assert float(fit.callback_metrics["step"]) == 2  # the mean of the first pass of two batches, 1 and 3


def test_a_resumed_run_goes_on_bit_for_bit(trainer: Make, tmp_path: Path) -> None:
    whole, half, resumed = (_module(base=torch.optim.AdamW) for _ in range(3))
    trainer(3, callbacks=[SeedEveryBatch(0)]).fit(whole, make_batches())
    first = trainer(1, callbacks=[SeedEveryBatch(0)])
    first.fit(half, make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(3, callbacks=[SeedEveryBatch(0)]).fit(
        resumed, make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    for name, value in whole.backbone.state_dict().items():
        assert torch.equal(value, resumed.backbone.state_dict()[name]), name


def test_it_goes_with_l2_sp_and_a_rate_that_is_found(trainer: Make) -> None:
    module, finder = _module(SmallNetwork), LRFinder()
    trainer(1, callbacks=[finder, L2SP()]).fit(module, make_batches())
    assert finder.lr is not None
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == finder.lr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, r"leave trainer\.accumulate_grad_batches out"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, r"leave trainer\.accumulate_grad_batches out"),
    ],
)
def test_a_step_of_several_batches_is_refused(options: dict[str, Any], message: str, trainer: Make) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(1, **options).fit(_module(), make_batches())


def test_scaled_gradients_and_manual_steps_are_refused() -> None:
    scaled: Any = SimpleNamespace(
        callbacks=[], accumulate_grad_batches=1, precision="16-mixed", precision_plugin=SimpleNamespace(scaler=object())
    )
    with pytest.raises(ValueError, match=r"give trainer\.precision=bf16-mixed or 32-true"):
        require_two_passes(scaled, _module())
    scaled.precision_plugin.scaler = None
    with pytest.raises(ValueError, match="the steps are yours, and SAM needs a closure"):
        require_two_passes(scaled, SimpleNamespace(automatic_optimization=False))
