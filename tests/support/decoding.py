"""What bytes hold in another form: base64, hexadecimal digits, archives, arrays, HTTP and protobuf messages."""

import base64
import binascii
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress

import h11
import numpy as np

MOST = 64 << 20  # bytes that one compressed piece is inflated to
ARRAY = 1 << 19  # bytes; a field of a message above it is an array's, and no message
LIST = 1 << 12  # bytes; a longer list of protobuf's numbers is an array's
HEX = re.compile(rb"[0-9a-f]{16,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{11,}(?:\r?\n[A-Za-z0-9+/_-]{4,})*")
_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|PK\x03\x04|\x93NUMPY", re.DOTALL)


def runs(data: bytes) -> set[bytes]:
    """Runs of base64's characters, of hexadecimal digits too; those that go on in the next line in one."""
    return {re.sub(rb"\s", b"", run) for run in _BASE64.findall(data)}


def decoded(data: bytes, runs: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """The forms that bytes may be in, and what they hold if so.

    Args:
        runs: those of `runs(data)` to decode: pieces of all of them come as one, a NUL between any two.
    """
    found: dict[str, list[bytes]] = {}
    for run in runs:
        for digits in HEX.findall(run.lower()):
            for start in (0, 1):
                even = digits[start : len(digits) - (len(digits) - start) % 2]
                found.setdefault(f"hex+{start}", []).append(binascii.unhexlify(even))
        plain = run.translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = plain[start : len(plain) - ((len(plain) - start) % 4 == 1)]
            found.setdefault(f"base64+{start}", []).append(base64.b64decode(part + b"=" * (-len(part) % 4)))
    for kind, pieces in found.items():
        yield kind, b"\0".join(pieces)
    for packed in _PACKED.finditer(data):
        yield from _unpacked(packed[0], memoryview(data)[packed.start() :])


def _unpacked(magic: bytes, data: memoryview) -> Iterator[tuple[str, bytes]]:
    if magic == b"\x93NUMPY":
        with suppress(Exception):  # half a header, or what looks like one
            array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            if array.dtype.kind in "US":
                yield "npy", " ".join(map(str, array.ravel().tolist())).encode()
        return
    name, start, bits = "zlib", 0, zlib.MAX_WBITS
    if magic[:1] == b"\x1f":
        name, bits = "gzip", 16 + zlib.MAX_WBITS
    elif magic[:1] == b"P":
        name, bits = "zip", -zlib.MAX_WBITS
        if len(data) < 30:
            return
        start = 30 + sum(struct.unpack("<HH", data[26:30]))
    inflater, inflated = zlib.decompressobj(bits), bytearray()
    with suppress(zlib.error):  # what was inflated before counts all the same
        for at in range(start, len(data), 1 << 10):
            inflated += inflater.decompress(data[at : at + (1 << 10)], MOST)
            if inflater.eof or len(inflated) > MOST:
                break
    if inflated:
        yield name, bytes(inflated)


def messages(stream: bytes, role: "type[h11.SERVER] | type[h11.CLIENT]") -> Iterator[bytes]:
    """Header and body of each HTTP message of one direction of a connection, whole or not: de-chunked, inflated."""
    connection = h11.Connection(role, max_incomplete_event_size=1 << 20)
    connection.receive_data(stream)
    while True:
        if role is h11.CLIENT:
            ask = h11.Request(method="POST", target="/", headers=[("host", "any"), ("content-length", "0")])
            connection.send(ask)
            connection.send(h11.EndOfMessage())
        head, body = b"", bytearray()
        while not isinstance(event := connection.next_event(), h11.EndOfMessage | type(h11.NEED_DATA)):
            if isinstance(event, h11.Request | h11.Response):
                encoding = dict(event.headers).get(b"content-encoding", b"identity")
                assert encoding in (b"identity", b"gzip", b"deflate"), f"content-encoding {encoding!r}"
                head = b"\r\n".join(b": ".join(pair) for pair in event.headers)
                head += b"\r\n" + getattr(event, "target", b"")
            elif isinstance(event, h11.Data):
                body += event.data
        yield head
        yield bytes(body)
        if head and encoding == b"deflate":
            with suppress(zlib.error):
                yield zlib.decompress(body, -zlib.MAX_WBITS)
        if not isinstance(event, h11.EndOfMessage):
            return
        if role is h11.SERVER:
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE or connection.their_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


# ---- numbers


def numbers(data: bytes) -> Iterator[int | float]:
    """Numbers of NumPy arrays, above a million, and of a protobuf message and the messages and lists in it."""
    for found in re.finditer(rb"\x93NUMPY", data):
        with suppress(Exception), np.errstate(all="ignore"):  # what looks like an array may hold any bits
            array = np.lib.format.read_array(io.BytesIO(data[found.start() :]), allow_pickle=False)
            if array.dtype.kind in "iuf":
                yield from array[array.astype("f8") > 1e6].tolist()  # a model has millions of smaller ones
    yield from _of_message(data, 0)


def _of_message(data: bytes, deep: int) -> Iterator[int | float]:
    fields = _fields(data)
    if fields is None and b"\0" in data[:4096]:  # one of Flower's objects: a line, and then the message
        fields = _fields(data[data.index(b"\0") + 1 :])
    for value in fields or ():
        if not isinstance(value, bytes):
            yield from _read_as(value)
        elif deep < 12 and len(value) <= ARRAY:
            yield from _of_message(value, deep + 1)
            if len(value) <= LIST:
                if len(value) % 8 == 0:
                    yield from np.frombuffer(value, "<f8").tolist()
                for number in _varints(value) or ():
                    yield from _read_as(number)


def _read_as(number: int) -> Iterator[int | float]:
    """A number as it may be meant: plain, zigzag, or the bits of a double."""
    yield number
    yield (number >> 1) ^ -(number & 1)
    if number < 1 << 64:
        yield struct.unpack("<d", struct.pack("<Q", number))[0]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128 or shift > 63:
            return number, at


def _varints(data: bytes) -> list[int] | None:
    found, at = [], 0
    with suppress(IndexError):
        while at < len(data):
            number, at = _varint(data, at)
            found.append(number)
        return found
    return None


def _fields(data: bytes) -> list[int | bytes] | None:
    """The values of a message's fields; None where it is none."""
    found: list[int | bytes] = []
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            kind = key & 7
            if not 0 < key >> 3 < 1 << 16 or kind not in (0, 1, 2, 5):
                return None
            if kind == 0:
                value, at = _varint(data, at)
                found.append(value)
                continue
            size, at = (_varint(data, at)) if kind == 2 else (8 if kind == 1 else 4, at)
            if at + size > len(data):
                return None
            part = data[at : at + size]
            found.append(part if kind == 2 else int.from_bytes(part, "little"))
            at += size
    except IndexError:
        return None
    return found


def overflowing(wal: bytes) -> bytes:
    """A log's pages without what stands between the pieces of a cell whose pages follow one another."""
    size = int.from_bytes(wal[8:12], "big") if len(wal) > 32 else 0
    if not 512 <= size <= 65536:
        return b""
    return b"".join(wal[at + 28 : at + 24 + size] for at in range(32, len(wal), 24 + size))
