"""Load weights from local files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from finetune.checkpoints.format import model_record
from finetune.checkpoints.heads import StoredHead
from finetune.checkpoints.metadata import ModelRecord
from finetune.io.tensors import read_tensors
from finetune.models.adaptation import POSITIONS, RGB, adapt_weight, first_convolution, fit_positions
from finetune.models.specs import Family


def read_model_record(path: Path) -> ModelRecord | None:
    """Return what a checkpoint of this package says of its model; None for any other file."""
    return _read_model_record(path, path.stat().st_mtime_ns) if path.suffix == ".ckpt" else None


@lru_cache(8)  # three ask for it while a network is made, and the file may be large
def _read_model_record(path: Path, changed: int) -> ModelRecord | None:
    return model_record(read_tensors(path))


# --- local files -----------------------------------------------------------------------------------------------


_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.", "network.")

_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")  # torchvision's own old files


def _strip_wrappers(name: str, known: set[str]) -> str:
    """Return a parameter's name without the prefixes of wrappers, in torchvision's present spelling."""
    while name not in known and (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)):
        name = name[len(prefix) :]
    old = _OLD_DENSENET.match(name)
    return f"{old[1]}{old[2]}" if old else name


class LoadedWeights(NamedTuple):
    """What was loaded from a local file, and what is left of it."""

    source: str
    """How many tensors were loaded from where, as a text for people."""
    head: StoredHead | None
    """The heads of a checkpoint of this package, which names its classes; None for any other file."""


def load_weights(
    network: nn.Module,
    path: Path,
    family: Family,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor] | None] = lambda _: None,
) -> LoadedWeights:
    """Load a local file into a network's trunk; heads in the file are left out.

    The file may be a state dict, one under `state_dict` or `model`, one with wrappers' prefixes, or a trunk alone. One
    of a network for RGB images is adapted to the channels that this one takes, one of a vision transformer to its size.

    Args:
        network: takes the tensors.
        path: of the file.
        family: of the network.
        convert: is called with tensors that do not fit as they are, and returns those that do, or None.

    Raises:
        ValueError: trunk tensors are missing, have another shape, or belong to another network; the message names them.
    """
    data: Mapping[str, Any] = read_tensors(path)
    for key in ("state_dict", "model"):
        if isinstance(data.get(key), Mapping):
            data = data[key]
    record = read_model_record(path)
    if record is not None and not _is_of_family(record.model, family):
        raise ValueError(
            f"{path} is a checkpoint of {record.model}, not of {family.names[0]}: give model={record.model}."
        )
    state = network.state_dict()
    loaded = {_strip_wrappers(k, set(state)): v for k, v in data.items() if isinstance(v, Tensor)}
    heads = tuple(f"{p}." for p in (*family.new, *family.aux))
    trunk = {k: v for k, v in state.items() if not k.startswith(heads)}
    given = {k: v for k, v in loaded.items() if not k.startswith(heads)}
    remark = ""
    is_fitting = {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in trunk.items()}
    if not is_fitting and not given.keys() > trunk.keys():  # with all of the trunk and more it is another network's
        converted = convert(loaded)
        if converted is not None:
            fitted = [k for k, v in converted.items() if k in given and given[k].shape != v.shape]
            given = {k: v for k, v in converted.items() if not k.startswith(heads)}
            remark = f", fitted by {type(network).__module__.partition('.')[0]}" + (
                f": {', '.join(fitted)}" if fitted else ""
            )
    _adapt_to_channels(network, given)
    remark += _adapt_to_size(network, given)
    _require_fit(path, family, network, trunk, given)
    state.update({k: v for k, v in given.items() if k in trunk})
    network.load_state_dict(state)  # by update: `state` has the version in it that torchvision's MNASNet asks for
    ignored = sum(name.startswith(heads) for name in loaded)
    source = f"{len(given)} trunk tensors from {path}{remark}"
    head = None
    if record is not None:
        head = StoredHead(record.classes, {k: v for k, v in loaded.items() if k.startswith(heads)}, path)
    return LoadedWeights(source + (f" ({ignored} of its heads ignored)" if ignored else ""), head)


def _require_fit(
    path: Path, family: Family, network: nn.Module, trunk: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Refuse a file whose tensors are not those of the trunk.

    Raises:
        ValueError: some are missing, have another shape, or belong to another network; names them.
    """
    # auxiliary branches are often dropped before saving, and old files lack BatchNorm's counters
    optional = tuple(f"{path}." for path in family.aux_roots)
    missing = [k for k in trunk if not (k in given or k.endswith("num_batches_tracked") or k.startswith(optional))]
    shapes = [
        f"{k} is {list(v.shape)}, needs {list(trunk[k].shape)}"
        for k, v in given.items()
        if k in trunk and v.shape != trunk[k].shape
    ]
    unknown = [k for k in given if k not in trunk]
    for problem, names in (("lacks", missing), ("has another shape:", shapes), ("also holds", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{path} does not fit {type(network).__name__}: it {problem} {', '.join(names[:3])}{more}. "
                + _advice(path, family, network, given)
            )


def _adapt_to_channels(network: nn.Module, given: dict[str, Tensor]) -> None:
    """Adapt the first convolution of a file for RGB images to the channels that the network takes, in place."""
    found = first_convolution(network)
    name = f"{found[0]}.weight" if found is not None else ""
    if found is None or name not in given or given[name].ndim != 4:
        return
    if given[name].shape[1] == RGB != found[1].in_channels:
        given[name] = adapt_weight(given[name], found[1].in_channels)


def _adapt_to_size(network: nn.Module, given: dict[str, Tensor]) -> str:
    """Adapt the position embeddings of a vision transformer's file to the network's image size, in place."""
    positions = given.get(POSITIONS)
    if not isinstance(network, VisionTransformer) or positions is None or positions.ndim != 3:
        return ""
    if positions.shape[2] != network.hidden_dim:
        return ""  # of another network
    return fit_positions(given, network.image_size, network.patch_size)


def _is_of_family(model: str, family: Family) -> bool:
    """Return whether a checkpoint's model is one of a family, whatever the tag of its first weights; "custom" may be any."""
    return (
        not family.names or model == "custom" or model.partition(".")[0] in {n.partition(".")[0] for n in family.names}
    )


def _advice(path: Path, family: Family, network: nn.Module, given: Mapping[str, Tensor]) -> str:
    """Return what to do with a file that does not fit."""
    record = read_model_record(path)
    found = first_convolution(network)
    weight = given.get(f"{found[0]}.weight") if found is not None else None
    if found is not None and weight is not None and weight.ndim == 4 and weight.shape[1] != found[1].in_channels:
        channels = weight.shape[1]
        return f"It is of a network for images of {channels} channels: give model.in_channels={channels}."
    return (
        "Is it the file of another model?"
        if record is None
        else f"It is a checkpoint of {record.model}: give model={record.model}."
    )
