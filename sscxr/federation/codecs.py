"""How tensors travel: fp32 and fp16 as they are, int8 with scales, rounded at random, its error carried on.

int8 is for updates alone. A tensor becomes whole numbers in -127..127 and fp32 scales, one for each index of its
first dimension where it has two dimensions or more, else one. Rounding is stochastic, as in QSGD
(arXiv 1610.02132): the mean of what is sent is the update, so that the errors of many sites cancel in their
average. What rounding left out is kept at the site and added to its next update, as in EF-SGD
(arXiv 1901.09847): over rounds the errors do not add up, and what has not arrived yet is one rounding error.

The two do not get in each other's way. Rounding errs by less than one scale, 1/127 of the channel's largest
value, for whatever is rounded; so with updates of size at most U what is carried stays below U / 126.
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

# A message's arrays are read only, and torch warns of tensors that share their memory; nothing here writes to them.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")

Tensors = dict[str, Tensor]

# The dtype in which values travel.
CODECS: Final[dict[str, np.dtype[Any]]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}
_SCALES = np.dtype("<f4")

SCALE: Final = ":scale"  # ends the name of a tensor's scales; no parameter's name has a colon
CHUNK: Final = 1 << 17  # values converted at a time: what lies between stays in the processor's cache
_PIECE = 1 << 15  # values of one fp32 norm: one thread's, so that the number of threads changes no bit
_LEVELS = 127
_MAX_SCALE = 2.0**20  # ours: far above any update's, and 127 of it far below fp32's end
_MIN_SCALE = float(np.finfo(np.float32).tiny)  # below, division loses its precision; 0 is sent


@dataclass(frozen=True)
class Place:
    """Where an array lies among the bytes that travel.

    Attributes:
        dtype, shape: of the array; little-endian.
        begin: its first byte.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.begin + self.dtype.itemsize * math.prod(self.shape)

    def of(self, data: bytes) -> npt.NDArray[Any]:
        """The array, where it lies: read only, nothing copied."""
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.begin).reshape(self.shape)


def layout(codec: str, like: Mapping[str, Tensor]) -> dict[str, Place]:
    """Where every array lies that a codec makes of such tensors: scales first, each kind by name.

    Both ends know it from the recipe, so no name, dtype or shape travels that would have to be checked.

    Raises:
        WireError: an unknown codec.
    """
    if codec not in CODECS:
        raise WireError(f"unknown codec {codec!r}; there are: {', '.join(CODECS)}")
    arrays: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    if codec == "int8":  # wider values first: each lies at a multiple of its own size
        arrays += [(name + SCALE, _SCALES, (_channels(like[name]),)) for name in sorted(like)]
    arrays += [(name, CODECS[codec], tuple(like[name].shape)) for name in sorted(like)]
    places: dict[str, Place] = {}
    begin = 0
    for name, dtype, shape in arrays:
        places[name] = Place(dtype, shape, begin)
        begin = places[name].end
    return places


def encode(tensors: Mapping[str, Tensor], codec: str, generator: torch.Generator | None = None) -> bytes:
    """Tensors as the bytes that travel: the arrays of `layout`, one after the other.

    Args:
        generator: on the CPU; int8 rounds by it, the others need none.

    Raises:
        WireError: an unknown codec, or a value that the codec cannot hold.
    """
    places = layout(codec, tensors)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(tensors):  # the generator's numbers do not depend on the order given
        tensor = tensors[name].detach().cpu()
        largest = size(tensor)
        if not math.isfinite(largest):
            raise WireError(f"{name} has NaN or infinity")
        if largest > _limit(codec):
            raise WireError(f"{name} has values beyond {codec}'s range ({largest:.3g}); use the fp32 codec")
        if codec == "int8":
            if generator is None:
                raise ValueError("int8 rounds at random: give a generator")
            values, scales = _quantise(tensor.float(), generator)
            arrays[name], arrays[name + SCALE] = values.numpy(), scales.numpy()
        else:
            # torch converts several times faster than numpy, to the same bits.
            arrays[name] = tensor.to(torch.float16 if codec == "fp16" else torch.float32).numpy()
    return b"".join(np.ascontiguousarray(arrays[name], place.dtype).data for name, place in places.items())


