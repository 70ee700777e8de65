"""Read what a command line says of loggers: the keys of one that is chosen, and the packages that it needs.

Importing this imports neither torch nor a logger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from finetune.cli.groups import group_options
from finetune.cli.schema import load_conf
from finetune.runtime.suggestions import closest_matches

EXTRAS = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy")}
"""Logger, which is the name of an extra too -> the packages that it needs; mlflow-skinny has no database."""

_KEY = re.compile(r"(?P<mark>[+~]{0,2})logger\.(?P<path>[^=]+)(?P<value>=.*|$)", re.DOTALL)


def expand_logger_keys(words: Sequence[str]) -> list[str]:
    """Return arguments with `logger.KEY=` as `logger.NAME.KEY=`, where NAME is the chosen logger that has the key.

    Where a recipe or a folder of the user's may choose another logger, keys are left as they are.

    Raises:
        ValueError: none of the chosen loggers has the key, or several have.
    """
    chosen = _chosen(words)
    own_files = any(word.split("=")[0] in ("experiment", "--config-dir", "-cd", "hydra.searchpath") for word in words)
    known = {name: _keys(name) for name in chosen}
    if own_files and (set(chosen) - set(EXTRAS) - {"csv"} or not _is_chosen(words)):
        return list(words)
    return [_expand(word, match, known) if (match := _KEY.fullmatch(word)) else word for word in words]


def _chosen(words: Sequence[str]) -> list[str]:
    values = [word.partition("=")[2] for word in words if word.startswith("logger=")]
    return list(dict.fromkeys(re.findall(r"[\w.-]+", values[-1]))) if values else ["csv"]


def _is_chosen(words: Sequence[str]) -> bool:
    return any(word.startswith("logger=") for word in words)


def _keys(name: str) -> tuple[str, ...]:
    if name not in EXTRAS or name not in group_options("logger"):
        return ()
    return tuple(str(key) for key in load_conf(f"logger/{name}.yaml")[name])


def _expand(word: str, match: re.Match[str], known: Mapping[str, Sequence[str]]) -> str:
    mark, path, value = match["mark"], match["path"], match["value"]
    first, _, rest = path.partition(".")
    if first in EXTRAS:
        if first not in known:
            raise ValueError(f"logger.{path}: {first} is not chosen; give logger={first}, or logger=[csv,{first}].")
        if not mark and rest.partition(".")[0] not in known[first]:
            raise ValueError(_unknown(path, {first: known[first]}))
        return word
    owners = [name for name, keys in known.items() if first in keys or (mark == "+" and keys)]
    if len(owners) > 1:
        raise ValueError(
            f"logger.{path}: several loggers take it; give {' or '.join(f'logger.{o}.{path}=' for o in owners)}."
        )
    if not owners:
        raise ValueError(_unknown(path, known))
    return f"{mark}logger.{owners[0]}.{path}{value}"


def _unknown(path: str, known: Mapping[str, Sequence[str]]) -> str:
    name = " and ".join(known)
    keys = {f"logger.{owner}.{key}" for owner, owned in known.items() for key in owned if key != "_target_"}
    close = closest_matches(f"logger.{path}", sorted(keys))[:1]
    hint = f"Did you mean {close[0]}?" if close else ""
    others = [other for other in EXTRAS if other not in known and path.partition(".")[0] in _keys(other)]
    elsewhere = f"It is a key of logger={' and logger='.join(others)}." if others else ""
    listed = f"It takes {', '.join(sorted(keys))}." if keys and not others else ""
    return " ".join(filter(None, [f"logger.{path}: logger={name} has no such key.", elsewhere or hint, listed]))


def logger_specs(node: Any) -> dict[str, dict[str, Any]]:
    """Return the loggers of a configuration, by name: those of ours, and one of the user's that stands there by itself."""
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    values = dict(values or {})
    named = {str(k): v for k, v in values.items() if isinstance(v, Mapping) and "_target_" in v}
    own = {k: v for k, v in values.items() if k not in named and k not in ("csv", *EXTRAS)}
    if own.get("_target_"):
        named[str(own["_target_"]).rpartition(".")[2]] = own
    return {name: dict(spec) for name, spec in named.items() if spec.get("_target_")}


def find_missing_extras(cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each logger whose package is not installed."""
    for name, packages in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        if missing and (cfg.get("logger") or {}).get(name) is not None:
            instead = " (mlflow-skinny has no database)" if missing == ["sqlalchemy"] else ""
            yield (
                f"logger={name} needs a package that is not installed, {missing[0]}{instead}: "
                f"pip install 'finetune-lightning[{name}]'."
            )
