"""Unpack archives safely: no path outside the target, no link, no bomb."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_TOTAL_BYTES = 64 << 30

MAX_RATIO = 200
"""Largest ratio of an archive's unpacked size to its own; beyond it, it is a bomb."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_END_BYTES = 1 << 20

UNREADABLE_ENDINGS = (".rar", ".7z", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".iso")
"""Endings of archives and of compressed files that are refused by name."""


class UnsafeArchiveError(ValueError):
    """Raised for an archive that would write outside its folder, or too much."""


class DamagedArchiveError(ValueError):
    """Raised for an archive that cannot be unpacked whole; its cause says why."""


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive that is read, by its name.

    Raises:
        ValueError: it is one of a kind that is not read.
    """
    name = path.name.lower()
    if name.endswith((".zip", *TAR_ENDINGS)):
        return True
    if name.endswith(UNREADABLE_ENDINGS):
        raise ValueError(
            f"{path} is an archive of a kind that is not read ({path.suffix}): unpack it and give its folder, or pack the "
            "folder as .zip or .tar.gz."
        )
    return False


def fingerprint(archive: Path) -> str:
    """Return a digest that tells archives apart whose name, size and time of change are the same.

    It is of the first and the last MiB, and of what the archive says of its members. The last bytes of compressed files
    hold a checksum of all that is in them, so that only plain .tar files are listed member by member; these have no
    checksum of contents.

    Raises:
        ValueError: it is damaged.
    """
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, archive.stat().st_size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    with _whole(archive):
        for member in _describe_members(archive):
            digest.update(repr(member).encode())
    return digest.hexdigest()


def _describe_members(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and checksum of each member; of a plain .tar, the time of its change in place of the checksum."""
    if not _is_tar(archive):
        with zipfile.ZipFile(archive) as file:
            yield from ((member.filename, member.file_size, member.CRC) for member in file.infolist())
    elif archive.name.lower().endswith(".tar"):
        with tarfile.open(archive) as tar:
            yield from ((member.name, member.size, int(member.mtime)) for member in tar)


def extract(archive: Path, target: Path) -> None:
    """Unpack an archive to `target`, which must not exist. Nothing is written before every member has been checked.

    Raises:
        ValueError: it is damaged, needs a password or is a bomb, or a member has an absolute path or `..`, or is a link or
            a device. The archive is left as it is.
    """
    measure(archive)
    write(archive, target)


def measure(archive: Path) -> int:
    """Check every member of an archive; return the size of all of them, unpacked, in bytes.

    Raises:
        ValueError: see `extract`.
    """
    with _whole(archive):
        if not _is_tar(archive):
            with zipfile.ZipFile(archive) as file:
                return _sum(archive, (_check_zip_member(member) for member in file.infolist()))
        with tarfile.open(archive) as file:
            return _sum(archive, (_check_tar_member(member) for member in file))


def _is_tar(archive: Path) -> bool:
    return archive.name.lower().endswith(TAR_ENDINGS)


@contextmanager
def _whole(archive: Path, target: Path | None = None) -> Iterator[None]:
    """Turn the errors of damaged archives into one, and leave nothing of them in the target."""
    try:
        yield
    except UnsafeArchiveError:
        raise
    # a damaged archive can raise nearly anything, from struct.error to errors of names that no file may have
    except Exception as error:
        if target is not None:
            shutil.rmtree(target, ignore_errors=True)
        kind, reason = "tar" if _is_tar(archive) else "zip", (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedArchiveError(f"{archive} is not a whole {kind} file ({reason.rstrip(':')})") from error


def write(archive: Path, target: Path) -> None:
    """Unpack an archive whose members have been checked, see `measure`.

    Raises:
        ValueError: it cannot be unpacked whole.
    """
    with _whole(archive, target):
        if not _is_tar(archive):
            with zipfile.ZipFile(archive) as file:
                target.mkdir(parents=True)
                for member in file.infolist():
                    member.filename = member.filename.replace("\\", "/")  # of programs that write names as Windows does
                    file.extract(member, target)
        else:
            with tarfile.open(archive) as tar:
                target.mkdir(parents=True)
                tar.extractall(target, filter="data")


def _sum(archive: Path, sizes: Iterable[int]) -> int:
    total, most = 0, min(MAX_TOTAL_BYTES, MAX_RATIO * max(1 << 20, archive.stat().st_size))
    for size in sizes:
        total += size
        if total > most:
            raise UnsafeArchiveError(
                f"{archive} would unpack to {total} bytes or more, which is not credible; refused. If it is in order, "
                "unpack it yourself and give its folder."
            )
    return total


def _check_zip_member(member: zipfile.ZipInfo) -> int:
    """Return the size of a member, in bytes."""
    _check_name(member.filename)
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(f"The archive holds {member.filename!r}, a link or a device; nothing was unpacked.")
    if member.flag_bits & 1:
        raise UnsafeArchiveError(
            f"The archive needs a password (for {member.filename!r}): unpack it yourself and give its folder."
        )
    return member.file_size


def _check_tar_member(member: tarfile.TarInfo) -> int:
    """Return the size of a member, in bytes."""
    _check_name(member.name)
    if member.islnk():  # a second name of a file that is in the archive
        _check_name(member.linkname)
    elif not (member.isreg() or member.isdir()):
        raise UnsafeArchiveError(f"The archive holds {member.name!r}, a link or a device; nothing was unpacked.")
    return member.size


def _check_name(member: str) -> None:
    name = member.replace("\\", "/")
    if name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/"):
        raise UnsafeArchiveError(f"The archive holds {member!r}, a path outside its folder; nothing was unpacked.")
