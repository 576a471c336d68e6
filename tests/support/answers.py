"""What a site's ClientApp answered, read: its fields, its one word, its update; and the states that it kept."""

from pathlib import Path
from typing import Any

from flwr.app import Message

from client.app import ARRAYS, RECORD
from sscxr.federation import wire

PATIENT = "DOE^JANE"


def said(reply: Message) -> dict[str, Any]:
    """The fields of a reply that is no error."""
    assert not reply.has_error()
    return dict(reply.content.config_records[RECORD])


def failure(reply: Message) -> str:
    """The one word, in a reply that holds nothing else."""
    assert set(reply.content) == {RECORD}
    read = wire.from_record(wire.Failure, said(reply))
    assert read.failure in wire.FAILURES
    assert PATIENT not in str(reply)
    return read.failure


def update(reply: Message) -> bytes:
    """The encoded update of a reply."""
    assert set(reply.content) == {RECORD, ARRAYS}
    assert set(reply.content.array_records[ARRAYS]) == {ARRAYS}
    return reply.content.array_records[ARRAYS][ARRAYS].data


def states(site: Path) -> dict[str, bytes]:
    """The files that a site kept, by name; not the lock, which is empty."""
    files = [file for file in (site.parent / "state").rglob("*") if file.is_file() and file.name != "_lock"]
    return {file.name: file.read_bytes() for file in files}
