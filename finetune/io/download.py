"""Download data sets and weights: resumed, checked, extracted safely, and moved into place at once by one process."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.progress import Progress

from finetune.io import archives, examples, listing
from finetune.io.paths import UNWRITABLE_ERRNOS

ATTEMPTS = 4

TIMEOUT_S, REACHABLE_S = 30.0, 5.0


@dataclass(frozen=True)
class Archive:
    """Describe where a data set comes from and how it is checked."""

    url: str
    """Address of a zip file, or a key of `examples.MAKERS`."""
    sha1: str | None = None
    """Digest of the zip file, in hexadecimal."""
    sha256: str | None = None
    """Digest of the zip file, in hexadecimal."""
    tree_sha256: str | None = None
    """Digest of the extracted files; see `tree_digest`."""


def fetch(source: Archive, root: Path) -> None:
    """Download and unpack a data set to the folder `root`, or leave nothing behind.

    Several processes may call this at the same time: one works, the others wait.

    Raises:
        FileNotFoundError: it cannot be downloaded; the message says which folder to fill by hand.
        ValueError: the file is not the one that was expected.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if root.exists():
            return
        if source.url in examples.MAKERS:
            with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
                examples.MAKERS[source.url](Path(folder) / root.name)
                os.replace(Path(folder) / root.name, root)
            return
        archive = root.parent / f".{root.name}.download"
        if not (source.sha1 or source.sha256 or source.tree_sha256):
            archive.unlink(missing_ok=True)  # nothing could tell whether its two halves belong together
        try:
            _download(source.url, archive)
        except DownloadError as error:
            raise FileNotFoundError(
                f"{root} does not exist and {source.url} could not be downloaded ({error}). Without a network, fetch "
                f"the archive elsewhere and unpack it so that {root} is its folder, or give another with data.root=FOLDER."
            ) from error
        _check_file(source, archive)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
            extract_zip(archive, Path(folder) / "tree")
            tree = _single_folder(Path(folder) / "tree")
            if source.tree_sha256 and (digest := tree_digest(tree)) != source.tree_sha256:
                archive.unlink()
                raise ValueError(
                    f"{source.url} is not the data set that was expected: the digest of its files is {digest}, "
                    f"not {source.tree_sha256}. Nothing was kept."
                )
            os.replace(tree, root)
        archive.unlink()


def fetch_file(url: str, target: Path, sha256_begins: str) -> None:
    """Download a file unless it exists, whole or not at all.

    Several processes may call this at the same time: one works, the others wait.

    Args:
        url: its address.
        target: its path.
        sha256_begins: the first digits of its SHA-256.

    Raises:
        DownloadError: it cannot be downloaded, or is not the one that was expected.
    """
    if target.exists():  # before the lock, because the folder may be read-only
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.exists():
            return
        part = target.parent / f".{target.name}.download"
        _download(url, part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(sha256_begins):
            part.unlink()
            raise DownloadError(f"what came is not the file: its SHA-256 is {digest}, not {sha256_begins}...")
        os.replace(part, target)


def is_reachable(url: str) -> bool:
    """Return whether an address answers within a few seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACHABLE_S):
            return True
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        return False


class DownloadError(OSError):
    """Raised where a file cannot be downloaded."""


def _download(url: str, part: Path) -> None:
    """Download to `part`, continuing where an earlier try stopped.

    Raises:
        DownloadError: after several tries.
    """
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, part)
            return
        except (OSError, EOFError, http.client.HTTPException, ValueError) as error:
            last = error
            if isinstance(error, OSError) and error.errno in UNWRITABLE_ERRNOS:
                raise
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                have = part.stat().st_size if part.exists() else -1
                if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                    return  # all of it is here
                part.unlink(missing_ok=True)  # the part is longer than the file: start again
            elif isinstance(error, ValueError) or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                break
            if attempt + 1 < ATTEMPTS:
                time.sleep(0.2 * 2**attempt)
    raise DownloadError(str(last) or type(last).__name__) from last


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to an address whose content anybody on the way can change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ValueError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_NoDowngrade)
    with opener.open(request, timeout=TIMEOUT_S) as response, Progress(transient=True) as progress:
        if have and response.status != 206:  # the server sends it whole
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if (total or 0) > archives.MAX_TOTAL_BYTES:
            raise ValueError(f"it is {total} bytes long, which is not credible")
        task = progress.add_task(f"download {os.path.basename(url)}", total=total, completed=have)
        with part.open("ab" if have else "wb") as file:
            while block := response.read1(1 << 16):
                file.write(block)
                progress.advance(task, len(block))
                if file.tell() > (total or archives.MAX_TOTAL_BYTES):
                    raise ValueError("it does not end")
    if total is not None and part.stat().st_size < total:
        raise EOFError(f"the connection ended after {part.stat().st_size} of {total} bytes")


def _check_file(source: Archive, archive: Path) -> None:
    for algorithm, expected in (("sha1", source.sha1), ("sha256", source.sha256)):
        if expected is None:
            continue
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, algorithm).hexdigest()
        if digest != expected:
            archive.unlink()
            raise ValueError(
                f"{source.url} is damaged or has changed: its {algorithm.upper()} is {digest}, expected {expected}. "
                "Nothing was kept; try again, or fetch it by hand."
            )


def extract_zip(archive: Path, target: Path) -> None:
    """Unpack a downloaded zip file to `target`, which must not exist; one that cannot be unpacked is removed.

    Raises:
        ValueError: see `archives.extract`.
    """
    try:
        archives.extract(archive, target)
    except archives.DamagedArchiveError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in UNWRITABLE_ERRNOS:
            raise error.__cause__ from None
        archive.unlink(missing_ok=True)
        raise ValueError(f"{error}; it was removed, try again.") from error
    except archives.UnsafeArchiveError:
        archive.unlink()
        raise


def _single_folder(tree: Path) -> Path:
    """Return the only folder in an unpacked archive, which usually is the data set; else the whole."""
    names = listing.subfolders(tree)
    return tree / names[0] if len(names) == 1 else tree


def tree_digest(root: Path) -> str:
    """Return the SHA-256 of the names and contents of all files below a folder that are not hidden, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(listing.walk_files(root), key=lambda p: Path(p).relative_to(root).as_posix()):
        if not os.path.basename(path).startswith("."):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{Path(path).relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
