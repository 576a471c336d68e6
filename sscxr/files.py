"""Files that are there whole or not at all, also after the power failed."""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from sscxr.errors import SscxrError


class ExistsError(SscxrError):
    """A file that would have been written over."""


def refuse_existing(file: Path, *, force: bool) -> None:
    """Refuse to write over a file that was not to be replaced, before any work is done for it.

    Raises:
        ExistsError: it is there and `force` is False, or it is a folder.
    """
    if file.is_dir():
        raise ExistsError(f"{file} is a folder; name a file")
    if file.exists() and not force:
        raise ExistsError(f"{file} is there already; give --force to replace it, or another name")


def refuse_file(folder: Path) -> None:
    """Refuse a file in the place of a folder that is to be written to, before any work is done for it.

    Raises:
        ExistsError: it, or a folder above it, is a file.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise ExistsError(f"{place} is a file; name a folder")


def is_full_disk(error: BaseException) -> bool:
    """Whether something could not be written for want of space; safetensors has no class of its own for it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(partial: Path, final: Path) -> None:
    """Give a finished file, or a folder of files, its final name; what had it, if a file, is replaced."""
    if partial.is_dir():
        for file in partial.iterdir():
            sync(file)
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_bytes(data)
    settle(partial, file)


def sweep(folder: Path) -> None:
    """Delete what writers killed halfway left in a folder and those below; only while nobody else writes there."""
    for partial in folder.rglob(".*.tmp"):
        if partial.is_file():
            partial.unlink()


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; a kill in between leaves the old one beside it, under `.old`."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def try_lock(handle: IO[str], kind: int) -> bool:
    """Take a lock of `fcntl`'s kind on an open file, unless another process has it; whether it was taken."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
