"""Codecs for tensors: plain fp32 and fp16, and int8 with scales, stochastic rounding and error feedback.

int8 is for updates alone. A tensor becomes whole numbers in -127..127 and fp32 scales, one for each index of its
first dimension if it has two dimensions or more, else one. Rounding is stochastic, as in QSGD (arXiv 1610.02132):
the expected value of what is sent is the update, so that the errors of many sites cancel in their average. The
rounding error is kept at the site and added to its next update, as in EF-SGD (arXiv 1901.09847): errors do not
accumulate over rounds, and the undelivered part is always one rounding error.

The two are compatible. The rounding error is always less than one scale, 1/127 of the channel's largest value; so
with updates of size at most U the residual stays below U / 126.

An optimiser's averaged moments travel as fp16 in int8's place: a step divides by them, and the small ones would be
rounded to zero.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sscxr.federation.wire import WireError
from sscxr.training.parts import MOMENT

# A message's arrays are read-only, and torch warns of tensors that share their memory; nothing here writes to
# them.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")

Tensors = dict[str, Tensor]

# The dtype in which values are sent.
CODECS: Final[dict[str, np.dtype[Any]]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}
_SCALES = np.dtype("<f4")

SCALE: Final = ":scale"  # suffix for the name of a tensor's scales; no parameter's name has a colon
CHUNK: Final = 1 << 17  # values converted at a time, so that intermediates stay in the processor's cache
_PIECE = 1 << 15  # values of one fp32 norm: computed by one thread, so the number of threads does not matter
_LEVELS = 127
_MAX_SCALE = 2.0**20  # ours: far above any update's, and 127 times it is far below fp32's maximum
_MIN_SCALE = float(np.finfo(np.float32).tiny)  # below this, division loses precision; 0 is sent


@dataclass(frozen=True)
class Place:
    """The place of an array in the bytes of a message.

    Attributes:
        dtype, shape: of the array; little-endian.
        begin: offset of its first byte.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the array."""
        return self.begin + self.dtype.itemsize * math.prod(self.shape)

    def of(self, data: bytes) -> npt.NDArray[Any]:
        """Return the array as a read-only view of the data."""
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.begin).reshape(self.shape)


def layout(codec: str, like: Mapping[str, Tensor]) -> dict[str, Place]:
    """Return the places of all arrays that a codec makes of such tensors: scales first, each kind by name.

    Both ends know them from the recipe, so names, dtypes and shapes need not be sent and checked.

    Raises:
        WireError: an unknown codec.
    """
    if codec not in CODECS:
        raise WireError(f"unknown codec {codec!r}; choose one of: {', '.join(CODECS)}")
    arrays: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    # Wider values first, so that each is aligned to its own size.
    scaled = [name for name in sorted(like) if _codec(codec, name) == "int8"]
    arrays += [(name + SCALE, _SCALES, (_channels(like[name]),)) for name in scaled]
    arrays += [(n, CODECS[_codec(codec, n)], tuple(like[n].shape)) for n in sorted(like) if n not in scaled]
    arrays += [(name, CODECS["int8"], tuple(like[name].shape)) for name in scaled]
    places: dict[str, Place] = {}
    begin = 0
    for name, dtype, shape in arrays:
        places[name] = Place(dtype, shape, begin)
        begin = places[name].end
    return places


def encode(tensors: Mapping[str, Tensor], codec: str, generator: torch.Generator | None = None) -> bytes:
    """Encode tensors as bytes: the arrays of `layout`, concatenated.

    Args:
        generator: on the CPU, for int8's rounding; the others need none.

    Raises:
        WireError: an unknown codec, or a value that the codec cannot represent.
    """
    places = layout(codec, tensors)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(tensors):  # the generator's numbers do not depend on the order given
        tensor = tensors[name].detach().cpu()
        largest = size(tensor)
        if not math.isfinite(largest):
            raise WireError(f"{name} has NaN or infinity")
        own = _codec(codec, name)
        if largest > _limit(own):
            raise WireError(f"{name} has values beyond {own}'s range ({largest:.3g}); use the fp32 codec")
        if own == "int8":
            if generator is None:
                raise ValueError("int8 rounds at random: give a generator")
            values, scales = _quantise(tensor.float(), generator)
            arrays[name], arrays[name + SCALE] = values.numpy(), scales.numpy()
        else:
            # torch converts several times faster than numpy, to the same bits.
            arrays[name] = tensor.to(torch.float16 if own == "fp16" else torch.float32).numpy()
    return b"".join(np.ascontiguousarray(arrays[name], place.dtype).data for name, place in places.items())


def decode(data: bytes, codec: str, like: Mapping[str, Tensor], into: Tensors | None = None) -> Tensors:
    """Check and decode the bytes of `encode` into finite fp32 tensors.

    Args:
        like: tensors with the names and shapes to decode to.
        into: contiguous fp32 tensors of those names and shapes to overwrite: allocating memory takes longer than
            decoding. With `into`, fp32 is not copied at all: the returned tensors share the memory of `data`, and
            are read-only.

    Raises:
        WireError: a wrong number of bytes, NaN or infinity, or a value or scale out of range.
    """
    places = layout(codec, like)
    if len(data) != payload_bytes(codec, like):
        raise WireError(f"weights of {len(data)} bytes, expected {payload_bytes(codec, like)}")
    arrived = {name: torch.from_numpy(place.of(data)) for name, place in places.items()}
    for name, values in arrived.items():
        if values.is_floating_point() and not math.isfinite(size(values)):
            raise WireError(f"NaN or infinity in {name}")
    scaled = [name for name in like if name + SCALE in places]
    for name in scaled:
        values, scales = arrived[name], arrived[name + SCALE]
        if values.numel() and int(values.min()) < -_LEVELS:
            raise WireError(f"values of {name} out of range (below {-_LEVELS})")
        if not bool(((scales >= 0) & (scales <= _MAX_SCALE)).all()):
            raise WireError(f"scale of {name} out of range (0 to {_MAX_SCALE:g})")
    if into is not None and codec == "fp32":
        return arrived
    decoded = into or {name: torch.empty(tensor.shape) for name, tensor in like.items()}
    for name in like:
        if name + SCALE in places:
            _dequantise(arrived[name], arrived[name + SCALE], decoded[name])
        else:
            decoded[name].copy_(arrived[name])
    return decoded


def encode_update(
    update: Mapping[str, Tensor], residual: Mapping[str, Tensor], codec: str, generator: torch.Generator
) -> tuple[bytes, Tensors]:
    """Encode an update with error feedback.

    Args:
        update: fp32 tensors.
        residual: the previous update's residual, which may be empty; it is added to this update.
        generator: on the CPU; the same one gives the same bytes.

    Returns:
        The bytes, and the residual for the next update: the encoding error for int8, else empty.

    Raises:
        WireError: as `encode`.
    """
    if codec != "int8":
        return encode(update, codec), {}
    wanted = {
        name: tensor + residual[name] if name in residual else tensor for name, tensor in update.items()
    }
    data = encode(wanted, codec, generator)
    arrived = decode(data, codec, wanted)
    rounded = {name: tensor for name, tensor in wanted.items() if _codec(codec, name) == "int8"}
    return data, {name: tensor - arrived[name] for name, tensor in rounded.items()}


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors, to 1e-6: pieces in fp32, the pieces' norms in fp64."""
    flat = (tensor.detach().reshape(-1) for tensor in tensors.values())
    pieces = (piece for values in flat for piece in torch.split(values, _PIECE))
    return math.hypot(*(float(torch.linalg.vector_norm(piece)) for piece in pieces))


