"""Sample the points of a study, each with a seed of its own, so that a sweep that is stopped and repeated has the same ones.

Importing this imports torch and Optuna.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from finetune.io.study import REPEATS
from finetune.runtime.seeding import derive_seed

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),  # it counts trials that still run
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "nsgaii": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""What makes the sampler of each name."""

_PACKAGES = {"cmaes": "cmaes"}
"""Packages that a sampler needs beside Optuna, which imports them when it samples."""


def make_sampler(name: str, seed: int, attributes: Mapping[str, str]) -> BaseSampler:
    """Make the sampler of a name.

    Args:
        name: of the sampler.
        seed: from which that of each trial is derived.
        attributes: what each trial remembers from its first moment on.

    Raises:
        ValueError: it needs a package that is not installed.
    """
    package = _PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ValueError(f"sweep.sampler={name} needs one more package: pip install {package}.")
    return SeededByTrial(SAMPLERS[name], seed, attributes)


class SeededByTrial(BaseSampler):
    """Samples each trial by a sampler that is seeded with the trial's number, in which repeated ones do not count.

    A sampler with one seed would draw, after a stop, what it drew at first; and two processes would draw the same.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, attributes: Mapping[str, str]) -> None:
        """Take what makes the sampler from a seed, and what each trial remembers."""
        self.make, self.seed, self.attributes = make, seed, attributes
        self.sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Write down what the trial remembers, and seed the sampler."""
        for key, value in self.attributes.items():  # not when it has been sampled: a process may be killed before
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        before = study.get_trials(deepcopy=False)[: trial.number]
        point = trial.number - sum(REPEATS in other.user_attrs for other in before)
        self.sampler = self.make(derive_seed(self.seed, point) % 2**32)
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is sampled together."""
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample it."""
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one parameter."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)
