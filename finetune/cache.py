"""`python -m finetune.cache [clear]`: list or clear what is computed once and kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.io.store import Cache, default_cache_folder, format_mib


def _age(seconds: float) -> str:
    for length, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            n = int(seconds // length)
            return f"{n} {name}{'s' if n > 1 else ''} ago"
    return "just now"


def cache(argv: Sequence[str] | None = None) -> None:
    """List or clear."""
    parser = argparse.ArgumentParser(prog="python -m finetune.cache", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument(
        "--dir", type=Path, help=f"the folder, paths.cache_dir of the runs (default: {default_cache_folder()})"
    )
    given = parser.parse_args(argv)
    kept = Cache(given.dir)
    if given.action == "clear":
        count, size = kept.clear()
        print(f"Removed {count} entries, {format_mib(size)}, from {kept.folder}.")
        return
    entries = kept.entries()
    if not entries:
        print(f"Nothing is kept in {kept.folder}.")
        return

    from finetune.runtime.console import print_table

    rows = [
        [e.metadata.get("description", e.path.name), format_mib(e.bytes), _age(time.time() - e.used)]
        for e in reversed(entries)
    ]
    print_table(f"{format_mib(sum(e.bytes for e in entries))} in {kept.folder}", ["kept", "size", "last used"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    from finetune.cli.main import argparse_command  # here: the classes work without hydra

    argparse_command(cache, argv)


if __name__ == "__main__":
    main()
