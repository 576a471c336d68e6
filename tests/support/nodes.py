"""A hospital's node over the real network, in a thread, which may send what no honest client would."""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_connection import http_request_response
from superlinks import SuperLink

# What a site does to each object of a reply: its type ("Array"), its body, how many children it has -> what is
# sent in the body's place; None: the object is announced and never comes.
Spoil = Callable[[str, bytes, int], bytes | None]
App = Callable[[Message, Context], Message]  # a ClientApp, or what changes its replies


@contextmanager
def grid(superlink: SuperLink) -> Iterator[HttpGrid]:
    """The Grid of a run that has just started, as Flower hands it to a ServerApp."""
    state = superlink.state
    run = state.create_run("a/b", "1", "0", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    (known,) = state.get_run_info(run_ids=[run])
    token = state.claim_task(known.primary_task_id)
    assert state.activate_task(known.primary_task_id)
    made = HttpGrid(superlink.server.address, False, superlink.server.ca.encode(), token=token)
    made.set_run(known)
    alive = HeartbeatSender(make_task_heartbeat_fn_http(made._runtime_client))
    alive.start()
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, SUPERLINK_NODE_ID, 0
    try:
        yield made
    finally:
        alive.stop()
        made.close()


@contextmanager
def node(
    superlink: SuperLink,
    app: App,
    site: Path,
    spoil: Mapping[int, Spoil] | None = None,
    again: Collection[int] = (),
) -> Iterator[list[str]]:
    """A registered node that answers with `app` as long as the block lasts.

    Args:
        site: its `site.yaml`.
        spoil: round -> what becomes of its reply to `train`.
        again: rounds after whose reply it sends that, and all before it, once more.

    Yields:
        what came of each reply that was sent again: "taken", or the error's type.
    """
    key, ended = ec.generate_private_key(ec.SECP384R1()), threading.Event()
    superlink.register(key)
    where, ca = superlink.server.address, superlink.server.ca.encode()
    with http_request_response(where, False, ca, (key, key.public_key())) as connection:
        work = _Node(connection, app, site, spoil or {}, again)
        thread = threading.Thread(target=work.serve, args=(ended,), daemon=True)
        thread.start()
        try:
            yield work.repeated
        finally:
            ended.set()
            thread.join()


class _Node:
    def __init__(
        self, connection: Any, app: App, site: Path, spoil: Mapping[int, Spoil], again: Collection[int]
    ) -> None:
        number, self._receive, self._send, _, _, self._pull, self._push, self._confirm = connection
        self._app, self._spoil, self._again = app, spoil, again
        self._sent: list[tuple[Message, ObjectTree, Mapping[str, bytes | None]]] = []
        self.repeated: list[str] = []
        self._context = Context(0, number, {"site": str(site)}, RecordDict(), {})

    def serve(self, ended: threading.Event) -> None:
        while not ended.is_set():
            came = self._receive()
            if came is None:
                sleep(0.2)
                continue
            run, tree = came[0].metadata.run_id, came[1]
            request = pull_and_inflate_object_from_tree(
                tree,
                lambda name, run=run: self._pull(run, name),
                lambda name, run=run: self._confirm(run, name),
                return_type=Message,
            )
            request.metadata.__dict__["_message_id"] = tree.object_id
            self._answer(request)

    def _answer(self, request: Message) -> None:
        reply = self._app(request, self._context)
        tree = get_object_tree(reply)
        contents: dict[str, bytes | None] = {
            name: thing.deflate() for name, thing in get_all_nested_objects(reply).items()
        }
        number = int(request.metadata.group_id)
        if request.metadata.message_type == "train" and number in self._spoil:
            tree, contents = _spoiled(tree, contents, self._spoil[number])
        reply.metadata.__dict__["_message_id"] = tree.object_id
        self._upload(reply, tree, contents)
        if request.metadata.message_type == "train":
            self._sent.append((reply, tree, contents))
            for sent in self._sent if number in self._again else ():
                try:
                    self._upload(*sent)
                    self.repeated.append("taken")
                except Exception as error:
                    self.repeated.append(type(error).__name__)

    def _upload(self, reply: Message, tree: ObjectTree, contents: Mapping[str, bytes | None]) -> None:
        wanted, session = self._send(reply, tree, 0.1)
        for name in wanted:
            content = contents[name]
            if content is not None:
                self._push(reply.metadata.run_id, session, name, content)


def _spoiled(
    tree: ObjectTree, contents: Mapping[str, bytes | None], spoil: Spoil
) -> tuple[ObjectTree, dict[str, bytes | None]]:
    """The tree and the objects with other bodies, under the names that these then have."""
    made: dict[str, bytes | None] = {}
    children = []
    whole = contents[tree.object_id]
    assert whole is not None
    head, _, body = whole.partition(b"\0")
    for child in tree.children:
        branch, below = _spoiled(child, contents, spoil)
        head = head.replace(child.object_id.encode(), branch.object_id.encode())
        children.append(branch)
        made |= below
    kind, names, _ = head.split(b" ")
    changed = spoil(kind.decode(), body, len(names.split(b",")))
    told = body if changed is None else changed
    content = b" ".join([kind, names, str(len(told)).encode()]) + b"\0" + told
    name = hashlib.sha256(content).hexdigest()
    made[name] = None if changed is None else content
    return ObjectTree(object_id=name, children=children), made
