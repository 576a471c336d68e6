"""What crosses a site's own socket: a task to its service, and the reply, as frames of bytes over gRPC.

One call is one task, its kind in the method's name. Each frame begins with a letter for its kind. A task is a
record, as JSON, of flat fields that `wire.from_record` checks, and pieces of an encoder; a reply is a record and
pieces of an update. While the service trains, it sends the number of steps done before them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from sscxr.federation.wire import WireError

SECURE: Final = ("keys", "shares", "survivors", "unmask")  # steps of a secure sum, beside "train"
KINDS: Final = ("query", "train", "evaluate", *SECURE)
METHODS: Final[dict[str, str]] = {f"/sscxr.Site1/{kind}": kind for kind in KINDS}
RECORD, PIECE, STEPS = b"r", b"p", b"s"
FRAME: Final = 1 << 20  # bytes of a frame at most
RECORD_BYTES: Final = 1 << 18  # of a record; a recipe with all its settings is 6 kB of it


def method(kind: str) -> str:
    """Return the name of the gRPC method of a kind of task."""
    return next(name for name, known in METHODS.items() if known == kind)


def of(record: Mapping[str, object], data: bytes | None) -> Iterator[bytes]:
    """Yield the frames of a record and of an encoder's or an update's bytes, if there are any."""
    # What JSON does not have becomes null, which is the wrong type for every field.
    yield RECORD + json.dumps(record, default=lambda value: None).encode()
    for begin in range(0, len(data or b""), FRAME - 1):
        yield PIECE + memoryview(data or b"")[begin : begin + FRAME - 1]


def record(frame: bytes) -> dict[str, object]:
    """Read a record's frame; its fields are unchecked.

    Raises:
        WireError: it is another frame, too long, or not a JSON object.
    """
    if frame[:1] != RECORD:
        raise WireError("a message that does not begin with its record")
    if len(frame) > RECORD_BYTES:
        raise WireError(f"a record of {len(frame)} bytes, at most {RECORD_BYTES} are read")
    try:
        fields = json.loads(frame[1:])
    except (ValueError, RecursionError) as error:
        raise WireError(f"a record that is not JSON ({type(error).__name__})") from None
    if not isinstance(fields, dict):
        raise WireError(f"a record that is a JSON {type(fields).__name__}, not an object")
    return fields


def pieces(frames: Iterator[bytes], most: int) -> bytes:
    """Return the bytes of the pieces that follow a record.

    Raises:
        WireError: there are none, more than `most` bytes of them, or another frame.
    """
    read: list[bytes] = []
    size = 0
    for frame in frames:
        if frame[:1] != PIECE or len(frame) > FRAME:
            raise WireError(f"a frame of {len(frame)} bytes that is not a piece of an encoder")
        size += len(frame) - 1
        if size > most:
            raise WireError(f"an encoder of more than the {most} bytes that the recipe's has")
        read.append(frame[1:])
    if not read:
        raise WireError("a task without an encoder")
    return b"".join(read)


def limited(data: bytes | None) -> Callable[[int], bytes]:
    """Return what `pieces` does, for bytes that are in memory already."""

    def get(most: int) -> bytes:
        if data is None:
            raise WireError("a task without an encoder")
        if len(data) > most:
            raise WireError(f"an encoder of {len(data)} bytes, the recipe's has {most}")
        return data

    return get
