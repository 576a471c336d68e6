"""How tensors travel: fp32 and fp16 as they are, int8 with scales, rounded at random, its error carried on.

int8 is for updates alone. A tensor becomes whole numbers in -127..127 and fp32 scales, one for each index of its
first dimension where it has two dimensions or more, else one. Rounding is stochastic, as in QSGD
(arXiv 1610.02132): the mean of what is sent is the update, so that the errors of many sites cancel in their
average. What rounding left out is kept at the site and added to its next update, as in EF-SGD
(arXiv 1901.09847): over rounds the errors do not add up, and what has not arrived yet is one rounding error.

The two do not get in each other's way. Rounding errs by less than one scale, 1/127 of the channel's largest
value, for whatever is rounded; so with updates of size at most U what is carried stays below U / 126.
"""

import functools
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sscxr.wire import WireError

# A message's arrays are read only, and torch warns of tensors that share their memory; nothing here writes to them.
warnings.filterwarnings("ignore", "The given NumPy array is not writable")

Arrays = dict[str, npt.NDArray[Any]]
Tensors = dict[str, Tensor]
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

# The dtype in which values travel.
CODECS: Final[dict[str, np.dtype[Any]]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}

SCALE: Final = ":scale"  # ends the name of a tensor's scales; no parameter's name has a colon
CHUNK: Final = 1 << 17  # values converted at a time: what lies between stays in the processor's cache
_PIECE = 1 << 15  # values of one fp32 norm: one thread's, so that the number of threads changes no bit
_LENGTHS: Final = {b"\x01\x00": 2, b"\x02\x00": 4}  # bytes of a header's own length, by version of the format
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LEVELS = 127
_MAX_SCALE = 2.0**20  # ours: far above any update's, and 127 of it far below fp32's end
_MIN_SCALE = float(np.finfo(np.float32).tiny)  # below, division loses its precision; 0 is sent


def layout(codec: str, like: Mapping[str, Tensor]) -> Layout:
    """The dtype and shape of every array that a codec makes of such tensors.

    Raises:
        WireError: an unknown codec.
    """
    if codec not in CODECS:
        raise WireError(f"unknown codec {codec!r}; there are: {', '.join(CODECS)}")
    arrays: Layout = {name: (CODECS[codec], tuple(tensor.shape)) for name, tensor in like.items()}
    if codec == "int8":
        scales = {name + SCALE: (np.dtype(np.float32), (_channels(t),)) for name, t in like.items()}
        arrays |= scales
    return arrays


def encode(tensors: Mapping[str, Tensor], codec: str, generator: torch.Generator | None = None) -> Arrays:
    """Tensors as the arrays that travel.

    Args:
        generator: on the CPU; int8 rounds by it, the others need none.

    Raises:
        WireError: an unknown codec, or a value that the codec cannot hold.
    """
    dtypes = layout(codec, tensors)
    arrays: Arrays = {}
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
            values = tensor.to(torch.float16 if codec == "fp16" else torch.float32)
            arrays[name] = np.ascontiguousarray(values.numpy(), dtype=dtypes[name][0])
    return arrays


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """An array in numpy's file format, which Flower's messages have, where it lies: read only, nothing copied.

    Raises:
        ValueError: anything else, objects too.
    """
    if data[:6] != np.lib.format.MAGIC_PREFIX or data[6:8] not in _LENGTHS:
        raise ValueError("no file of numpy's, or of another version")
    begin = 8 + _LENGTHS[data[6:8]]
    begin += int.from_bytes(data[8:begin], "little")
    shape, fortran, dtype = _header(data[:begin])
    values = np.frombuffer(data, dtype, math.prod(shape), begin)
    return values.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=1024)  # a model's arrays come with the same headers every time
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype, of an array whose file begins so."""
    stream = io.BytesIO(data)
    shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject or not all(side >= 0 for side in shape):
        raise ValueError("objects, or a shape that is none")
    return shape, fortran, dtype


def decode(
    arrays: Mapping[str, npt.NDArray[Any]],
    codec: str,
    like: Mapping[str, Tensor],
    into: Tensors | None = None,
) -> Tensors:
    """Arrays as fp32 tensors, all finite, after every check that does not need their use.

    Args:
        like: tensors whose names and shapes the decoded ones must have.
        into: contiguous fp32 tensors of those names and shapes, to be written over: fresh memory costs more than
            the decoding. With `into`, fp32 arrays are not copied at all: the tensors returned share the message's
            memory, and may be read as long as the message is there.

    Raises:
        WireError: a missing or an unexpected tensor, a wrong dtype or shape, NaN or infinity, a value or a scale
            out of range.
    """
    expected = layout(codec, like)
    missing, unexpected = sorted(expected.keys() - arrays.keys()), arrays.keys() - expected.keys()
    if missing:
        raise WireError(f"missing tensor {missing[0]} ({len(missing)} in all)")
    if unexpected:
        # Their names are the sender's words, and are not repeated.
        raise WireError(f"unexpected tensor ({len(unexpected)} in all)")
    for name, (dtype, shape) in expected.items():
        values = arrays[name]
        if values.dtype != dtype:
            raise WireError(f"wrong dtype {values.dtype.name} of {name}, expected {dtype}")
        if values.shape != shape:
            raise WireError(f"wrong shape {values.shape} of {name}, expected {shape}")
        if values.dtype.kind == "f" and not math.isfinite(size(_tensor(values))):
            raise WireError(f"NaN or infinity in {name}")
    for name in like if codec == "int8" else ():
        values, scales = arrays[name], arrays[name + SCALE]
        if values.size and int(values.min()) < -_LEVELS:
            raise WireError(f"values of {name} out of range (below {-_LEVELS})")
        if not ((scales >= 0) & (scales <= _MAX_SCALE)).all():
            raise WireError(f"scale of {name} out of range (0 to {_MAX_SCALE:g})")
    if into is not None and codec == "fp32":
        return {name: _tensor(arrays[name]) for name in like}
    decoded = into or {name: torch.empty(tensor.shape) for name, tensor in like.items()}
    for name in like:
        if codec == "int8":
            _dequantise(_tensor(arrays[name]), _tensor(arrays[name + SCALE]), decoded[name])
        else:
            decoded[name].copy_(_tensor(arrays[name]))
    return decoded


def encode_update(
    update: Mapping[str, Tensor], residual: Mapping[str, Tensor], codec: str, generator: torch.Generator
) -> tuple[Arrays, Tensors]:
    """An update as it travels, and what of it does not arrive: the residual to hand in with the next update.

    Args:
        update: fp32 tensors.
        residual: what the update before this one left out, where there is something; it is sent along.
        generator: on the CPU; the same one gives the same arrays.

    Returns:
        the arrays; the new residual, empty but for int8, whose errors alone are large enough to carry.

    Raises:
        WireError: as `encode`.
    """
    if codec != "int8":
        return encode(update, codec), {}
    wanted = {
        name: tensor + residual[name] if name in residual else tensor for name, tensor in update.items()
    }
    arrays = encode(wanted, codec, generator)
    arrived = decode(arrays, codec, wanted)
    return arrays, {name: tensor - arrived[name] for name, tensor in wanted.items()}


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
    """Bytes of the values that a codec sends of such tensors; each array's header adds about a hundred."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout(codec, like).values())


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


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