def size(tensor: Tensor) -> float:
    """Return the largest absolute value, NaN if any value is NaN, 0 for an empty tensor; in one pass, uncopied."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(abs(float(low)), abs(float(high)))


def payload_bytes(codec: str, like: Mapping[str, Tensor]) -> int:
    """Return how many bytes a codec makes of such tensors."""
    return max((place.end for place in layout(codec, like).values()), default=0)


def _quantise(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return fp32 values as int8 [same shape] and fp32 scales [channels]; values = int8 * scale on average.

    A whole multiple of its scale is never changed, so zeros stay zeros.
    """
    rows = values.reshape(_channels(values), -1)
    scales = torch.linalg.vector_norm(rows, math.inf, dim=1) / _LEVELS
    scales = torch.where(scales < _MIN_SCALE, 0.0, scales)
    levels = rows / torch.where(scales > 0, scales, math.inf)[:, None]
    lower = levels.floor()
    up = torch.rand(levels.shape, generator=generator) < levels - lower
    # The division's own rounding may exceed the range by one step.
    whole = (lower + up).clamp(-_LEVELS, _LEVELS).to(torch.int8)
    return whole.reshape(values.shape), scales


def _dequantise(values: Tensor, scales: Tensor, into: Tensor) -> None:
    """Multiply int8 values by their scales [channels], fp32; client and server compute the same bits."""
    rows = values.reshape(len(scales), -1)
    torch.mul(rows, scales[:, None], out=into.view(len(scales), -1))


def _codec(codec: str, name: str) -> str:
    """Return the codec of one tensor."""
    return "fp16" if codec == "int8" and name.startswith(MOMENT) else codec


def _channels(tensor: Tensor) -> int:
    """Return how many scales a tensor has."""
    return tensor.shape[0] if tensor.dim() > 1 else 1


def _limit(codec: str) -> float:
    """Return the largest absolute value that a codec can represent."""
    return _MAX_SCALE * _LEVELS if codec == "int8" else float(np.finfo(CODECS[codec]).max)
