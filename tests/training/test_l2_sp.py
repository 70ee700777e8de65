"""Test `finetune.training.l2_sp`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from finetune import FineTuner
from finetune.training.l2_sp import L2SP
from tests.helpers import CLASSES, SmallNetwork, make_batches, make_finetuner

Make = Callable[..., Trainer]


def _module(strategy: Any = "finetune", **optimizer: Any) -> FineTuner:
    torch.manual_seed(3)
    make = partial(torch.optim.SGD, **{"lr": 0.2, **optimizer})
    return FineTuner(SmallNetwork(), CLASSES, strategy, head="fc", optimizer=make)


def _as_in_the_paper(network: nn.Module, alpha: float, beta: float, clip: float, accumulate: int) -> dict[str, Tensor]:
    """Two epochs of gradient descent on the loss with the paper's penalty in it, without Lightning."""
    first = {name: weights.detach().clone() for name, weights in network.named_parameters()}
    batches = [batch for _ in range(2) for batch in make_batches(count=4)]
    for start in range(0, len(batches), accumulate):
        loss = torch.zeros((), dtype=torch.float64)
        for images, labels in batches[start : start + accumulate]:
            loss = loss + nn.functional.cross_entropy(network(images.double()), labels) / accumulate
        for name, weights in network.named_parameters():
            is_new = name.startswith("fc.")
            loss = loss + (beta / 2 * weights**2 if is_new else alpha / 2 * (weights - first[name]) ** 2).sum()
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([(g**2).sum() for g in gradients]).sum().sqrt()
        with torch.no_grad():
            for weights, gradient in zip(parameters, gradients, strict=True):
                weights.sub_(0.2 * gradient * min(1.0, clip / float(norm)))
    return {name: weights.detach() for name, weights in network.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_those_of_a_plain_loop_on_the_loss_of_the_paper(accumulate: int, trainer: Make) -> None:
    module = _module()
    plain = copy.deepcopy(module.backbone).double().train()
    options = {"precision": "64-true", "gradient_clip_val": 0.4, "accumulate_grad_batches": accumulate}
    trainer(2, callbacks=[L2SP(alpha=0.7, beta=0.3)], **options).fit(module, make_batches(count=4))
    expected = _as_in_the_paper(plain, 0.7, 0.3, 0.4, accumulate)
    assert {n: w.detach() for n, w in module.backbone.named_parameters()}.keys() == expected.keys()
    for name, weights in module.backbone.named_parameters():
        torch.testing.assert_close(weights.detach(), expected[name], rtol=1e-4, atol=1e-6)


def test_only_pretrained_parameters_are_pulled_and_only_to_where_they_were(trainer: Make) -> None:
    """A pull that is by far the strongest holds the trunk where it was, and leaves the head free."""
    module = _module()
    before = {name: weights.detach().clone() for name, weights in module.backbone.named_parameters()}
    trainer(2, callbacks=[L2SP(alpha=4.9)]).fit(module, make_batches(count=4))
    moved = {n: float((w.detach() - before[n]).abs().max()) for n, w in module.backbone.named_parameters()}
    free = _module()
    trainer(2).fit(free, make_batches(count=4))
    alone = {n: float((w.detach() - before[n]).abs().max()) for n, w in free.backbone.named_parameters()}
    assert all(moved[name] < 0.8 * alone[name] for name in ("conv.weight", "norm.weight"))
    assert moved["fc.weight"] > 0.5 * alone["fc.weight"]


def test_a_resumed_run_decays_towards_the_same_weights_bit_for_bit(trainer: Make, tmp_path: Path) -> None:
    whole, half = _module(momentum=0.9), _module(momentum=0.9)
    trainer(3, callbacks=[L2SP(alpha=0.5)]).fit(whole, make_batches())
    first = trainer(1, callbacks=[L2SP(alpha=0.5)])
    first.fit(half, make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = _module(momentum=0.9)
    callback = L2SP(alpha=0.5)
    trainer(3, callbacks=[callback]).fit(resumed, make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, weights in whole.backbone.named_parameters():
        assert torch.equal(weights, resumed.backbone.get_parameter(name)), name
    assert torch.equal(callback.reference["conv.weight"], _module().backbone.get_parameter("conv.weight"))


def test_a_second_fit_decays_towards_the_weights_that_it_begins_with(trainer: Make) -> None:
    module, callback = _module(), L2SP()
    trainer(1, callbacks=[callback]).fit(module, make_batches())
    between = module.backbone.get_parameter("conv.weight").detach().clone()
    trainer(1, callbacks=[callback]).fit(module, make_batches())
    assert torch.equal(callback.reference["conv.weight"], between)


def test_a_run_that_was_trained_without_cannot_go_on_with_it(trainer: Make, tmp_path: Path) -> None:
    module = _module()
    first = trainer(1)
    first.fit(module, make_batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="did not keep its first weights"):
        trainer(2, callbacks=[L2SP()]).fit(module, make_batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_first_weights_of_another_network_are_refused(trainer: Make) -> None:
    callback = L2SP()
    callback.load_state_dict({"reference": {"conv.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match="of another network or strategy"):
        trainer(1, callbacks=[callback]).fit(_module(), make_batches())


def test_a_frozen_trunk_and_a_second_decay_are_noted(trainer: Make, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(1, callbacks=[L2SP()]).fit(_module("feature_extract"), make_batches())
    assert "l2_sp: strategy feature_extract trains no pretrained parameter" in " ".join(capsys.readouterr().out.split())
    trainer(1, callbacks=[L2SP()]).fit(_module(weight_decay=0.1), make_batches())
    assert "optimizer.weight_decay=0 leaves l2_sp alone" in " ".join(capsys.readouterr().out.split())


def test_gradients_that_an_optimizer_unscales_itself_are_refused() -> None:
    optimizer = SimpleNamespace(_step_supports_amp_scaling=True)
    scaled: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=object()), optimizers=[optimizer], precision="16-mixed"
    )
    with pytest.raises(ValueError, match=r"with fused=true unscales gradients itself.*bf16-mixed"):
        L2SP().on_fit_start(scaled, make_finetuner())


@pytest.mark.parametrize("strengths", [{"alpha": -1.0}, {"beta": float("nan")}])
def test_strengths_are_not_negative(strengths: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha and beta must be 0 or more"):
        L2SP(**strengths)


def test_a_module_without_a_trunk_is_refused(trainer: Make) -> None:
    stranger: Any = LightningModule()
    with pytest.raises(ValueError, match="L2SP decays the trunk of a FineTuner; LightningModule is none"):
        L2SP().on_fit_start(trainer(1), stranger)
