"""The cryptography of a secure sum: keys, shares and masks of one attempt at a round.

The protocol is that of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS
2017, figure 4 with its signatures against an active server). Each pair of sites agrees on a mask that one adds and
the other subtracts, and each site adds a mask of its own. Shares of both secrets are with the other sites, which
release one of them: the mask key of a site that dropped out, the own seed of one whose update arrived. All
primitives are those of `cryptography` and, for Shamir's shares, PyCryptodome.

Secrets are 16 bytes, the size of PyCryptodome's field, GF(2^128), and as strong as X25519. Every derived key is
bound to the attempt (`context`), and every mask to what all sites must have received alike (`bound`): a server that
sends them different models gets a sum whose masks do not cancel (Pasquini et al., arXiv 2111.07380).
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import ssh_key_fingerprint

from sscxr.federation.wire import WireError

SECRET = 16  # bytes of a secret and of a share of it
KEY = 32  # bytes of a public key
SIGNATURE = 64
_NONCE = 12


@dataclass(frozen=True)
class Advert:
    """A site's public keys for one attempt, signed by its long-term key.

    Attributes:
        identity: the long-term Ed25519 key.
        cipher, mask: X25519 keys, for the shares that others send it, and for the masks that it has with others.
        signature: of the context, the name and both keys.
    """

    identity: bytes
    cipher: bytes
    mask: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the keys and the signature, concatenated."""
        return self.identity + self.cipher + self.mask + self.signature

    @staticmethod
    def read(data: bytes) -> "Advert":
        """Read `to_bytes`; unchecked but for its length.

        Raises:
            WireError: another length.
        """
        if len(data) != 3 * KEY + SIGNATURE:
            raise WireError(f"keys of {len(data)} bytes, expected {3 * KEY + SIGNATURE}")
        return Advert(data[:KEY], data[KEY : 2 * KEY], data[2 * KEY : 3 * KEY], data[3 * KEY :])

    def check(self, name: str, fingerprint: str, context: bytes) -> None:
        """Check that the member of this name and fingerprint made these keys for this attempt.

        Raises:
            WireError: another key, or a signature that is not of these keys.
        """
        try:
            identity = Ed25519PublicKey.from_public_bytes(self.identity)
            if fingerprint_of(identity) != fingerprint:
                raise WireError(f"{name}'s keys are signed by {fingerprint_of(identity)}, not {fingerprint}")
            identity.verify(self.signature, _statement("keys", context, name, self.cipher, self.mask))
        except (InvalidSignature, ValueError):
            raise WireError(f"{name}'s keys are not signed by it for this attempt") from None


@dataclass(frozen=True)
class Keys:
    """A site's secrets for one attempt.

    Attributes:
        cipher: an X25519 private key.
        mask_seed: the X25519 private key of the masks with others is derived from it.
        own_seed: of the mask that is the site's own.
    """

    cipher: bytes
    mask_seed: bytes
    own_seed: bytes

    @staticmethod
    def fresh() -> "Keys":
        """Return new keys, from the system's random numbers."""
        return Keys(secrets.token_bytes(KEY), secrets.token_bytes(SECRET), secrets.token_bytes(SECRET))

    def advert(self, name: str, identity: Ed25519PrivateKey, context: bytes) -> Advert:
        """Return the public keys, signed."""
        cipher = X25519PrivateKey.from_private_bytes(self.cipher).public_key().public_bytes_raw()
        mask = mask_key(self.mask_seed).public_key().public_bytes_raw()
        signature = identity.sign(_statement("keys", context, name, cipher, mask))
        return Advert(identity.public_key().public_bytes_raw(), cipher, mask, signature)


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it: "SHA256:" and base64 without padding."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).decode().rstrip("=")


def context(run: str, round_number: int, attempt: int, config: str, fingerprint: str) -> bytes:
    """Return 32 bytes that identify an attempt under exactly these settings.

    Args:
        config: the run's settings as sent, to the letter: a site that is sent others than its peers drops out.
    """
    return _statement("attempt", b"", run, round_number, attempt, config, fingerprint)


