"""Replies to a round's task, good and damaged, and sites that answer with them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
from answers import update
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from server.fold import ARRAYS, RECORD
from sim.engine import InlineGrid
from sscxr.federation import codecs

NAMES = ["anna", "bona", "cora"]
PATIENT = "DOE^JANE"  # a name that may be on no disk of the server's


class Replay(InlineGrid):
    """Sites that answer `train` with replies made before, changed where `damage` names the site."""

    def __init__(self, sites: list[Path], replies: dict[str, Message], damage: dict[str, fed.Damage]) -> None:
        def copy(reply: Message, request: Message) -> Message:
            return answer(request, fields(reply), update(reply))

        def answer_of(name: str) -> fed.Damage:
            change = damage.get(name, lambda reply, request: reply)
            return lambda _, request: change(copy(replies[name], request), request)

        changes = {site.parent.name: answer_of(site.parent.name) for site in sites}
        super().__init__(fed.damaging(changes, train=False), sites)


def fields(reply: Message) -> dict[str, Any]:
    """What a reply says beside its update."""
    return dict(reply.content.config_records[RECORD])


def answer(request: Message, fields: dict[str, Any], *updates: bytes) -> Message:
    """A reply with as many updates; a good one has one."""
    content = RecordDict({RECORD: ConfigRecord(fields)})
    if updates:
        arrays = [Array("uint8", (len(data),), "bytes", data) for data in updates]
        content[ARRAYS] = ArrayRecord(dict(zip((ARRAYS, PATIENT), arrays, strict=False)))
    return Message(content, reply_to=request)


def said(**told: Any) -> fed.Damage:
    """A reply some of whose fields are others; a field that is None is left out."""

    def damage(reply: Message, request: Message) -> Message:
        record = {**fields(reply), **told}
        return answer(request, {k: v for k, v in record.items() if v is not None}, update(reply))

    return damage


def sent(*change: Callable[[bytes], bytes]) -> fed.Damage:
    """A reply with as many updates as there are changes, each made of the good one."""
    return lambda reply, request: answer(request, fields(reply), *(made(update(reply)) for made in change))


def holding(value: float, name: str = "norm.bias", codec: str = "fp16") -> fed.Damage:
    """A reply with another value in a tensor's fourth place."""
    place = codecs.layout(codec, fed.start(fed.settings()).encoder)[name]

    def change(data: bytes) -> bytes:
        written = bytearray(data)
        np.frombuffer(written, place.dtype, offset=place.begin)[3] = value
        return bytes(written)

    return sent(change)


def sites(folder: Path) -> list[Path]:
    """Sites to answer with replies made before, as large as those that made them."""
    return fed.make_sites(folder / "sites", NAMES)


def table(out: Path) -> list[dict[str, str]]:
    """The rows of `sites.csv`."""
    with (out / "sites.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def disk(folder: Path) -> bytes:
    """The names and contents of all files of a folder."""
    return b"\n".join(
        str(file.name).encode() + b"\n" + file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )
