"""The Flower ClientApp, which a coordinator sends with each run: it carries a task to the site, and the reply back.

A node with a site service (`service` in its node config) hands the task to that process, which belongs to the
hospital, and returns what it answers: this code then reads neither images nor settings. Any other node, as those of
the simulation, does the same work in this process.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sscxr.federation import courier, frames, wire
from sscxr.federation.wire import ARRAYS, RECORD

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with this site's name, fingerprint and number of images."""
    return _answer(message, context, "query")


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received encoder on this site's images; reply with the update."""
    return _answer(message, context, "train")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received encoder on this site's held-out images."""
    return _answer(message, context, "evaluate")


@app.query("keys")
def keys(message: Message, context: Context) -> Message:
    """Begin a secure sum: reply with this site's public keys of the attempt."""
    return _answer(message, context, "keys")


@app.query("shares")
def shares(message: Message, context: Context) -> Message:
    """Reply with shares of this site's secrets, sealed for each other site."""
    return _answer(message, context, "shares")


@app.query("survivors")
def survivors(message: Message, context: Context) -> Message:
    """Reply with a signature of the list of the sites whose updates arrived."""
    return _answer(message, context, "survivors")


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Reply with the shares that free the sum, and no single update, from its masks."""
    return _answer(message, context, "unmask")


def _answer(message: Message, context: Context, kind: str) -> Message:
    """Have the task done, by the site's service or in this process."""
    record, encoder = _task(message)
    service = context.node_config.get("service")
    if service:
        return _message(*courier.carry(str(service), kind, record, encoder), message)
    # Imported here: a courier should not wait for torch.
    from client import virtual, work

    request = work.Request(kind, lambda: record, frames.limited(encoder))
    reply, update = work.answer(
        request, lambda: virtual.settings_of(context), pinned=not virtual.is_of_phantoms(context)
    )
    return _message(wire.to_record(reply), update, message)


def _task(message: Message) -> tuple[dict[str, object], bytes | None]:
    """Return a task's fields, none if it has no record, and its encoder's bytes, if it has them."""
    records, arrays = message.content.config_records, message.content.array_records
    fields: dict[str, object] = {**records[RECORD]} if RECORD in records else {}
    return fields, arrays[ARRAYS][ARRAYS].data if ARRAYS in arrays and ARRAYS in arrays[ARRAYS] else None


def _message(record: wire.Record, update: bytes | None, to: Message) -> Message:
    content = RecordDict({RECORD: ConfigRecord(dict(record))})
    if update is not None:
        content[ARRAYS] = ArrayRecord({ARRAYS: Array("uint8", (len(update),), "bytes", update)})
    return Message(content, reply_to=to)
