"""Take over the head of a checkpoint for other classes, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.runtime import process
from finetune.runtime.console import echo, field_line

SHOWN = 10
"""Number of classes that a line names."""


@dataclass(frozen=True)
class StoredHead:
    """The heads of a checkpoint, the auxiliary ones included."""

    classes: list[str]
    """In the order of the rows."""
    tensors: Mapping[str, Tensor]
    """By their names within the network: of the last layers, and of what else is new in auxiliary branches."""
    path: Path

    def take_over(self, network: nn.Module, last_layers: Sequence[str], classes: Sequence[str]) -> int:
        """Copy the rows of the classes that stay into a network's new head, and say so in a line.

        Args:
            network: with a new head for `classes`; the rows of its new classes stay as they are.
            last_layers: paths of the last layer of the head, and of those of the auxiliary heads.
            classes: in the order of the network's rows.

        Returns:
            How many classes stay; 0, and nothing is changed or said, where none does or the head has another shape.
        """
        pairs = [(new, self.classes.index(name)) for new, name in enumerate(classes) if name in self.classes]
        if not pairs or not self._fits(network, last_layers[0]):
            return 0
        for path in last_layers:
            if self._fits(network, path):
                self._copy_rows(network, path, pairs)
        state = network.state_dict()  # whose tensors are the network's own
        for name, tensor in self.tensors.items():
            is_row = any(name.startswith(f"{path}.") for path in last_layers)
            if not is_row and name in state and state[name].shape == tensor.shape:
                state[name].copy_(tensor)
        if process.is_first_process():
            new_names = [name for name in classes if name not in self.classes]
            more = f" and {len(new_names) - SHOWN} more" if len(new_names) > SHOWN else ""
            new = f", new: {', '.join(new_names[:SHOWN])}{more}" if new_names else ""
            text = f"{len(pairs)} of {len(classes)} classes taken over from {self.path} by name{new}"
            echo(field_line("Head", text))
        return len(pairs)

    def _fits(self, network: nn.Module, path: str) -> bool:
        layer: Any = network.get_submodule(path)
        weight, bias = self.tensors.get(f"{path}.weight"), self.tensors.get(f"{path}.bias")
        if weight is None or (bias is None) != (layer.bias is None):
            return False
        rows = [t.shape[0] for t in (weight, bias) if t is not None and t.ndim > 0]
        return set(rows) == {len(self.classes)} and weight.shape[1:] == layer.weight.shape[1:]

    def _copy_rows(self, network: nn.Module, path: str, pairs: Sequence[tuple[int, int]]) -> None:
        layer: Any = network.get_submodule(path)
        new, old = ([pair[i] for pair in pairs] for i in (0, 1))
        with torch.no_grad():
            for name in ("weight", "bias"):
                if (parameter := getattr(layer, name)) is not None:
                    parameter[new] = self.tensors[f"{path}.{name}"][old].to(parameter)
