"""Writes to the cache's folder atomically, by one process at a time.

New files are made in `next/`. Once they are all on disk, `next/COMMIT` is written, and they are moved into place.
A process killed before that leaves the cache unchanged; after it, the next process completes the moves.
"""

import hashlib
import hmac
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sscxr.data.cache.cache import COMMIT, NEXT, CacheError
from sscxr.data.pixels.facts import normal_id
from sscxr.files import locked, privately, sync, write_atomically

SALT_BYTES = 32
_FIRST = {"lock", ".salt.tmp"}  # files in a cache's folder before its salt


class Secret:
    """The salt of a cache, which turns identifiers into hashes that nobody else can make or compare."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def hash(self, kind: str, text: str) -> str:
        """Return 16 hex digits of HMAC-SHA256; `kind` separates the hashes of different things."""
        message = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
        return hmac.new(self._salt, message, hashlib.sha256).hexdigest()[:16]

    def patient(self, identifier: str) -> list[str]:
        """Return the hashes of a patient's identifier as written and, if different, as `normal_id` returns it."""
        return [self.hash("patient", name) for name in dict.fromkeys((identifier, normal_id(identifier)))]


def is_cache(folder: Path) -> bool:
    """Return whether a folder is a cache, even an unfinished one: its salt is the first file written."""
    return (folder / "salt").is_file()


def create(folder: Path, salt: bytes | None) -> Secret:
    """Make a folder a cache, or open it as one; the salt is drawn once and readable by its owner alone.

    Raises:
        CacheError: the folder has other files or another salt, or another process is creating it.
    """
    file = folder / "salt"
    if not file.is_file():
        if folder.exists() and not (folder.is_dir() and {name.name for name in folder.iterdir()} <= _FIRST):
            raise CacheError(f"{folder} exists and is not a cache; give --out an empty or a new folder")
        folder.mkdir(0o700, parents=True, exist_ok=True)
        with _locked(folder):  # of two salts, one would be lost, and with it all hashes made with it
            if not file.is_file():
                write_atomically(file, secrets.token_bytes(SALT_BYTES) if salt is None else salt)
    stored = file.read_bytes()
    if salt is not None and salt != stored:
        raise CacheError(f"cache {folder} was made with another salt; leave it out, or use another folder")
    return Secret(stored)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Lock the cache for writing, and complete an earlier writer's commit.

    Raises:
        CacheError: another process holds it.
    """
    with _locked(folder):
        recover(folder)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    refusal = CacheError(f"another process is writing to {folder}; wait for it to end")
    with privately(), locked(folder / "lock", refusal):
        yield


def begin(folder: Path) -> Path:
    """Return an empty `next/` for new files."""
    fresh = folder / NEXT
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    return fresh


def commit(folder: Path, *, delete: Iterable[str] = ()) -> None:
    """Move everything in `next/` into place, and delete the named files; atomically."""
    fresh = folder / NEXT
    for file in fresh.iterdir():
        sync(file)
    marker = fresh / f"{COMMIT}.part"
    marker.write_text(json.dumps({"delete": sorted(delete)}))
    sync(marker)
    marker.rename(fresh / COMMIT)
    sync(fresh)
    recover(folder)


def recover(folder: Path) -> None:
    """Complete a commit that has its mark, and discard one that does not."""
    fresh = folder / NEXT
    marker = fresh / COMMIT
    if marker.exists():
        for file in fresh.iterdir():
            if file != marker:
                file.replace(folder / file.name)
        for name in json.loads(marker.read_text())["delete"]:
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        marker.unlink()
    shutil.rmtree(fresh, ignore_errors=True)


def write_images(path: Path, count: int, size: int, images: Iterable[npt.NDArray[np.uint8] | None]) -> None:
    """Write uint8 [N, S, S] as .npy, image after image; None leaves a hole, which reads as zeros.

    With plain writes, unlike a memory map, a full disk raises an error instead of a crash.
    """
    with path.open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
        np.lib.format.write_array_header_1_0(out, header)
        start = out.tell()
        for row, image in enumerate(images):
            if image is not None:
                out.seek(start + row * size * size)
                out.write(image.tobytes())
        out.truncate(start + count * size * size)