def decode(data: bytes, codec: str, like: Mapping[str, Tensor], into: Tensors | None = None) -> Tensors:
    """What `encode` gave, as fp32 tensors, all finite, after every check that does not need their use.

    Args:
        like: tensors whose names and shapes the decoded ones have.
        into: contiguous fp32 tensors of those names and shapes, to be written over: fresh memory costs more than
            the decoding. With `into`, fp32 is not copied at all: the tensors returned share the memory of `data`,
            and may only be read.

    Raises:
        WireError: another number of bytes than such tensors make, NaN or infinity, a value or a scale out of range.
    """
    places = layout(codec, like)
    if len(data) != payload_bytes(codec, like):
        raise WireError(f"weights of {len(data)} bytes, expected {payload_bytes(codec, like)}")
    arrived = {name: torch.from_numpy(place.of(data)) for name, place in places.items()}
    for name, values in arrived.items():
        if values.is_floating_point() and not math.isfinite(size(values)):
            raise WireError(f"NaN or infinity in {name}")
    for name in like if codec == "int8" else ():
        values, scales = arrived[name], arrived[name + SCALE]
        if values.numel() and int(values.min()) < -_LEVELS:
            raise WireError(f"values of {name} out of range (below {-_LEVELS})")
        if not bool(((scales >= 0) & (scales <= _MAX_SCALE)).all()):
            raise WireError(f"scale of {name} out of range (0 to {_MAX_SCALE:g})")
    if into is not None and codec == "fp32":
        return arrived
    decoded = into or {name: torch.empty(tensor.shape) for name, tensor in like.items()}
    for name in like:
        if codec == "int8":
            _dequantise(arrived[name], arrived[name + SCALE], decoded[name])
        else:
            decoded[name].copy_(arrived[name])
    return decoded


def encode_update(
    update: Mapping[str, Tensor], residual: Mapping[str, Tensor], codec: str, generator: torch.Generator
) -> tuple[bytes, Tensors]:
    """An update as it travels, and what of it does not arrive: the residual to hand in with the next update.

    Args:
        update: fp32 tensors.
        residual: what the update before this one left out, where there is something; it is sent along.
        generator: on the CPU; the same one gives the same bytes.

    Returns:
        the bytes; the new residual, empty but for int8, whose errors alone are large enough to carry.

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
    return data, {name: tensor - arrived[name] for name, tensor in wanted.items()}


def norm(tensors: Mapping[str, Tensor]) -> float:
    """The L2 norm over all tensors together: of pieces in fp32, of the pieces' norms in fp64; to 1e-6."""
    flat = (tensor.detach().reshape(-1) for tensor in tensors.values())
    pieces = (piece for values in flat for piece in torch.split(values, _PIECE))
    return math.hypot(*(float(torch.linalg.vector_norm(piece)) for piece in pieces))


def size(tensor: Tensor) -> float:
    """The largest size of a value, NaN where one is; 0 of an empty tensor. One pass, nothing copied."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(abs(float(low)), abs(float(high)))


def payload_bytes(codec: str, like: Mapping[str, Tensor]) -> int:
    """How many bytes a codec makes of such tensors."""
    return max((place.end for place in layout(codec, like).values()), default=0)


def _quantise(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """fp32 values as int8 [of their shape] and fp32 scales [channels]; values = int8 * scale on average.

    A value that is a whole multiple of its scale is never moved, so zeros stay zeros.
    """
    rows = values.reshape(_channels(values), -1)
    scales = torch.linalg.vector_norm(rows, math.inf, dim=1) / _LEVELS
    scales = torch.where(scales < _MIN_SCALE, 0.0, scales)
    levels = rows / torch.where(scales > 0, scales, math.inf)[:, None]
    lower = levels.floor()
    up = torch.rand(levels.shape, generator=generator) < levels - lower
    # The division's own rounding may lead one step beyond the end.
    whole = (lower + up).clamp(-_LEVELS, _LEVELS).to(torch.int8)
    return whole.reshape(values.shape), scales


def _dequantise(values: Tensor, scales: Tensor, into: Tensor) -> None:
    """int8 values times the scales [channels], fp32; both ends of the wire compute it, to the same bits."""
    rows = values.reshape(len(scales), -1)
    torch.mul(rows, scales[:, None], out=into.view(len(scales), -1))


def _channels(tensor: Tensor) -> int:
    """How many scales a tensor has."""
    return tensor.shape[0] if tensor.dim() > 1 else 1


def _limit(codec: str) -> float:
    """The largest size of a value that a codec holds."""
    return _MAX_SCALE * _LEVELS if codec == "int8" else float(np.finfo(CODECS[codec]).max)
