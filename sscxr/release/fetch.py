"""Fetch a release from a static file server, a hub or a folder into a cache, by hash.

    CACHE/encoders/HASH/    a whole release; HASH is the SHA-256 of its SHA256SUMS
    CACHE/partial/HASH/     an interrupted download, to be resumed

SHA256SUMS comes first, and its signature is checked before any other request. So the hash identifies the release:
one that the server changed between two tries has another hash and starts anew, and `encoders` holds only files
that match their sums.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sscxr.errors import SscxrError
from sscxr.files import expanded, locked, settle, sha256, write_atomically
from sscxr.release import hub, release, shipped, signing
from sscxr.release.download import FetchError, Server, Shown, TooLargeError, is_url, refuse_size, size_of
from sscxr.release.release import FILES, WEIGHTS
from sscxr.release.signing import SIGNATURE, SUMS

MOST_BYTES = 4_000_000_000  # of the weights; ours: three ViT-L in float32
_MOST_TEXT = 1_000_000  # bytes of the config, and of the card
_STALE = 30 * 86400  # seconds after which an interrupted download is deleted


def pull(
    source: str | Path,
    *,
    key: Ed25519PublicKey | None = None,
    cache: Path | None = None,
    most_bytes: int = MOST_BYTES,
    shown: Shown = lambda name, done, total: None,
) -> Path:
    """Return the folder of a release in the cache; fetch it if it is not there yet.

    Args:
        source: an http or https address that has the release's files below it, a repository on a hub
            (hf://ORG/NAME@REVISION, see `hub`), or a folder.
        key: the release must be signed by it; None: any signature, or none.
        cache: its folder; None: `cache_folder()`.
        most_bytes: larger weights are refused.
        shown: called with each file's progress.

    Raises:
        FetchError: the release is missing, too large, interrupted repeatedly (the same call resumes it), or a file
            does not match SHA256SUMS.
        SigningError, ReleaseError: see `release.verify`.
    """
    cache = cache or cache_folder()
    where = _opened(source)
    sums = where.read(SUMS, signing.MOST_SUMS_BYTES + 1)
    if sums is None:
        raise FetchError(f"{where} is not a release: it has no {SUMS}")
    signature = where.read(SIGNATURE, signing.SIGNATURE_BYTES + 1)
    if signature is not None and len(signature) != signing.SIGNATURE_BYTES:
        signature = None  # some servers send a page instead of an error for a missing file
    if key:
        signing.check_signature(sums, signature, key, str(where))
    listed = signing.parse_sums(sums, FILES, f"{where}/{SUMS}")
    name = hashlib.sha256(sums).hexdigest()
    folder, partial = cache / "encoders" / name, cache / "partial" / name
    with _held(partial):
        if not _is_whole(folder):
            for file in FILES:
                most = most_bytes if file == WEIGHTS else _MOST_TEXT
                _bring(where, partial / file, listed[file], most, shown)
            (partial / SUMS).write_bytes(sums)
            _move(partial, folder)
        if signature and (key or not (folder / SIGNATURE).is_file()):
            write_atomically(folder / SIGNATURE, signature)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def located(
    source: str | Path,
    *,
    key: Ed25519PublicKey | None = None,
    cache: Path | None = None,
    shown: Shown = lambda name, done, total: None,
) -> Path:
    """Return the folder of an encoder: pull an address, or leave a folder in place; verify it if a key is given.

    Args:
        source: an address as in `pull`, the folder of a release or of a run's `encoder`, or the name of a shipped
            encoder, see `shipped.find`.
        key, cache, shown: as in `pull`.

    Raises:
        FetchError, SigningError, ReleaseError, ShippedError: the encoder cannot be used; one line states why.
    """
    if is_url(source):
        return pull(source, key=key, cache=cache, shown=shown)
    if isinstance(source, str) and (found := shipped.find(source, key)):
        return found
    if key:
        release.verify(source, key)
    return Path(source)


def cache_folder() -> Path:
    """Return the folder of fetched releases: $SSCXR_CACHE, else `sscxr` in the user's cache folder."""
    if os.environ.get("SSCXR_CACHE"):
        return expanded(os.environ["SSCXR_CACHE"])
    return (
        expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "SSCXR_CACHE to one for encoders") / "sscxr"
    )


def _opened(source: str | Path) -> "Server | _Folder":
    """Return the files of a release by its address or folder.

    Raises:
        FetchError: there is no such folder, or the address is not one.
    """
    if not is_url(source):
        return _Folder(Path(source))
    return hub.server(str(source)) if str(source).startswith(hub.SCHEME) else Server(str(source))


class _Folder:
    """A release in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            own = str(folder) in shipped.names()
            instead = (
                "it comes with sscxr: use it by its name" if own else "give a release's folder or address"
            )
            raise FetchError(f"no folder {folder}; {instead}")
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def read(self, name: str, most: int) -> bytes | None:
        """Return the first `most` bytes of a file; None if there is none."""
        file = self._folder / name
        if not file.is_file():
            return None
        with file.open("rb") as handle:
            return handle.read(most)

    def fetch(self, file: Path, most: int, shown: Shown) -> None:
        """Copy the file of that name."""
        origin = self._folder / file.name
        if not origin.is_file():
            raise FetchError(f"{self} has no {file.name}, which its {SUMS} lists")
        refuse_size(file.name, origin.stat().st_size, most)
        shutil.copyfile(origin, file)
        shown(file.name, size_of(file), size_of(file))


def _bring(where: Server | _Folder, file: Path, digest: str, most: int, shown: Shown) -> None:
    """Fetch a file and check its digest; a partial file that turns out wrong is fetched anew, once."""
    for resumed in (size_of(file) > 0, False):
        if resumed and sha256(file) == digest:
            return
        try:
            where.fetch(file, most, shown)
        except TooLargeError:
            file.unlink(missing_ok=True)
            raise
        if sha256(file) == digest:
            return
        file.unlink()
        if not resumed:
            break
    raise FetchError(
        f"{file.name} of {where} is not the file that its {SUMS} lists: damaged or altered; refused"
    )


def _is_whole(folder: Path) -> bool:
    """Return whether the cache has an intact copy of a release; a damaged one is deleted."""
    if not folder.is_dir():
        return False
    try:
        release.verify(folder)
    except SscxrError:
        shutil.rmtree(folder)
        return False
    return True


def _move(partial: Path, folder: Path) -> None:
    """Verify a release, then move it into the cache by one rename; a refused one is deleted."""
    try:
        release.verify(partial)
    except SscxrError:
        shutil.rmtree(partial)
        raise
    folder.parent.mkdir(parents=True, exist_ok=True)
    settle(partial, folder)


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Lock the fetching of one release; a second process waits. Old remains of other releases are deleted."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for other in partial.parent.iterdir():
        if other.is_dir() and other != partial and time.time() - other.stat().st_mtime > _STALE:
            shutil.rmtree(other, ignore_errors=True)
    with locked(partial.with_suffix(".lock")):
        partial.mkdir(exist_ok=True)
        yield
