"""Open the study of a sweep: Optuna's record of its trials, which several processes may share.

Importing this does not import Optuna.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

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


def is_there(address: str) -> bool:
    """Return whether a storage is there, as far as that shows without opening it, which makes one."""
    path = next((address.removeprefix(p) for p in (_JOURNAL_PREFIX, _SQLITE_PREFIX) if address.startswith(p)), None)
    return path is None or Path(path).is_file()


def open_storage(address: str) -> BaseStorage:
    """Open a storage, and make it if it is not there.

    Args:
        address: `journal:FILE`, or a database as SQLAlchemy names it: `sqlite:///FILE`.

    Raises:
        ValueError: it is neither, or cannot be opened; or Optuna is not installed.
    """
    optuna = import_optuna()
    if address.startswith(_JOURNAL_PREFIX):
        from optuna.storages.journal import JournalFileBackend

        path = Path(address.removeprefix(_JOURNAL_PREFIX))
        path.parent.mkdir(parents=True, exist_ok=True)
        storage: BaseStorage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        return storage
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
