"""Unpack an archive of images into the cache, once."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from finetune.data.split_names import split_of
from finetune.io import archives, formats, listing
from finetune.io.paths import UNWRITABLE_ERRNOS
from finetune.io.store import Cache

TREE = "tree"
"""Name of the unpacked files in an entry of the cache."""


def unpacked(archive: Path, cache: Cache) -> Path:
    """Return the folder of an archive's files, unpacked into the cache unless it is there already.

    Several processes may call this at the same time: one works, the others wait. An archive that has changed, by its
    size, its time of change or `archives.fingerprint`, is unpacked again; one that was moved is not.

    Raises:
        ValueError: it cannot be unpacked, see `archives.extract`.
    """
    try:
        about = archive.stat()
        size, mtime_ns = about.st_size, about.st_mtime_ns
        digest = _fingerprint(archive.absolute(), size, mtime_ns)
        key = {"name": archive.name, "size": size, "mtime_ns": mtime_ns, "fingerprint": digest}
        entry = cache.path("archive", key)
        with cache.locked(entry):
            if not (entry / TREE).is_dir():
                unpacked_size = archives.measure(archive)
                metadata = {"description": f"files of {archive.absolute()}", "bytes": unpacked_size}
                cache.make(entry, metadata, unpacked_size, lambda folder: archives.write(archive, folder / TREE))
            cache.hold(entry)
    except archives.UnsafeArchiveError as error:
        raise ValueError(f"data.root={archive} is not unpacked. {error}") from error
    except (archives.DamagedArchiveError, OSError) as error:
        reason = error.__cause__ or error
        if not isinstance(error, OSError) and getattr(reason, "errno", None) not in UNWRITABLE_ERRNOS:
            raise ValueError(f"data.root={error}: copy it again from where it came from.") from error
        raise ValueError(
            f"data.root={archive} could not be unpacked into {cache.folder} ({reason}): unpack it yourself and give its folder."
        ) from error
    return _top_folder(entry / TREE)


@lru_cache
def _fingerprint(archive: Path, size: int, mtime_ns: int) -> str:
    """Return `archives.fingerprint`, computed once in a process: a run asks for its archive several times."""
    return archives.fingerprint(archive)


def _top_folder(tree: Path) -> Path:
    """Return the folder in which the files begin: a single folder around everything is passed, unless it is a split's."""
    names = listing.subfolders(tree)
    files = [e for e in tree.iterdir() if not listing.is_hidden(e.name) and not e.is_dir()]
    if len(names) != 1 or files or split_of(names[0]):
        return tree
    below = tree / names[0]
    only_images = not listing.subfolders(below) and all(map(formats.is_image, os.listdir(below)))
    return tree if only_images else _top_folder(below)
