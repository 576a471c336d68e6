"""Carries messages between the same two apps: within this process, or to a pool of processes; see also `rays.py`.

The ServerApp runs in the main thread of this process, whatever carries them, so its errors and Ctrl-C need no
detour.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.site import writes
from sim.pool import Ended, Pool, say

log = logging.getLogger("sscxr.sim")

# Of a site's work, for the process that those of the pool are forked from.
IMPORTS = ("client.app", "client.virtual", "client.work", "sscxr.stages.pretrain", "sim.engine")
_RUN_ID = 1
_EVERY = 0.2  # seconds between two reports of steps


class LocalGrid(Grid):
    """A Grid without a network: node n, from 1, is the n-th site. Subclasses answer in `pull_messages`."""

    in_process = True  # its calls may take as long as training, and stay in their thread

    def __init__(self, sites: Sequence[Path]) -> None:
        """Args: each node's `site.yaml`."""
        self._contexts = {
            node: context(node, {"site": str(site.resolve()), "partition-id": node - 1})
            for node, site in enumerate(sites, start=1)
        }
        self._numbers = count(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, 0, 0

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """Raise: Flower has no record of this run."""
        raise RuntimeError("the Grid of the simulation does not keep a Flower run")

    def create_message(self, *args: Any, **settings: Any) -> Message:
        """Build a message; Flower deprecates this in favour of `Message(...)`."""
        return Message(*args, **settings)

    def get_node_ids(self) -> Iterable[int]:
        """Return the virtual sites' nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages and return a number for each."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = identifier  # Flower has no public setter
            self._take(identifier, message)
            identifiers.append(identifier)
        return identifiers

    def _take(self, identifier: str, message: Message) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Wait until the sites' states are on disk."""

    def wait(self, seconds: float) -> None:
        """Wait until there is a reply, at most so long."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull."""
        return list(self.pull_messages(self.push_messages(messages)))


class InlineGrid(LocalGrid):
    """A message is answered in this process when its reply is pulled, one site at a time.

    The server folds each reply before it pulls the next, so one update at a time is in memory.
    """

    def __init__(self, client: ClientApp, sites: Sequence[Path]) -> None:
        super().__init__(sites)
        self._client = client
        self._waiting: dict[str, Message] = {}

    def _take(self, identifier: str, message: Message) -> None:
        self._waiting[identifier] = message

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the sites answer these messages now."""
        for identifier in message_ids:
            message = self._waiting.pop(identifier, None)
            if message is not None:
                yield self._client(message, self._contexts[message.metadata.dst_node_id])

    def settle(self) -> None:
        """Wait until the sites' states are on disk.

        Raises:
            SiteError: one could not be written.
        """
        writes.settle()


class PoolGrid(LocalGrid):
    """A message goes to an idle process of a pool; a site has one message at a time."""

    def __init__(self, pool: Pool, sites: Sequence[Path]) -> None:
        super().__init__(sites)
        self._pool = pool
        self._new: list[str] = []
        self._sent: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}
        self._seconds: dict[tuple[int, str], float] = {}  # of CPU time, for a node's last message of a kind

    def _take(self, identifier: str, message: Message) -> None:
        for earlier, other in list(self._sent.items()):
            if other.metadata.dst_node_id == message.metadata.dst_node_id:  # the server waits for it no more
                del self._sent[earlier]
                self._replies.pop(earlier, None)
                self._pool.drop(earlier)
        self._sent[identifier] = message
        self._new.append(identifier)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        self.wait(0.0)
        for identifier in message_ids:
            if identifier in self._replies:
                del self._sent[identifier]
                yield self._replies.pop(identifier)

    def wait(self, seconds: float) -> None:
        """Wait until there is a reply, at most so long."""
        # The longest first, so that no process is left with a long one at the end.
        new = [identifier for identifier in self._new if identifier in self._sent]
        self._new = []
        for identifier in sorted(new, key=lambda one: -self._seconds.get(_kind(self._sent[one]), math.inf)):
            message = self._sent[identifier]
            self._pool.put(identifier, _answered, message, self._contexts[message.metadata.dst_node_id])
        for ended in self._pool.fetch(0.0 if self._replies else seconds):
            self._replies[cast(str, ended.name)] = self._reply(self._sent[cast(str, ended.name)], ended)

    def _reply(self, message: Message, ended: Ended) -> Message:
        if ended.problem:
            log.warning("a site's process failed: %s", ended.problem)
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, "the process failed"), reply_to=message)
        reply, self._seconds[_kind(message)] = ended.value
        return cast(Message, reply)


def _kind(message: Message) -> tuple[int, str]:
    return message.metadata.dst_node_id, message.metadata.message_type


def _answered(message: Message, context: Context) -> tuple[Message, float]:
    """Return a site's reply and the seconds of CPU time that it took; in a process of the pool."""
    import client.app
    from client import work

    last = -math.inf

    def on_step(site: str, *done: Any) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            say(site, *done)

    work.display.on_step = on_step
    began = time.process_time()
    return client.app.app(message, context), time.process_time() - began


def run_inline(
    server: ServerApp, client: ClientApp, sites: Sequence[Path], run_config: dict[str, Any]
) -> None:
    """Run both apps in this process, sites in turn; one's state is written while the next one trains."""
    writes.behind = True
    try:
        server(InlineGrid(client, sites), context(0, run_config=run_config))
    finally:
        writes.behind = False


def run_pool(
    server: ServerApp, sites: Sequence[Path], run_config: dict[str, Any], *, processes: int, threads: int
) -> None:
    """Run the server in this process, and the sites in a pool of processes.

    Args:
        processes: how many sites work at a time.
        threads: of each.
    """
    from client.work import display  # torch takes seconds to import

    with Pool(min(processes, len(sites)), IMPORTS, threads) as pool:
        pool.heard = lambda *done: display.on_step(*done) if display.on_step else None
        server(PoolGrid(pool, sites), context(0, run_config=run_config))


def context(
    node: int, node_config: dict[str, Any] | None = None, *, run_config: dict[str, Any] | None = None
) -> Context:
    """Return what an app of this run is called with."""
    return Context(
        run_id=_RUN_ID,
        node_id=node,
        node_config=cast(UserConfig, node_config or {}),
        state=RecordDict(),
        run_config=cast(UserConfig, run_config or {}),
    )
