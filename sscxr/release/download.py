"""Downloads files from a static HTTP(S) server and resumes after a broken connection; others check the contents.

Proxies and CAs are those of the environment (HTTPS_PROXY, REQUESTS_CA_BUNDLE), as `requests` reads them.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import requests

from sscxr.errors import SscxrError

# Called with a file's name, its bytes so far, and its bytes in all if known.
Shown = Callable[[str, int, int | None], None]

_TRIES = 6  # attempts in a row without new bytes
_PAUSE = 0.5  # seconds after the first of them; doubled each time
_TIMEOUT = (15.0, 60.0)  # seconds to connect, and without a byte
_REDIRECTS = 5
_CHUNK = 1 << 14  # bytes; what a cut connection may lose
_SCHEMES = ("http", "https")
_LENGTH = re.compile("[0-9]{1,18}")  # of Content-Length; anything else counts as unknown
_ABSENT = {403, 404, 410}  # HTTP statuses; object stores send 403 for a missing file
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # temporary statuses


class FetchError(SscxrError):
    """A release cannot be fetched, or is refused; one line states why."""


class TooLargeError(FetchError):
    """More bytes than are allowed."""


class _BrokenError(Exception):
    """A transfer ended early and may be resumed."""


_CUT = (
    _BrokenError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class Server:
    """A folder on a static file server."""

    def __init__(self, url: str, *, name: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Check the folder's address, without any request.

        Args:
            url: the folder's address.
            name: what messages call it; empty: its address.
            headers: sent with each request to the server itself, and to none that it redirects to.

        Raises:
            FetchError: not an http or https address, or one with a query or a fragment.
        """
        parts = _split(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise FetchError(f"{_without_password(url)} is not an http or https address")
        if parts.query or parts.fragment:
            raise FetchError(f"{_without_password(url)}: give the folder's address, without '?' and '#'")
        self._url = url.rstrip("/")
        self._name = name or _without_password(self._url)
        self._headers = dict(headers or {})
        self._session = requests.Session()

    def __str__(self) -> str:
        return self._name

    def read(self, name: str, most: int) -> bytes | None:
        """Return the first `most` bytes of a small file; None if the server does not have it.

        Raises:
            FetchError: no answer, or one that is not a file.
        """
        for tried in range(_TRIES):
            try:
                with closing(self._open(name, 0)) as response:
                    if response.status_code in _ABSENT:
                        return None
                    self._check_status(response, name)
                    data = b""
                    for chunk in response.iter_content(_CHUNK):
                        data += chunk
                        if len(data) >= most:
                            break
                    return data[:most]
            except _CUT as error:
                reason = _reason(error)
                time.sleep(_PAUSE * 2**tried if tried + 1 < _TRIES else 0)
            except requests.RequestException as error:
                raise FetchError(f"{self}/{name}: {_reason(error)}") from None
        raise FetchError(f"{self}/{name}: {reason}; try again later")

    def fetch(self, file: Path, most: int, shown: Shown) -> None:
        """Download the rest of a file, and resume whenever the connection breaks.

        Raises:
            FetchError: more than `most` bytes, a missing file, or repeatedly broken connections.
        """
        fruitless, furthest = 0, size_of(file)
        while True:
            try:
                self._go_on(file, most, shown)
                return
            except _CUT as error:
                reached, reason = size_of(file), _reason(error)
            except requests.RequestException as error:
                raise FetchError(f"{self}/{file.name}: {_reason(error)}") from None
            fruitless = 0 if reached > furthest else fruitless + 1
            furthest = max(furthest, reached)
            if fruitless >= _TRIES:
                raise FetchError(
                    f"{self}/{file.name}: broken off after {reached} bytes ({reason}); the same command resumes it"
                )
            time.sleep(_PAUSE * 2 ** max(0, fruitless - 1))

    def _go_on(self, file: Path, most: int, shown: Shown) -> None:
        start = size_of(file)
        with closing(self._open(file.name, start)) as response:
            if response.status_code == 416:  # it has no more than we do
                file.unlink()
                raise _BrokenError("the file at the server is shorter than the downloaded part")
            self._check_status(response, file.name)
            if start and not _continues(response, start):  # it ignores ranges
                start = 0
                file.unlink()
                if response.status_code == 206:
                    raise _BrokenError("the server sent another part than requested")
            length = _LENGTH.fullmatch(response.headers.get("Content-Length", ""))
            total = start + int(length[0]) if length else None
            refuse_size(file.name, total or 0, most)
            with file.open("ab", buffering=0) as handle:
                for chunk in response.iter_content(_CHUNK):
                    start += len(chunk)
                    refuse_size(file.name, start, most)
                    handle.write(chunk)
                    shown(file.name, start, total)

    def _open(self, name: str, start: int) -> requests.Response:
        """Return the answer to a GET of a file from byte `start` on; redirects are followed unless less safe."""
        url = f"{self._url}/{name}"
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        for _ in range(_REDIRECTS + 1):
            try:
                own = self._headers if self._is_named(url) else {}
                response = self._session.get(
                    url, headers=headers | own, stream=True, allow_redirects=False, timeout=_TIMEOUT
                )
            except requests.exceptions.SSLError as error:
                raise FetchError(
                    f"{_without_password(url)}: not a trusted server: {_reason(error)}"
                ) from None
            except requests.RequestException:
                raise
            except ValueError as error:  # requests checks the next address in advance
                raise FetchError(
                    f"{_without_password(url)}: redirected to an address that cannot be: {error}"
                ) from None
            if not response.is_redirect:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            before, after = _split(url).scheme, _split(target).scheme
            if after not in _SCHEMES or (before, after) == ("https", "http"):
                raise FetchError(
                    f"{_without_password(url)}: redirected from {before} to {after or 'nowhere'}, which is refused"
                )
            if _is_internal(target) and not self._is_named(target):
                raise FetchError(
                    f"{_without_password(url)}: redirected to {_without_password(target)}, an address inside this "
                    "network, which is refused; give that address yourself if it is meant"
                )
            url = target
        raise FetchError(f"{self}/{name}: redirected more than {_REDIRECTS} times")

    def _is_named(self, url: str) -> bool:
        """Return whether an address is at the server that the user named, or at its usual port for https."""
        named, other = _split(self._url), _split(url)
        usual = named.scheme == "http" and other.scheme == "https" and not (named.port or other.port)
        same = (named.scheme, named.port) == (other.scheme, other.port)
        return named.hostname == other.hostname and (same or usual)

    def _check_status(self, response: requests.Response, name: str) -> None:
        status = f"status {response.status_code}"
        if response.status_code in _PASSING:
            raise _BrokenError(status)
        if response.status_code not in (200, 206):
            raise FetchError(f"{self}/{name}: {status}, where a file was expected")


def _is_internal(url: str) -> bool:
    """Return whether a host is, or resolves here to, an address that is not on the public internet (RFC 6890)."""
    host = _split(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):  # left to the request, or to a proxy that resolves it elsewhere
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    mapped = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    return any(not address.is_global or address.is_multicast for address in mapped)


def is_url(source: str | Path) -> bool:
    """Return True for an address with any scheme, False for a path."""
    return isinstance(source, str) and "://" in source


def refuse_size(name: str, size: int, most: int) -> None:
    """Refuse a file whose actual or stated size exceeds the limit."""
    if size > most:
        raise TooLargeError(f"{name} has more than the {most:,} bytes that are allowed; it is refused")


def size_of(file: Path) -> int:
    """Return a file's bytes; 0 if it does not exist."""
    return file.stat().st_size if file.is_file() else 0


def _continues(response: requests.Response, start: int) -> bool:
    """Return whether an answer is the rest of the file from byte `start` on, unencoded (RFC 9110, 14.4)."""
    sent = response.headers.get("Content-Range", "")
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    return response.status_code == 206 and sent.startswith(f"bytes {start}-") and not encoded


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if invalid
        return parts
    except ValueError as error:
        raise FetchError(f"an address that cannot be: {error}") from None


def _without_password(url: str) -> str:
    parts = _split(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: BaseException) -> str:
    """Return the innermost error's text; the outer ones repeat addresses."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, Exception):
        return _reason(inner)
    words = str(error.args[-1] if error.args else "")
    return " ".join(words.split())[:200] or type(error).__name__
