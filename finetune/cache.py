"""`python -m finetune.cache [clear]`: list or clear the cache of features, pixels, image info and unpacked archives."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from finetune.cli.main import argparse_command
from finetune.io.store import Cache, default_cache_folder, format_mib


def _age(seconds: float) -> str:
    for length, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            n = int(seconds // length)
            return f"{n} {name}{'s' if n > 1 else ''} ago"
    return "just now"


def cache(argv: Sequence[str] | None = None) -> None:
    """List or clear the cache."""
    parser = argparse.ArgumentParser(prog="python -m finetune.cache", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    parser.add_argument(
        "--dir", type=Path, help=f"the folder, paths.cache_dir of the runs (default: {default_cache_folder()})"
    )
    options = parser.parse_args(argv)
    store = Cache(options.dir)
    if options.action == "clear":
        count, size = store.clear()
        print(f"Removed {count} entries, {format_mib(size)}, from {store.folder}.")
        return
    entries = store.entries()
    if not entries:
        print(f"Nothing is kept in {store.folder}.")
        return

    from finetune.runtime.console import print_table

    rows = [
        [e.metadata.get("description", e.path.name), format_mib(e.bytes), _age(time.time() - e.used)]
        for e in reversed(entries)
    ]
    print_table(f"{format_mib(sum(e.bytes for e in entries))} in {store.folder}", ["kept", "size", "last used"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argparse_command(cache, argv)


if __name__ == "__main__":
    main()