def bound(attempt: bytes, encoder: bytes, norm: float, moment_norm: float) -> bytes:
    """Return 32 bytes that identify what masks depend on: the attempt, the encoder as sent, the clipping norms."""
    return _statement("masks", attempt, hashlib.sha256(encoder).digest(), norm.hex(), moment_norm.hex())


def _statement(kind: str, attempt: bytes, *parts: object) -> bytes:
    """Return the SHA-256 of a list of values, each of which can be read back from what is hashed."""
    plain = [part.hex() if isinstance(part, bytes) else part for part in (attempt, *parts)]
    return hashlib.sha256(json.dumps([f"sscxr secure sum: {kind}", *plain]).encode()).digest()


def mask_key(seed: bytes) -> X25519PrivateKey:
    """Return the private key of a site's masks with others, from its seed."""
    return X25519PrivateKey.from_private_bytes(_derived(seed, b"sscxr mask key"))


def mask_public(seed: bytes) -> bytes:
    """Return the public key that belongs to a seed."""
    return mask_key(seed).public_key().public_bytes_raw()


def pair_seed(seed: bytes, own: str, peer: str, peers_mask: bytes, masks: bytes) -> bytes:
    """Return the 32-byte seed of the mask that two sites have in common; the same from either side.

    Args:
        seed: the mask seed of the site `own`.
        peers_mask: the public key of the site `peer`.
        masks: from `bound`.

    Raises:
        WireError: the peer's key is not one.
    """
    first, second = sorted((own, peer))
    return _derived(_agreed(mask_key(seed), peers_mask), _statement("pair", masks, first, second))


def own_seed(seed: bytes, name: str, masks: bytes) -> bytes:
    """Return the 32-byte seed of a site's own mask."""
    return _derived(seed, _statement("own", masks, name))


def sign_survivors(identity: Ed25519PrivateKey, context: bytes, survivors: list[str]) -> bytes:
    """Sign the list of the sites whose masked updates arrived."""
    return identity.sign(_statement("survivors", context, *sorted(survivors)))


def check_survivors(
    name: str, identity: bytes, signature: bytes, context: bytes, survivors: list[str]
) -> None:
    """Check another site's signature of the list.

    Raises:
        WireError: it is not of this site or this list.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(identity)
        key.verify(signature, _statement("survivors", context, *sorted(survivors)))
    except (InvalidSignature, ValueError):
        raise WireError(f"{name} did not sign this list of survivors") from None


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return shares of a secret, any `threshold` of which restore it and fewer reveal nothing (Shamir 1979)."""
    return [share for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret from exactly the threshold's number of shares.

    Args:
        shares: the place in the list of `split`, from 0 -> the share.
    """
    return bytes(Shamir.combine([(place + 1, share) for place, share in sorted(shares.items())], ssss=False))


def seal(keys: Keys, own: str, peer: str, peers_cipher: bytes, context: bytes, shares: bytes) -> bytes:
    """Encrypt shares so that only the peer can read them.

    Raises:
        WireError: the peer's key is not one.
    """
    nonce = secrets.token_bytes(_NONCE)
    cipher = ChaCha20Poly1305(_between(keys, own, peer, peers_cipher, context))
    return nonce + cipher.encrypt(nonce, shares, context)


def unseal(keys: Keys, own: str, peer: str, peers_cipher: bytes, context: bytes, sealed: bytes) -> bytes:
    """Decrypt what the peer has sealed for this site.

    Raises:
        WireError: it was not sealed by the peer for this site and attempt.
    """
    try:
        cipher = ChaCha20Poly1305(_between(keys, peer, own, peers_cipher, context))
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
    except (InvalidTag, ValueError):
        raise WireError(f"{peer}'s shares are not those that it sealed for {own}") from None


def _between(keys: Keys, sender: str, receiver: str, peers_cipher: bytes, context: bytes) -> bytes:
    shared = _agreed(X25519PrivateKey.from_private_bytes(keys.cipher), peers_cipher)
    return _derived(shared, _statement("shares", context, sender, receiver))


def _agreed(own: X25519PrivateKey, peers: bytes) -> bytes:
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(peers))
    except ValueError:  # also a point of low order, which agrees with every key
        raise WireError("a public key that is not a point of Curve25519") from None


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY, salt=None, info=info).derive(secret)
