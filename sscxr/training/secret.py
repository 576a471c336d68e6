"""Randomness that nobody can reproduce: for differential privacy, whose noise and sampling must be unknown.

torch's and numpy's generators are not made for this: who knows their seed, or enough of their output, knows all of
it. Here the bits are a ChaCha20 keystream (RFC 8439) by `cryptography`, under a key that the operating system draws
and that is used for one call alone. It is the one deliberate exception from explicit seeds: no key is kept, since a
round that is repeated is another release, which is charged again.
"""

import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

_KEY_BYTES = 32


def _fresh() -> bytes:
    return secrets.token_bytes(_KEY_BYTES)


class Secret:
    """Draws numbers from keystreams.

    Attributes:
        key: returns a new key of 32 bytes for each call; a test may give known ones.
    """

    def __init__(self, key: Callable[[], bytes] = _fresh) -> None:
        self._key = key

    def seed(self) -> int:
        """Return a seed of 256 bits for `seeds`, for draws that must be unknown but need not resist an attack."""
        return int.from_bytes(self._key(), "big")

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return `count` numbers, uniform over the multiples of 2^-53 in [0, 1)."""
        cipher = Cipher(algorithms.ChaCha20(self._key(), bytes(16)), mode=None).encryptor()
        bits = np.frombuffer(cipher.update(bytes(8 * count)), dtype="<u8") >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> Tensor:
        """Return `count` standard normal numbers, float64 on the CPU, by Box and Muller's transform.

        The largest that it can return is 8.6, which a normal number exceeds with a probability of 1e-17.
        """
        half = -(-count // 2)
        first, second = torch.from_numpy(self.uniform(2 * half)).view(2, half)
        radius = (-2 * torch.log1p(-first)).sqrt_()
        angle = second * (2 * torch.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
