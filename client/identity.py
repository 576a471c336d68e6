"""A site's identity key: the long-term Ed25519 key by which the sites of a secure sum know one another.

The coordinator learns its public part and lists the fingerprint in `federation.members`, which each hospital
approves with the recipe. It signs a few bytes in each round, and encrypts nothing.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.settings import SiteError, SiteSettings
from sscxr.federation.masking import fingerprint_of

FILE = "identity-key"


def made(folder: Path) -> Path:
    """Return a folder's identity key, in OpenSSH's form like the node key; made if absent, with its public part."""
    file = folder / FILE
    if file.exists():
        return file
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption())
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    file.with_suffix(".pub").write_bytes(public + b"\n")
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(private)
    return file


def read(settings: SiteSettings) -> Ed25519PrivateKey:
    """Return the site's key.

    Raises:
        SiteError: there is none, or the file is not an Ed25519 key without a passphrase.
    """
    if not settings.identity:
        raise SiteError(
            "settings", "a secure sum needs identity in site.yaml, a file that `sscxr site init` writes"
        )
    try:
        key = forms.load_ssh_private_key(Path(settings.identity).read_bytes(), None)
    except OSError as error:
        raise SiteError("settings", f"{settings.identity}: {error.strerror}") from None
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SiteError("settings", f"{settings.identity} is not an Ed25519 key without a passphrase")
    return key


def fingerprint(settings: SiteSettings) -> str:
    """Return the fingerprint of the site's key, as `ssh-keygen -lf` prints it; errors as `read`."""
    return fingerprint_of(read(settings).public_key())
