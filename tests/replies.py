"""Replies to a round's task, good and damaged, and sites that answer with them."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from server.fold import ARRAYS, RECORD
from sim.engine import InlineGrid

NAMES = ["anna", "bona", "cora"]
PATIENT = "DOE^JANE"  # a name that may be on no disk of the server's


class Replay(InlineGrid):
    """Sites that answer `train` with replies made before, changed where `damage` names the site."""

    def __init__(self, sites: list[Path], replies: dict[str, Message], damage: dict[str, fed.Damage]) -> None:
        def copy(reply: Message, request: Message) -> Message:
            return answer(request, dict(reply.content.config_records[RECORD]), arrays(reply))

        def answer_of(name: str) -> fed.Damage:
            change = damage.get(name, lambda reply, request: reply)
            return lambda _, request: change(copy(replies[name], request), request)

        changes = {site.parent.name: answer_of(site.parent.name) for site in sites}
        super().__init__(fed.damaging(changes, train=False), sites)


def arrays(reply: Message) -> dict[str, Array]:
    return dict(reply.content.array_records[ARRAYS].items())


def fields(reply: Message) -> dict[str, Any]:
    """What a reply says beside its update."""
    return dict(reply.content.config_records[RECORD])


def answer(request: Message, fields: dict[str, Any], tensors: dict[str, Array] | None) -> Message:
    content = RecordDict({RECORD: ConfigRecord(fields)})
    if tensors is not None:
        content[ARRAYS] = ArrayRecord(tensors)
    return Message(content, reply_to=request)


def said(**fields: Any) -> fed.Damage:
    """A reply some of whose fields are others; a field that is None is left out."""

    def damage(reply: Message, request: Message) -> Message:
        record = {**reply.content.config_records[RECORD], **fields}
        return answer(request, {k: v for k, v in record.items() if v is not None}, arrays(reply))

    return damage


def sent(change: Callable[[np.ndarray[Any, Any]], object], name: str = "norm.bias") -> fed.Damage:
    """A reply one of whose tensors is another; what `change` returns, or the array that it changed."""

    def damage(reply: Message, request: Message) -> Message:
        tensors = arrays(reply)
        values = tensors[name].numpy().copy()
        changed = change(values)
        values = changed if isinstance(changed, np.ndarray) else values
        tensors[name] = changed if isinstance(changed, Array) else Array(values)
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def filled(value: float) -> fed.Damage:
    return sent(lambda values: values.__setitem__(0, value))


def without(name: str) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        tensors = {key: value for key, value in arrays(reply).items() if key != name}
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def with_more(name: str) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        tensors = {**arrays(reply), name: Array(np.zeros(3, np.float16))}
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def sites(folder: Path) -> list[Path]:
    """Sites to answer with replies made before: too small to train on."""
    return fed.make_sites(folder / "sites", NAMES, images=4)


def table(out: Path) -> list[dict[str, str]]:
    """The rows of `sites.csv`."""
    with (out / "sites.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def disk(folder: Path) -> bytes:
    """The names and contents of all files of a folder."""
    return b"\n".join(
        str(file.name).encode() + b"\n" + file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )
