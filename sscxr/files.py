"""Atomic writes of files, also in case of a power cut; and access rights.

A site's files (its cache, its state) are readable by their owner alone from the first byte, whatever the umask.
Files to share (runs, models, releases, predictions) follow the umask, weights like the files beside them.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sscxr.errors import SscxrError

if TYPE_CHECKING:
    from torch import Tensor


class ExistsError(SscxrError):
    """A file would be overwritten."""


class HomeError(SscxrError):
    """A path is below an unknown home folder."""


class NotReadableError(SscxrError):
    """A file exists, but this account may not read it."""


def expanded(path: str | Path, instead: str = "give a path without '~'") -> Path:
    """Return a path with "~" replaced by the home folder.

    Raises:
        HomeError: this account has none, as in a container with an arbitrary user id.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise HomeError(
            f"{path}: no such home folder; set HOME to one of your folders, or {instead}"
        ) from None


def check_readable(place: Path, names: Iterable[str] = ()) -> None:
    """Check that a file, or a folder and its existing files of these names, can be read.

    Raises:
        NotReadableError: for the first that exists and cannot be read.
    """
    for path in (place, *(place / name for name in names)):
        for step in (*reversed(path.absolute().parents), path):
            needed = os.X_OK if step != path else os.R_OK | (os.X_OK if path.is_dir() else 0)
            if not os.access(step, os.F_OK) or (step != path and not step.is_dir()):
                break  # missing files, and files in the place of folders, are the caller's concern
            if not os.access(step, needed, effective_ids=True):
                found = step.stat()
                raise NotReadableError(
                    f"{path}: not readable by this account ({step} has mode {found.st_mode & 0o7777:o} and belongs "
                    f"to user {found.st_uid}, group {found.st_gid}); ask its owner for the right to read it"
                )


def private_folder(folder: Path) -> None:
    """Make a folder and its missing parents for their owner alone; an existing one is unchanged."""
    for place in reversed([folder, *folder.parents]):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def privately() -> Iterator[None]:
    """Make new files readable by their owner alone; all threads share the process's umask."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save_tensors(tensors: "Mapping[str, Tensor]", file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors with the rights of any new file: safetensors itself allows only the owner."""
    import safetensors.torch  # here: most commands that touch files do not need torch

    file.touch()
    mode = file.stat().st_mode & 0o777
    safetensors.torch.save_file(dict(tensors), file, metadata=metadata)
    file.chmod(mode)


def refuse_existing(file: Path, *, force: bool) -> None:
    """Refuse to overwrite an existing file, before any work is done for it.

    Raises:
        ExistsError: it exists and `force` is False, or it is a folder.
    """
    if file.is_dir():
        raise ExistsError(f"{file} is a folder; name a file")
    if file.exists() and not force:
        raise ExistsError(f"{file} already exists; give --force to replace it, or another name")


def refuse_file(folder: Path) -> None:
    """Refuse a file in place of an output folder, before any work is done for it.

    Raises:
        ExistsError: it, or a folder above it, is a file.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise ExistsError(f"{place} is a file; name a folder")


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error is a full disk; safetensors has no exception class for it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(partial: Path, final: Path) -> None:
    """Rename a finished file, or a folder of files, to its final name; a file of that name is replaced."""
    _sync_whole(partial)
    partial.replace(final)
    sync(final.parent)


def _sync_whole(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else ():
        sync(file)
    sync(path)


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_bytes(data)
    settle(partial, file)


def sweep(folder: Path) -> None:
    """Delete partial files of killed writers in a folder and below; only while nobody else writes there."""
    for partial in folder.rglob(".*.tmp"):
        if partial.is_file():
            partial.unlink()


@contextmanager
def whole_folder(folder: Path, mode: int = 0o777) -> Iterator[Path]:
    """Give an empty folder to write files into; once they are on the disk, it takes the place of `folder`.

    An error leaves nothing of it. A kill leaves `.NAME.partial`, which the next writer deletes, and between the two
    renames the old folder under `.NAME.old`.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("partial", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode, parents=True)
    try:
        yield fresh
        _sync_whole(fresh)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(file: Path, refusal: SscxrError | None = None, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file; a process that ends, however it ends, lets go of it.

    Args:
        refusal: raised where another process holds it for `patience` seconds; None: wait until it is free.
    """
    # Not a file's mere presence in the place of a lock, as FileLock has it where the file system knows no locks:
    # that would outlive a process that is killed.
    lock = FileLock(file, timeout=-1 if refusal is None else patience, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        assert refusal is not None, "without a refusal it waits"
        raise refusal from None
    try:
        yield
    finally:
        lock.release()


def is_locked(file: Path) -> bool:
    """Return whether a process holds a lock file, which need not be writable; False if there is no file."""
    try:
        handle = file.open()
    except FileNotFoundError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
