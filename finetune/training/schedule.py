"""Decide which parameters are trainable in which epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from finetune.models.backbone import Backbone
from finetune.models.probe import looks_untrained
from finetune.runtime.console import echo, field_line, print_table
from finetune.training.param_groups import AssignedGroup, assign_parameters, is_norm, names_before
from finetune.training.run_length import resolve_max_epochs
from finetune.training.strategy import ParamGroup, Strategy

_FROZEN_BY_STRATEGY = "frozen_by_strategy"
"""Attribute of a network: names that a strategy has frozen. In another strategy's hands they are not frozen by hand."""


class FreezeSchedule:
    """A strategy worked out for one network: when each parameter is trainable, and at which share of the rate.

    Everything depends on the epoch alone, so that a resumed run needs no state.

    Attributes:
        groups: the strategy's groups with the parameter names that they claim; each parameter stands in one.
        max_epochs: length of the run; None is a run without an end, and no Trainer.
    """

    def __init__(self, strategy: Strategy, backbone: Backbone, aux_weight: float | None) -> None:
        """Assign the parameters of a network.

        Args:
            strategy: its groups claim the parameters.
            backbone: the network, its family and the names of its new parameters.
            aux_weight: weight of auxiliary losses, None is the family's own; at 0 auxiliary heads are not trained.

        Raises:
            ValueError: the strategy does not fit the network, or the feature boundary is no module of it.
        """
        self.strategy, self.family, self.network = strategy, backbone.family, backbone.network
        self.head = frozenset(backbone.head_names)
        self.aux_weight = self.family.aux_weight if aux_weight is None else float(aux_weight)
        self.max_epochs: int | None = None
        frozen_before: set[str] = getattr(self.network, _FROZEN_BY_STRATEGY, set())
        self.frozen_by_hand = {
            name for name, p in self.network.named_parameters() if not p.requires_grad and name not in frozen_before
        }
        """Parameters whose gradient somebody else has switched off; they stay frozen whatever the groups say."""
        self._applied: dict[str, bool] = {}
        self._is_running = False
        self.groups: list[AssignedGroup] = assign_parameters(strategy, self.network, backbone.head_names)
        if strategy.solve_head:
            self.groups = [self._after_solving(assigned) for assigned in self.groups]
        names_before(self.network, self.family.feature_boundary)  # raises here, not in the first epoch

    def _after_solving(self, assigned: AssignedGroup) -> AssignedGroup:
        """Return a group without new layers from the second epoch on: the first is that of the solved head."""
        group, names = assigned
        waits = group.start == 0 and self.head.isdisjoint(names)
        return assigned._replace(group=replace(group, start=1)) if waits else assigned

    # --- what is trainable when --------------------------------------------------------------------------------

    def attach(self, trainer: Trainer) -> None:
        """Take the length of the run from a Trainer; a run that trains nothing but solves its head has one epoch."""
        self._is_running = False
        if self.only_solves_head and trainer.max_epochs != 0:
            trainer.fit_loop.max_epochs = 1
        self.max_epochs = resolve_max_epochs(trainer.max_epochs)

    @property
    def only_solves_head(self) -> bool:
        """Return whether the head is solved, and nothing is trained then."""
        return self.strategy.solve_head and not any(group.lr and group.start is not None for group, _ in self.groups)

    @property
    def end(self) -> int:
        """Return the epoch after the last, counted from 0; very late in a run without an end."""
        return sys.maxsize if self.max_epochs is None else self.max_epochs

    def require_starts(self) -> None:
        """Check that every group's start can be computed, and that something is trained at all.

        Raises:
            ValueError: a start is a share of a run without an end, or all that would be trained is frozen by hand.
        """
        self._is_running = True
        for group, _ in self.groups:
            group.first_epoch(self.max_epochs)
        if self.end > 0 and not self.ever_trainable_names():
            raise ValueError(
                f"Nothing would be trained: all that the strategy {self.strategy.name!r} trains was frozen by hand "
                f"({len(self.frozen_by_hand)} parameters)."
            )

    def start_epochs(self) -> list[int | None]:
        """Return the first epoch of each group, counted from 0; None is never."""
        return [group.first_epoch(self.end) for group, _ in self.groups]

    def keep_started(self, start_epochs: Sequence[int | None], epoch: int) -> None:
        """Keep groups trainable that were so before `epoch`, though their start be a share of a longer run now.

        Args:
            start_epochs: as `start_epochs` returned them when the run was stopped.
            epoch: in which it goes on.
        """
        for i, start in enumerate(start_epochs):
            if start is not None and start <= epoch:
                self.groups[i] = self.groups[i]._replace(group=replace(self.groups[i].group, start=start))

    def has_gradients(self, group: ParamGroup, epoch: int) -> bool:
        """Return whether a group's parameters get gradients in an epoch; a rate of zero counts too."""
        first = group.first_epoch(self.end)
        return first is not None and epoch >= first

    def trainable_names(self, epoch: int) -> set[str]:
        """Return the names of the parameters that an epoch changes: with a gradient and a rate above zero."""
        return self._moving_names(epoch).difference(self.unused_aux_parameters(epoch))

    def _moving_names(self, epoch: int) -> set[str]:
        """Return the names in groups that an epoch changes, those of unused auxiliary heads included."""
        if self._is_of_solved_head(epoch):
            return set()
        names = {n for group, own in self.groups if group.lr > 0 and self.has_gradients(group, epoch) for n in own}
        return names - self.frozen_by_hand

    def may_be_best(self, epoch: int, monitor: str) -> bool:
        """Return whether an epoch, counted from 0, can be compared with the others by a metric.

        Training metrics of the epoch of a solved head cannot: they are of its optimum, and without dropout. Where there is no
        other epoch, there is nothing to compare it with.
        """
        is_alone = self.only_solves_head or self.end == 1
        return is_alone or not (self._is_of_solved_head(epoch) and monitor.startswith("train/"))

    def _is_of_solved_head(self, epoch: int) -> bool:
        return self.strategy.solve_head and epoch == 0

    def ever_trainable_names(self) -> set[str]:
        """Return the names of the parameters that change in the course of the run."""
        if self.end == 0:
            return set()
        solved = self.head - self.frozen_by_hand if self.strategy.solve_head else set()
        return self.trainable_names(self.end - 1) | solved  # groups start and never stop

    def first_unfreeze_epoch(self, path: str) -> int | None:
        """Return the first epoch, counted from 0, that changes anything before a module, heads apart; None is never.

        Until then, what enters the module is a constant of each image.
        """
        before = names_before(self.network, path) - self.head - self.frozen_by_hand
        starts = [g.first_epoch(self.end) for g, names in self.groups if g.lr > 0 and not before.isdisjoint(names)]
        return min((start for start in starts if start is not None), default=None)

    def trunk_is_trainable(self, epoch: int) -> bool:
        """Return whether an epoch changes anything before the feature boundary."""
        first = self.first_unfreeze_epoch(self.family.feature_boundary)
        return first is not None and epoch >= first

    def trunk_is_ever_trainable(self) -> bool:
        """Return whether anything before the feature boundary changes in the course of the run."""
        return self.end > 0 and self.trunk_is_trainable(self.end - 1)

    def unaugmented_epochs(self) -> int:
        """Return how many epochs, from the first, are not augmented with `augment="auto"` or "light": of a frozen trunk.

        A random crop is worth more than the plain one to a trunk that is trained, and less to a head alone (on
        hymenoptera 0.90 against 0.93). `strategy.views` above 1 asks for augmentation.
        """
        if self.strategy.views > 1:
            return 0
        first = self.first_unfreeze_epoch(self.family.feature_boundary)
        return sys.maxsize if first is None else first

    def unused_aux_parameters(self, epoch: int) -> list[str]:
        """Return the parameters of auxiliary heads that have no loss: nothing before them is trainable.

        They could not change the result.
        """
        if not self.family.aux or (self.aux_weight > 0 and self.trunk_is_trainable(epoch)):
            return []
        roots = tuple(f"{root}." for root in self.family.aux_roots)
        return [name for name, _ in self.network.named_parameters() if name.startswith(roots)]

    # --- what follows for the network --------------------------------------------------------------------------

    def keep_frozen_by_hand(self) -> None:
        """Note what somebody else has frozen since gradients were set last; it stays frozen.

        Raises:
            ValueError: somebody else has unfrozen what the strategy freezes.
        """
        thawed = []
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and not self._applied.get(name, True):
                thawed.append(name)
            if self._applied.get(name, False) and not parameter.requires_grad:
                self.frozen_by_hand.add(name)
        own = {name for name in thawed if name in self.frozen_by_hand}
        if own and self._is_running:
            raise ValueError(
                f"requires_grad of {min(own)} was switched on in the course of a run, which was planned without it (features, "
                "augmentation). Give a strategy with a group that starts then: start=1 is the second epoch."
            )
        self.frozen_by_hand -= own
        if others := [name for name in thawed if name not in own]:
            raise ValueError(
                f"requires_grad of {others[0]} was set by hand, but the strategy {self.strategy.name!r} freezes it "
                f"({len(others)} parameters). Give a strategy that trains it, for example "
                f'groups=[{{"match": "@head"}}, {{"match": {others[0].split(".")[0]!r}, "lr": 0.1}}, '
                '{"match": ".*", "start": None}].'
            )

    def set_requires_grad(self, epoch: int | None) -> bool:
        """Set `requires_grad` of every parameter for an epoch.

        Args:
            epoch: counted from 0; None is before a run, when only what is never trained is frozen, so that what a user
                freezes by hand can be told from it.

        Returns:
            Whether anything changed.
        """
        parameters = dict(self.network.named_parameters())
        unused = set(self.unused_aux_parameters(epoch or 0))
        changed, frozen = False, set()
        for group, names in self.groups:
            has_gradients = group.start is not None if epoch is None else self.has_gradients(group, epoch)
            for name in names:
                wanted = has_gradients and name not in unused and name not in self.frozen_by_hand
                changed |= parameters[name].requires_grad != wanted
                parameters[name].requires_grad_(wanted)
                self._applied[name] = wanted
                if not wanted and name not in self.frozen_by_hand:
                    frozen.add(name)
                if not wanted:
                    parameters[name].grad = None  # a stale gradient would keep moving it
        setattr(self.network, _FROZEN_BY_STRATEGY, frozen)  # not on the parameters: a copy would lose it
        return changed

    def set_modes(self, epoch: int) -> None:
        """Set train mode for what is trainable, eval mode for what is frozen, BatchNorm and Dropout included.

        A module is frozen if it has parameters and none of them changes in this epoch. One without parameters follows
        its nearest ancestor with parameters; it is always active from the feature boundary on, and off before it
        while nothing there is trainable. In the epoch of a solved head nothing is active.
        """
        trainable, solved = self._moving_names(epoch), self._is_of_solved_head(epoch)
        trunk_is_constant = not self.trunk_is_trainable(epoch)
        active: dict[str, bool] = {"": bool(trainable)}
        after_boundary = False
        for path, module in self.network.named_modules():
            after_boundary |= path == self.family.feature_boundary
            names = [f"{path}.{n}" if path else n for n, _ in module.named_parameters()]
            if names:
                active[path] = any(n in trainable for n in names)
            else:
                active[path] = (after_boundary and bool(trainable)) or (
                    active[path.rpartition(".")[0]] and not trunk_is_constant
                )
            keeps_statistics = self.strategy.frozen_norm == "train" and is_norm(module) and not solved
            module.training = active[path] or keeps_statistics
        if self.family.aux and self.unused_aux_parameters(epoch):
            self.network.training = False  # the flag of the root alone decides whether auxiliary heads run

    # --- what follows for the optimizer ------------------------------------------------------------------------

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups as torch optimizers take them; the caller, who knows the base rate, sets `lr`."""
        parameters = dict(self.network.named_parameters())
        groups: list[dict[str, Any]] = []
        for group, names in self.groups:
            decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
            groups.append({"params": [parameters[n] for n in names], "name": group.name, **decay})
        return groups

    def rate_factors(self, epoch: int, now: float, warmup: float) -> list[float]:
        """Return each group's factor in 0..1 for a step; a warm-up of one epoch reaches 1 at that epoch's last step.

        Args:
            epoch: whole epochs before this one.
            now: epochs at the end of this step, in parts.
            warmup: of all groups, in epochs.
        """
        if self._is_of_solved_head(epoch):
            return [0.0] * len(self.groups)
        since = now - self.strategy.solve_head  # nothing is warmed up in the epoch in which nothing is trained
        overall = min(1.0, since / warmup) if warmup > 0 else 1.0
        return [overall * self._ramp(g, now) if self.has_gradients(g, epoch) else 0.0 for g, _ in self.groups]

    def _ramp(self, group: ParamGroup, now: float) -> float:
        first = group.first_epoch(self.end)
        if first is None or now < first or group.lr == 0:  # a scheduler may lift a rate of 0
            return 0.0
        return 1.0 if group.warmup <= 0 else min(1.0, (now - first) / group.warmup)

    def table(self, base_lr: float | None) -> list[list[str]]:
        """Return rows of group, tensors, parameters, rate and first epoch (counted from 1), for people.

        Args:
            base_lr: that the groups' rates are multiples of; None where an optimizer has rates of its own.
        """
        sizes = {n: p.numel() for n, p in self.network.named_parameters()}
        unused = self.unused_aux_parameters(max(0, self.end - 1))
        rows = []
        for group, names in self.groups:
            trained = [n for n in names if n not in unused and n not in self.frozen_by_hand]
            rate = "-" if group.start is None or base_lr is None else f"{base_lr * group.lr:.3g}"
            rows.append([group.name, str(len(trained)), _total(sizes, trained), rate, self._describe_start(group)])
        if unused:
            reason = "off: nothing before them is trainable"
            rows.append(["auxiliary heads", str(len(unused)), _total(sizes, unused), "-", reason])
        if by_hand := [n for n in sizes if n in self.frozen_by_hand]:
            rows.append(["frozen by hand", str(len(by_hand)), _total(sizes, by_hand), "-", "never"])
        return rows

    def announce(self, rows: Sequence[Sequence[str]], weights_source: str, is_first_process: bool) -> None:
        """Print the table of groups; say where the trunk is frozen at weights that look as if they were never trained."""
        if not is_first_process:
            return
        print_table(
            f"Strategy {self.strategy.name}", ["group", "tensors", "parameters", "rate", "trainable from"], rows
        )
        if self.trunk_is_ever_trainable():
            return
        if weights_source == "random weights" or looks_untrained(self.network, self.family.new):
            echo(field_line("Note", "the trunk is frozen at random weights: expect little; give model.weights."))

    def _describe_start(self, group: ParamGroup) -> str:
        if group.start is None:
            return "never"
        if group.lr == 0:
            return "solved before" if self.strategy.solve_head else "never (rate 0)"
        if self.max_epochs is None and 0 < group.start < 1:
            start = f"{group.start:.0%} of the run"
        else:
            first = max(group.first_epoch(self.end) or 0, int(self.strategy.solve_head))
            start = f"epoch {first + 1}"
        return start + (f", warm-up {group.warmup:g}" if group.warmup else "")


def _total(sizes: dict[str, int], names: Sequence[str]) -> str:
    return f"{sum(sizes[n] for n in names):,}"
