"""SHA256SUMS and its Ed25519 signature, which show that a release is whole, and who made it.

Other tools can check both without sscxr: `sha256sum -c SHA256SUMS`, and
`openssl pkeyutl -verify -rawin` for the signature, which is the 64 bytes of RFC 8032 over SHA256SUMS itself.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sscxr.errors import SscxrError
from sscxr.files import sha256

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
MOST_SUMS_BYTES = 4096  # three lines are some 250
SIGNATURE_BYTES = 64

_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\n]+)")


class SigningError(SscxrError):
    """A file is not the released one, or a key or signature cannot be used; one line states why."""


def sums_of(folder: Path, names: Collection[str]) -> bytes:
    """Return the text of SHA256SUMS for the named files of a folder, sorted by name."""
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(names)).encode()


def parse_sums(text: bytes, names: Collection[str], where: str) -> dict[str, str]:
    """Read the text of SHA256SUMS as name -> SHA-256.

    Args:
        text: in the form of `sha256sum`.
        names: exactly these files must be listed, each once; so no path leads out of a folder.
        where: the file's name in an error.

    Raises:
        SigningError: the text has another form, or lists other files.
    """
    lines = text.decode("ascii", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    if len(text) > MOST_SUMS_BYTES or not lines or not all(matches):
        raise SigningError(f"{where} is not a list of SHA-256 sums; is this the address of a release?")
    pairs = [(match[2], match[1]) for match in matches if match]
    strange = sorted({name for name, _ in pairs} - set(names))
    if strange:
        raise SigningError(
            f"{where} lists {strange[0][:80]!r}, which this sscxr does not know as a file of a release; refused"
        )
    if sorted(name for name, _ in pairs) != sorted(names):
        raise SigningError(f"{where} must list {', '.join(sorted(names))}, each once; it is refused")
    return dict(pairs)


def check(folder: Path, sums: Mapping[str, str]) -> None:
    """Compare the files of a folder with their sums.

    Raises:
        SigningError: a file is missing or differs.
    """
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise SigningError(f"{folder} has no {name}, which its {SUMS} lists")
        if sha256(folder / name) != expected:
            raise SigningError(f"{folder / name} is not the file that {SUMS} lists: damaged or altered")


def read_private(file: str | Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in PEM (PKCS 8, `openssl genpkey`) or OpenSSH's form (`ssh-keygen`).

    Raises:
        SigningError: the file is not such a key, or needs a password.
    """
    data = _read(file)
    ssh = b"BEGIN OPENSSH" in data
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except TypeError:  # both loaders raise it for an encrypted key
        raise SigningError(f"the key {file} is protected by a password; give one that is not") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{file} is not an Ed25519 private key (PEM or OpenSSH)")
    return key


def read_public(file: str | Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM or OpenSSH's form.

    Raises:
        SigningError: the file is not such a key.
    """
    data = _read(file)
    ssh = data.startswith(b"ssh-")
    load = serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key
    try:
        key = load(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{file} is not an Ed25519 public key (PEM or OpenSSH)")
    return key


def check_signature(sums: bytes, signature: bytes | None, key: Ed25519PublicKey, where: str) -> None:
    """Check that SHA256SUMS was signed by a key.

    Args:
        sums: the bytes of SHA256SUMS.
        signature: [64] bytes; None if there is none.
        key: the public key of the expected signer.
        where: the release's name in an error.

    Raises:
        SigningError: there is no signature, or it is not this key's.
    """
    if signature is None:
        raise SigningError(f"{where} is not signed (no {SIGNATURE}), but a key was given; it is refused")
    try:
        key.verify(signature, sums)
    except InvalidSignature:
        raise SigningError(
            f"{where}: {SIGNATURE} is not this key's signature of {SUMS}: altered, or signed by another key"
        ) from None


def _read(file: str | Path) -> bytes:
    try:
        with Path(file).open("rb") as handle:
            return handle.read(1 << 16)
    except OSError as error:
        raise SigningError(f"the key {file}: {error.strerror}") from None
