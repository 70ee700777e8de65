"""Find the files that the paths of a table mean."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from finetune.data.split_names import split_of
from finetune.data.table_columns import Rows
from finetune.io import formats, listing

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_DRIVE = re.compile(r"[a-zA-Z]:(?=/)")
_LOCAL_FILES = "?d="
"""After it, an address of Label Studio names a file of the machine it runs on."""
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded files."""

_SAMPLE = 200
"""Rows that are tried in a folder, to find out whether it is the one."""


@dataclass
class Located:
    """Hold the file of each row."""

    paths: list[str]
    missing: list[int] = field(default_factory=list)
    """Rows whose file is not there; their path is the one that was tried first."""
    notes: list[str] = field(default_factory=list)


def locate(rows: Rows, images: Path | None = None) -> Located:
    """Find the file of each row of a table.

    Paths are taken as they are written, from `images` or else from the table's folder. Where none is there, the folders
    that all of them begin with are taken away one by one (they are of another machine), and the folders beside the table
    are tried. A missing ending of an image is found.

    Args:
        rows: of a table.
        images: the folder that the paths are relative to, if it is not the table's.

    Raises:
        ValueError: a path is an address, or could be two files; the images could lie in two folders.
        FileNotFoundError: most files are not there, or `images` is not.
    """
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"data.images={images}: there is no such folder (looked from {Path.cwd()}).")
    table, folders = rows.table, _Folders()
    base = str(images or table.folder or table.path.parent)
    names = [_as_posix(table.at(row), path) for row, path in enumerate(rows.paths)]
    read_as, note = _find_reading(rows, names, base, folders, images is None)
    located = Located([], notes=[note] if note else [])
    for row, (raw, name) in enumerate(zip(rows.paths, names, strict=True)):
        try:
            found = (folders.find(os.path.join(base, raw)) if raw != name else None) or folders.find(read_as(name))
        except _TwoFilesError as error:
            raise ValueError(
                f"{table.at(row)}: {rows.path_column} is {raw!r}, which could be {error}. Write the ending."
            ) from error
        if found is None:
            located.missing.append(row)
        located.paths.append(found or os.path.join(base, name))
    _judge_missing(rows, located)
    return located


def _judge_missing(rows: Rows, located: Located) -> None:
    """Refuse a table most of whose files are not there; note those that are not."""
    if not located.missing:
        return
    row, count, total = located.missing[0], len(located.missing), len(located.paths)
    text = f"{rows.table.at(row)}: {rows.path_column} is {rows.paths[row]!r}, and there is no file {located.paths[row]}"
    if 2 * count > total:
        raise FileNotFoundError(
            f"{text} ({count} of {total} rows have no file). If the images lie elsewhere, say where: data.images=FOLDER."
        )
    located.notes.append(f"{count} of {total} rows of {rows.table.path.name} have no file. {text}.")


def _as_posix(place: str, path: str) -> str:
    """Return a path with the separators of this system, without the address that Label Studio puts around it.

    Raises:
        ValueError: it is an address.
    """
    if _LOCAL_FILES in path:
        return unquote(path.split(_LOCAL_FILES, 1)[1])
    if _ADDRESS.match(path):
        raise ValueError(f"{place}: {path} is an address, and images are read from files: download them first.")
    return _DRIVE.sub("", path.replace("\\", "/"))


def _find_reading(
    rows: Rows, names: Sequence[str], base: str, folders: _Folders, look_beside: bool
) -> tuple[Callable[[str], str], str]:
    """Return how a name becomes a path, and a note on it where it is not plainly from `base`."""
    step = max(1, len(names) // _SAMPLE)
    sample = range(0, len(names), step)

    def as_written(name: str) -> str:
        return os.path.join(base, name)

    if any(folders.has(os.path.join(base, rows.paths[i])) or folders.has(as_written(names[i])) for i in sample):
        return as_written, ""
    common = _common_folders(names)
    places = [base, *(_folders_beside(base) if look_beside else [])]
    fits: list[tuple[str, int]] = []
    for place in places:
        for strip in range(len(common) + 1):
            read = _Reading(place, strip)
            if any(folders.has(read(names[i])) for i in sample):
                fits.append((place, strip))
                break
        if fits and place == base:
            break
    if len(fits) > 1:
        listed = " and in ".join(place for place, _ in fits[:3])
        # the images of a test have no labels as a rule
        example = next((place for place, _ in fits if split_of(os.path.basename(place)) == "train"), fits[0][0])
        raise ValueError(f"{rows.table.path}: its images could be those in {listed}. Say which: data.images={example}.")
    if not fits:
        return as_written, ""
    place, strip = fits[0]
    without = f", without {'/'.join(common[:strip]) or '/'} before them" if strip else ""
    return _Reading(place, strip), f"the paths of {rows.table.path.name} are read from {place}{without}."


@dataclass(frozen=True)
class _Reading:
    """Read a name from a folder, without the first of its own."""

    folder: str
    strip: int

    def __call__(self, name: str) -> str:
        return (
            os.path.join(self.folder, *name.split("/")[self.strip :]) if self.strip else os.path.join(self.folder, name)
        )


def _common_folders(names: Sequence[str]) -> list[str]:
    """Return the folders that all names begin with."""
    common = names[0].split("/")[:-1] if names else []
    for name in names:
        parts = name.split("/")[:-1]
        length = 0
        for ours, theirs in zip(common, parts, strict=False):
            if ours != theirs:
                break
            length += 1
        common = common[:length]
        if not common:
            break
    return common


def _folders_beside(base: str) -> Iterator[str]:
    if os.path.isdir(base):
        yield from (os.path.join(base, name) for name in listing.subfolders(base))


class _TwoFilesError(Exception):
    """Raised where a name without its ending could be two files."""


class _Folders:
    """Look files up in folders that are listed once each."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {}

    def find(self, path: str) -> str | None:
        """Return the path of a file, with the ending that is missing, and as the disk spells its name."""
        folder, name = os.path.split(path)
        names, stems = self._listed.get(folder) or self._list(folder)
        if name in names:
            return path if names[name] == name else os.path.join(folder, names[name])
        for candidate in (name, _UPLOAD_PREFIX.sub("", name, count=1)):
            key = unicodedata.normalize("NFC", candidate)
            if key in names:
                return os.path.join(folder, names[key])
            if len(found := stems.get(key, [])) > 1:
                raise _TwoFilesError(" or ".join(sorted(found)))
            if found:
                return os.path.join(folder, found[0])
        return None

    def has(self, path: str) -> bool:
        """Return whether there is such a file, or more than one."""
        try:
            return self.find(path) is not None
        except _TwoFilesError:
            return True

    def _list(self, folder: str) -> tuple[dict[str, str], dict[str, list[str]]]:
        try:
            with os.scandir(folder or ".") as entries:
                files = [entry.name for entry in entries if entry.is_file()]
        except (OSError, ValueError):  # no such folder, or none that could be one
            files = []
        names: dict[str, str] = {name: name for name in files}
        stems: dict[str, list[str]] = {}
        for name in files:
            key = unicodedata.normalize("NFC", name)
            names.setdefault(key, name)
            if formats.is_image(name):
                stems.setdefault(os.path.splitext(key)[0], []).append(name)
        self._listed[folder] = (names, stems)
        return names, stems
