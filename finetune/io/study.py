"""Open the study of a sweep: Optuna's record of its trials, which several processes may share.

Importing this does not import Optuna.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock

from finetune.runtime.mappings import select

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
"""Name of the storage in a sweep's own folder."""

STUDY_NAME = "finetune"
"""Name of a study that has no other."""

SWEEP, REPEATS, INTERRUPTED, PRUNED = "sweep", "repeats", "interrupted", "pruned"
"""What a trial remembers: the folder of its sweep, the number of the trial that it repeats, how it was stopped."""

SQLITE_TIMEOUT_S = 60.0
"""How long a process waits while others write."""

SWEEPER = "hydra_plugins.finetune_sweeper.OptunaSweeper"
"""The sweeper whose sweeps have a study."""

_JOURNAL_PREFIX, _SQLITE_PREFIX = "journal:", "sqlite:///"


def storage_address(storage: str | None, folder: str | Path, cwd: str | Path = ".") -> str:
    """Return where a study is kept; of a sweep that names no place, in its folder.

    Args:
        storage: `sweep.storage`.
        folder: of the sweep.
        cwd: the folder from which the path of a file counts.
    """
    if storage is None:
        return f"{_JOURNAL_PREFIX}{Path(folder).absolute() / JOURNAL}"
    for prefix in (_JOURNAL_PREFIX, _SQLITE_PREFIX):
        if storage.startswith(prefix) and storage != f"{_SQLITE_PREFIX}:memory:":
            return f"{prefix}{Path(cwd).absolute() / Path(storage.removeprefix(prefix)).expanduser()}"
    return storage


def has_study(config: Any) -> bool:
    """Return whether a sweep has a study.

    Args:
        config: its configuration, with Hydra's own node.
    """
    return bool(select(config, "hydra.sweeper._target_") == SWEEPER)


def storage_file(address: str) -> Path | None:
    """Return the file that a storage is; None of a database that is none."""
    found = (address.removeprefix(p) for p in (_JOURNAL_PREFIX, _SQLITE_PREFIX) if address.startswith(p))
    path = next(found, None)
    return None if path is None else Path(path)


def open_storage(address: str) -> BaseStorage:
    """Open a storage, and make it if it is not there.

    Args:
        address: `journal:FILE`, or a database as SQLAlchemy names it: `sqlite:///FILE`.

    Raises:
        ValueError: it is neither, or cannot be opened; or Optuna is not installed.
    """
    optuna = import_optuna()
    if address.startswith(_JOURNAL_PREFIX):
        path = Path(address.removeprefix(_JOURNAL_PREFIX))
        path.parent.mkdir(parents=True, exist_ok=True)
        return _open_journal(path)
    if "://" not in address:
        raise ValueError(f"sweep.storage={address}: give journal:FILE, or a database, sqlite:///FILE.")
    options = {"connect_args": {"timeout": SQLITE_TIMEOUT_S}} if address.startswith("sqlite:") else {}
    try:
        with _one_at_a_time(address):
            database: BaseStorage = optuna.storages.RDBStorage(address, engine_kwargs=options)
            return database
    except Exception as error:  # of SQLAlchemy, of a driver or of Optuna
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"sweep.storage={address} cannot be opened ({reason}).") from error


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages.journal import JournalFileBackend

    storage: BaseStorage = import_optuna().storages.JournalStorage(JournalFileBackend(str(path)))
    return storage


@contextmanager
def _one_at_a_time(address: str) -> Iterator[None]:
    """Let one process after the other make the tables of a file of SQLite: two at once would fail."""
    path = address.removeprefix(_SQLITE_PREFIX)
    if path in (address, ":memory:") or not Path(path).parent.is_dir():  # SQLite says so itself
        yield
        return
    with FileLock(f"{path}.lock"):
        yield


def load_study(address: str, name: str | None, **options: Any) -> Study:
    """Load a study that is there.

    Raises:
        KeyError: there is no such study.
        ValueError: its storage cannot be opened.
    """
    optuna = import_optuna()
    study: Study = optuna.load_study(study_name=name or STUDY_NAME, storage=open_storage(address), **options)
    return study


def load_study_to_read(address: str, name: str | None) -> Study:
    """Load a study without writing anything: no file and no table is made.

    Raises:
        Exception: there is no such study, or its storage cannot be read; each kind of storage has errors of its own.
    """
    optuna, path = import_optuna(), storage_file(address)
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    if path is not None and address.startswith(_JOURNAL_PREFIX):
        storage = _open_journal(path)
    elif path is not None:
        uri = f"file:{quote(str(path))}?mode=ro"
        connect = partial(sqlite3.connect, uri, uri=True, timeout=SQLITE_TIMEOUT_S, check_same_thread=False)
        # the name in the address is not used: SQLAlchemy's versions differ in how they read a URI of SQLite's own there
        options = {"creator": connect}
        storage = optuna.storages.RDBStorage(f"{_SQLITE_PREFIX}study", engine_kwargs=options, skip_table_creation=True)
    else:
        storage = optuna.storages.RDBStorage(address, skip_table_creation=True)
    study: Study = optuna.load_study(study_name=name or STUDY_NAME, storage=storage)
    return study


def import_optuna() -> Any:
    """Import Optuna, and let it print warnings alone.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("sweep=optuna needs Optuna: pip install 'finetune-lightning[sweep]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


PRUNERS: dict[str, Callable[[Any], BasePruner]] = {
    "none": lambda pruners: pruners.NopPruner(),
    "median": lambda pruners: pruners.MedianPruner(n_startup_trials=5),
    "percentile": lambda pruners: pruners.PercentilePruner(25.0, n_startup_trials=5),
    "halving": lambda pruners: pruners.SuccessiveHalvingPruner(),
    "hyperband": lambda pruners: pruners.HyperbandPruner(),
}
"""What makes the pruner of each name, of the module `optuna.pruners`."""


def without_repeated(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that no other one repeats, and that have begun."""
    repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
    return [trial for trial in trials if trial.state.name != "WAITING" and trial.number not in repeated]


def make_pruner(name: str) -> BasePruner:
    """Make the pruner of a name."""
    return PRUNERS[name](import_optuna().pruners)
