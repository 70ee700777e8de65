"""Minimize the loss and its sharpness: SAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer


class SAM(Optimizer):
    """Steps another optimizer with the gradient at the worst weights within a small ball.

    A step computes the batch twice: the gradient at the weights w says where the worst weights w + e lie, with
    e = rho * g / ||g|| over all parameters that are trained, and the gradient at w + e is the one that the other optimizer
    steps with, from w. Both draw the same random numbers, so that dropout and MixUp are the same. Over several processes g
    is the mean over all of them.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer] = torch.optim.SGD,
        lr: float = 1e-3,
        rho: float = 0.05,
        **options: Any,
    ) -> None:
        """Make the other optimizer.

        Args:
            params: parameters or groups of them.
            base: makes the other optimizer; called with the groups, `lr` and `options`.
            lr: rate of the other optimizer.
            rho: radius of the ball.
            options: further arguments of `base`.

        Raises:
            ValueError: rho is negative, or the other optimizer needs a closure itself.
        """
        if not rho >= 0:
            raise ValueError(f"SAM: rho must be 0 or more, got {rho}")
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = base(self.param_groups, lr=lr, **options)
        if isinstance(self.base, torch.optim.LBFGS):
            raise ValueError(f"SAM computes each batch twice, and {type(self.base).__name__} as often as it likes")
        self.defaults = {**self.base.defaults, **self.defaults}
        self.second_pass: Callable[[], AbstractContextManager[None]] = nullcontext
        """In what the batch is computed for the second time, so that it is not counted twice."""
        self._share()

    def _share(self) -> None:
        """Have the groups and the state of the other optimizer: schedulers and checkpoints see one optimizer."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the other optimizer."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "second_pass": self.second_pass}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do a step.

        Args:
            closure: computes the loss and its gradients.

        Returns:
            The loss at the weights before the step.

        Raises:
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError("SAM computes the gradient twice in a step: call step(closure).")
        compute = torch.enable_grad()(closure)
        drawn = _random_states(self._trained())
        loss = compute()
        trained = [(p, p.detach().clone(), gradient, rho) for p, gradient, rho in self._with_gradients()]
        if trained:
            norm = _norm([gradient for _, _, gradient, _ in trained])
            try:
                for parameter, _, gradient, rho in trained:
                    parameter.add_(gradient * (rho / (norm + 1e-12)).to(gradient))
                with self.second_pass():
                    _set_random_states(drawn)
                    compute()
            finally:  # also where the run is stopped: what is saved then are the weights
                for parameter, weights, _, _ in trained:
                    parameter.copy_(weights)
        self.base.step()
        return loss

    def _trained(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _with_gradients(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield what the step moves, its gradient and the radius of its ball; a rate of 0 moves nothing."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and group["lr"] != 0:
                    yield parameter, parameter.grad, group["rho"]


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together, in 32 bits at least."""
    exact = torch.promote_types(gradients[0].dtype, torch.float32)
    device = gradients[0].device
    return torch.stack([torch.linalg.vector_norm(g, dtype=exact).to(device) for g in gradients]).norm()


def _random_states(parameters: Iterable[Tensor]) -> dict[torch.device, Tensor]:
    """Return the states of torch's generators of the CPU and of the GPUs that parameters lie on."""
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    return {torch.device("cpu"): torch.get_rng_state(), **{d: torch.cuda.get_rng_state(d) for d in devices}}


def _set_random_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def require_two_passes(trainer: Trainer, module: Any) -> None:
    """Refuse a training in which a step is not two passes over one batch.

    Raises:
        ValueError: gradients of several batches are accumulated, or scaled, or the steps are not Lightning's.
    """
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    accumulates = any(type(callback).__name__ == "GradientAccumulationScheduler" for callback in callbacks)
    if trainer.accumulate_grad_batches != 1 or accumulates:
        raise ValueError(
            "optimizer: SAM computes each batch twice, and a step of several batches has its last one alone the second time: "
            "leave trainer.accumulate_grad_batches out, and give a larger data.batch_size."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"optimizer: SAM computes each batch twice, and in trainer.precision={trainer.precision} Lightning does so once: "
            "give trainer.precision=bf16-mixed or 32-true."
        )
    if not module.automatic_optimization:
        raise ValueError("optimizer: with automatic_optimization=False the steps are yours, and SAM needs a closure.")
