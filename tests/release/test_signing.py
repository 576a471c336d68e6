"""SHA256SUMS and its signature: what other tools make of them, and what is refused."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from releases import key_files

from sscxr.release import signing
from sscxr.release.signing import SigningError

NAMES = ("a.txt", "b.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)))
    (tmp_path / signing.SUMS).write_bytes(signing.sums_of(tmp_path, NAMES))
    return tmp_path


def test_sums_are_sha256sums(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", signing.SUMS], cwd=folder, check=True)
    theirs = subprocess.run(["sha256sum", "--binary", *NAMES], cwd=folder, capture_output=True, check=True)
    sums = signing.parse_sums(theirs.stdout, NAMES, "sums")
    assert sums == signing.parse_sums((folder / signing.SUMS).read_bytes(), NAMES, "sums")
    signing.check(folder, sums)


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_a_signature_is_openssls(folder: Path) -> None:
    private, public = key_files(folder)
    data = (folder / signing.SUMS).read_bytes()
    (folder / signing.SIGNATURE).write_bytes(signing.read_private(private).sign(data))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    command += ["-in", folder / signing.SUMS, "-sigfile", folder / signing.SIGNATURE]
    subprocess.run(command, check=True, capture_output=True)


def test_only_the_keys_own_signature_of_these_bytes(tmp_path: Path) -> None:
    private, public = key_files(tmp_path)
    _, other = key_files(tmp_path, "other")
    signature = signing.read_private(private).sign(b"sums")
    key = signing.read_public(public)
    signing.check_signature(b"sums", signature, key, "here")
    for data, made, whose in (
        (b"sum5", signature, key),
        (b"sums", bytes(64), key),
        (b"sums", signature[:-1], key),
        (b"sums", signature, signing.read_public(other)),
    ):
        with pytest.raises(SigningError, match="not this key's"):
            signing.check_signature(data, made, whose, "here")
    with pytest.raises(SigningError, match="not signed"):
        signing.check_signature(b"sums", None, key, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "list of SHA-256 sums"),
        ("<html>no such page</html>\n", "list of SHA-256 sums"),
        ("{d}  a.txt\n", "each once"),
        ("{d}  a.txt\n{d}  b.bin\n{d}  b.bin\n", "each once"),
        ("{d}  a.txt\n{d}  b.bin\n{d}  ../../etc/cron.d/x\n", "etc/cron"),
        ("{d}  a.txt\n{d}  /b.bin\n", "/b.bin"),
        ("{d}  a.txt\n{d}  sub/b.bin\n", "/b.bin"),
        ("{d}  a.txt\n{D}  b.bin\n", "list of SHA-256 sums"),
        ("{d}  a.txt\n{d}  b.bin\n" + 5000 * "\n", "list of SHA-256 sums"),
        ("\u00e9{d}  a.txt\n", "list of SHA-256 sums"),
    ],
)
def test_sums_that_are_refused(text: str, says: str) -> None:
    written = text.replace("{d}", 64 * "a").replace("{D}", 63 * "a")
    with pytest.raises(SigningError, match=says) as error:
        signing.parse_sums(written.encode(), NAMES, "sums")
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_or_altered(folder: Path) -> None:
    sums = signing.parse_sums((folder / signing.SUMS).read_bytes(), NAMES, "sums")
    (folder / "a.txt").write_text("onf\n")
    with pytest.raises(SigningError, match=r"a\.txt is not the file"):
        signing.check(folder, sums)
    (folder / "a.txt").unlink()
    with pytest.raises(SigningError, match=r"has no a\.txt"):
        signing.check(folder, sums)


def test_keys_in_openssh_form_and_what_is_no_key(tmp_path: Path) -> None:
    private, public = key_files(tmp_path)
    key = signing.read_private(private)
    ssh = tmp_path / "id"
    forms = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ssh.write_bytes(key.private_bytes(serialization.Encoding.PEM, *forms))
    assert signing.read_private(ssh).sign(b"x") == key.sign(b"x")
    ssh.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    assert signing.read_public(ssh) == signing.read_public(public)
    locked = tmp_path / "locked"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SigningError, match="password"):
        signing.read_private(locked)
    curve = tmp_path / "curve"
    curve.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for file in (curve, public, tmp_path / "none"):
        with pytest.raises(SigningError):
            signing.read_private(file)
    for file in (curve, private, tmp_path / "none"):
        with pytest.raises(SigningError):
            signing.read_public(file)
