"""Updates as whole numbers modulo a power of 256, for a sum that nobody can read before the masks are gone.

A value becomes a multiple of 2^-24 where updates are sent in fp16, whose values all are such multiples, and of
2^-32 where in fp32; it is multiplied by the site's weight. The modulus is the smallest power of 256 that has room
for the sum of all members at their largest weight: 4 bytes a value where all weigh the same, and up to 8 otherwise.
Beside the values is a row of figures, 8 bytes each, which are known in sum alone as well.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

from sscxr.config import Config
from sscxr.config.schema import MAX_TOTAL_WEIGHT
from sscxr.federation import codecs
from sscxr.federation.limits import weight_of
from sscxr.federation.wire import MAX_LOSS, WireError

REACH: Final = 8.0  # the largest size of a value; ours: an update's are far below 1
FRACTION_BITS: Final = {"fp16": 24, "fp32": 32}
# The figures, and the bits after the point. Their sums stay below 2^63 with 2^25 images in all: a loss is at most
# 2^20 (`wire.MAX_LOSS`), a norm is cut to `MOST_NORM`.
FIGURES: Final = {"weight": 0, "images": 0, "loss": 16, "norm": 24, "moment_norm": 24}
MOST_NORM: Final = 2.0**24
_FIGURE = np.dtype("<u8")
_CHUNK = 1 << 18  # values that are masked at a time

Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Lattice:
    """The whole numbers of a federation's updates.

    Attributes:
        fraction: bits after the point.
        width: bytes of a value.
        most: the largest weight of a site.
    """

    fraction: int
    width: int
    most: int

    @staticmethod
    def of(config: Config) -> "Lattice":
        """Return the lattice of a run with these settings."""
        federation = config.federation
        fraction = FRACTION_BITS[federation.uplink]
        most = weight_of(federation.weights, federation.max_images)
        largest = (len(federation.members) * most * int(REACH)) << fraction
        return Lattice(fraction, max(4, -(-(largest.bit_length() + 1) // 8)), most)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integers to compute with: a multiple of the modulus may be added to them."""
        return np.dtype("<u4") if self.width == 4 else np.dtype("<u8")

    def payload_bytes(self, like: Mapping[str, Tensor]) -> int:
        """Return the bytes of a masked update."""
        return self.width * _numel(like) + _FIGURE.itemsize * len(FIGURES)

    def words(self, update: Mapping[str, Tensor], weight: int) -> Words:
        """Return an update times a weight, [values of all tensors by name].

        Raises:
            WireError: a value that is larger than `REACH`, or NaN.
        """
        found = np.empty(_numel(update), self.dtype)
        begin = 0
        for name in sorted(update):
            largest = codecs.size(update[name])
            if not largest <= REACH:  # NaN too
                raise WireError(f"{name} has a value of size {largest:g}, a secure sum takes up to {REACH:g}")
            for values in torch.split(update[name].detach().reshape(-1), codecs.CHUNK):
                # A power of two changes only the exponent, so fp32 loses nothing until it is rounded.
                whole = torch.mul(values, math.ldexp(1.0, self.fraction)).round_().to(torch.int64)
                end = begin + len(values)
                found[begin:end] = whole.mul_(weight).numpy().view(np.uint64)
                begin = end
        return found

    def pack(self, words: Words, figures: Words) -> bytes:
        """Return the bytes of a masked update."""
        raw = np.ascontiguousarray(words).view(np.uint8).reshape(-1, self.dtype.itemsize)
        return np.ascontiguousarray(raw[:, : self.width]).tobytes() + figures.astype(_FIGURE).tobytes()

    def unpack(self, data: bytes, like: Mapping[str, Tensor]) -> tuple[Words, Words]:
        """Return the words and the figures of `pack`.

        Raises:
            WireError: a wrong number of bytes.
        """
        if len(data) != self.payload_bytes(like):
            raise WireError(f"a masked update of {len(data)} bytes, expected {self.payload_bytes(like)}")
        count = _numel(like)
        words = np.zeros(count, self.dtype)
        raw = words.view(np.uint8).reshape(-1, self.dtype.itemsize)
        raw[:, : self.width] = np.frombuffer(data, np.uint8, count * self.width).reshape(-1, self.width)
        return words, np.frombuffer(data, _FIGURE, len(FIGURES), count * self.width).copy()

    def signed(self, words: Words) -> npt.NDArray[np.int64]:
        """Return words as whole numbers around 0, each in the half of the modulus that is nearer."""
        if self.width == 4:
            return words.view(np.int32).astype(np.int64)
        spare = np.uint64(8 * (8 - self.width))
        return (words << spare).view(np.int64) >> spare.astype(np.int64)

    def mean(self, words: Words, weight: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted mean of the updates whose sum this is, fp32.

        Raises:
            WireError: a value that no such updates add up to.
        """
        whole = self.signed(words)
        most = weight * math.ldexp(REACH, self.fraction)
        if len(whole) and not (-most <= whole.min() and whole.max() <= most):
            raise WireError("the sum has values that no updates add up to")
        scale, found, begin = math.ldexp(1.0, self.fraction) * weight, {}, 0
        for name in sorted(like):
            end = begin + like[name].numel()
            found[name] = (
                torch.from_numpy(whole[begin:end]).double().div_(scale).float().reshape(like[name].shape)
            )
            begin = end
        return found


def payload_bytes(config: Config, like: Mapping[str, Tensor]) -> int:
    """Return the bytes of an update of a run: by its codec, or masked."""
    if config.federation.secure:
        return Lattice.of(config).payload_bytes(like)
    return codecs.payload_bytes(config.federation.uplink, like)


def figures(**values: float) -> Words:
    """Return the figures, each as a multiple of its last bit, [`FIGURES`]."""
    whole = [round(math.ldexp(values[name], bits)) for name, bits in FIGURES.items()]
    return np.array(whole, dtype=_FIGURE)


def figures_of(words: Words, members: int, most: int) -> dict[str, float]:
    """Return the sums of the figures, checked for what so many sites can add up to.

    Args:
        most: the largest weight of a site.

    Raises:
        WireError: a mask is left in them, or a site sent figures that are out of range.
    """
    found = {
        name: math.ldexp(int(word), -bits) for word, (name, bits) in zip(words, FIGURES.items(), strict=True)
    }
    images = found["images"]
    limits = {
        "weight": members * most,
        "images": MAX_TOTAL_WEIGHT,
        "loss": images * MAX_LOSS,
        "norm": members * MOST_NORM,
        "moment_norm": members * MOST_NORM,
    }
    wrong = [name for name, limit in limits.items() if found[name] > limit]
    if wrong or found["weight"] < members or images < members:
        raise WireError(
            f"the sum's {', '.join(wrong) or 'weight or images'} cannot be that of {members} sites"
        )
    return found


def add_mask(words: Words, figures: Words, seed: bytes, sign: int) -> None:
    """Add (sign 1) or subtract (sign -1) the mask of a 32-byte seed, in place: ChaCha20's key stream (RFC 8439)."""
    for stream, target in enumerate((figures, words)):
        for part, mask in _masks(target, seed, stream):
            if sign > 0:
                part += mask
            else:
                part -= mask


def _masks(target: Words, seed: bytes, stream: int) -> Iterator[tuple[Words, Words]]:
    """Yield the target in parts, and as many words of one of a seed's streams."""
    # The first 4 of the 16 bytes are the block counter, from 0.
    nonce = bytes(4) + stream.to_bytes(12, "little")
    encryptor = Cipher(algorithms.ChaCha20(seed, nonce), mode=None).encryptor()
    zeros = memoryview(bytes(_CHUNK * target.itemsize))
    for begin in range(0, len(target), _CHUNK):
        part = target[begin : begin + _CHUNK]
        yield part, np.frombuffer(encryptor.update(zeros[: part.nbytes]), target.dtype)


def _numel(like: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in like.values())
