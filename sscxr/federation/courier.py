"""Carries a task to the site's service over its Unix socket, and the service's reply back, unread.

This runs under an account that can open neither the cache nor the site's state and settings.
"""

import logging
from pathlib import Path

import grpc

from sscxr.federation import frames, wire

log = logging.getLogger("sscxr.site")

_PATIENCE = (
    60.0  # seconds for a service that is starting: one that is upgraded between two rounds costs no round
)
CHANNEL = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", frames.FRAME),
)


def carry(
    socket: str, kind: str, record: dict[str, object], encoder: bytes | None
) -> tuple[wire.Record, bytes | None]:
    """Return the fields of the service's reply, and its update, exactly as it sent them.

    Args:
        socket: the service's socket.
        kind: one of `frames.KINDS`.
        record, encoder: of the task.

    Returns:
        The reply; a `wire.Failure` if there is no service, or if it ended before it replied.
    """
    failure = "service"
    try:
        if not Path(socket).parent.is_dir():
            raise wire.WireError(f"{socket}: its folder is missing or closed to this account")
        with grpc.insecure_channel(f"unix:{Path(socket).absolute()}", options=CHANNEL) as channel:
            grpc.channel_ready_future(channel).result(_PATIENCE)
            call = channel.stream_stream(frames.method(kind))
            return _read(call(frames.of(record, encoder)))
    except grpc.FutureTimeoutError:
        log.error("the site service does not answer at %s: is `sscxr site serve` running?", socket)
    except grpc.RpcError as error:
        failure = "busy" if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else "service"
        log.error("the site service ended the task: %s", error.code().name)
    except wire.WireError as error:
        log.error("%s", error)
    return wire.to_record(wire.Failure("unknown", failure)), None


def _read(answered: "grpc.CallIterator[bytes]") -> tuple[wire.Record, bytes | None]:
    """Return the record and the update of a reply; report its steps to this process's log."""
    for frame in answered:
        if frame[:1] == frames.STEPS:
            log.info("%s steps", frame[1:].decode(errors="replace"))
            continue
        fields = frames.record(frame)
        pieces = [piece[1:] for piece in answered]
        return fields, b"".join(pieces) if pieces else None  # type: ignore[return-value]
    raise wire.WireError("the site service ended the task without a reply")
