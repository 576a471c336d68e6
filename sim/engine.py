"""Two ways to carry messages between the same two apps: in this process, or to Flower's Ray actors.

In both the ServerApp runs in the main thread, so its errors and Ctrl-C need no detour. Flower's `run_simulation`
does not allow that, and is deprecated; its Ray backend, the pool of actors below it, is used all the same.
"""

import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1
_LONGEST_FOLDER = 40  # letters; Ray puts sockets below it, whose paths may have 107


class LocalGrid(Grid):
    """A Grid without a network: node n, from 1, is the n-th site. Who answers is left to `pull_messages`."""

    def __init__(self, sites: Sequence[Path]) -> None:
        """Args: each node's `site.yaml`."""
        self._contexts = {
            node: _context(node, {"site": str(site.resolve()), "partition-id": node - 1})
            for node, site in enumerate(sites, start=1)
        }
        self._numbers = count(1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, 0, 0

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        """There is no record of the run beside ours."""
        raise RuntimeError("the Grid of the simulation keeps no Flower run")

    def create_message(self, *args: Any, **settings: Any) -> Message:
        """Build a message; Flower deprecates this in favour of `Message(...)`."""
        return Message(*args, **settings)

    def get_node_ids(self) -> Iterable[int]:
        """The virtual sites' nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; each gets a number."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = identifier  # Flower has no public setter
            self._take(identifier, message)
            identifiers.append(identifier)
        return identifiers

    def _take(self, identifier: str, message: Message) -> None:
        raise NotImplementedError

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
        """Let the sites answer these messages now."""
        for identifier in message_ids:
            message = self._waiting.pop(identifier, None)
            if message is not None:
                yield self._client(message, self._contexts[message.metadata.dst_node_id])


class RayGrid(LocalGrid):
    """Messages go to Flower's pool of Ray actors as they are pushed; one actor answers one at a time."""

    def __init__(self, backend: Any, threads: ThreadPoolExecutor, sites: Sequence[Path]) -> None:
        """Args: a built `RayBackend`, and as many threads as it has actors."""
        super().__init__(sites)
        self._backend, self._threads = backend, threads
        self._waiting: dict[str, tuple[Message, Future[tuple[Message, Context]]]] = {}

    def _take(self, identifier: str, message: Message) -> None:
        context = self._contexts[message.metadata.dst_node_id]
        future = self._threads.submit(self._backend.process_message, message, context)
        self._waiting[identifier] = message, future

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there."""
        for identifier in message_ids:
            message, future = self._waiting.get(identifier, (None, None))
            if message is None or future is None or not future.done():
                continue
            del self._waiting[identifier]
            if future.exception() is None:
                yield future.result()[0]
            else:
                yield Message(
                    Error(code=ErrorCode.CLIENT_APP_CRASHED, reason="the actor ended"), reply_to=message
                )


def run_inline(
    server: ServerApp, client: ClientApp, sites: Sequence[Path], run_config: dict[str, Any]
) -> None:
    """Run both apps in this process, sites in turn."""
    server(InlineGrid(client, sites), _context(0, run_config=run_config))


def run_ray(
    server: ServerApp,
    client_file: str,
    sites: Sequence[Path],
    run_config: dict[str, Any],
    *,
    threads: int,
    gpus: int = 0,
) -> None:
    """Run the server in this process, and the sites in Ray actors: one for each `threads` cores, or each GPU.

    Args:
        client_file: where `client.app` was imported from here; an actor that finds another one refuses to work.
    """
    with _actors(partial(_client_of, client_file), threads, gpus) as backend:
        pool = ThreadPoolExecutor(backend.num_workers, thread_name_prefix="ray")
        try:
            server(RayGrid(backend, pool, sites), _context(0, run_config=run_config))
        finally:
            # Messages that wait for an actor are dropped; those under way end when Ray does.
            pool.shutdown(wait=False, cancel_futures=True)


def _client_of(file: str) -> ClientApp:
    """The ClientApp, in an actor; never a stale copy from some working directory."""
    import client.app

    if client.app.__file__ != file:
        raise ImportError(f"the actor found {client.app.__file__} in place of {file}")
    return client.app.app


@contextmanager
def _actors(client: "partial[ClientApp]", threads: int, gpus: int) -> Iterator[Any]:
    """Flower's Ray backend, quiet, in a folder of its own that goes with it."""
    # Ray reads these when it is first imported.
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"
    )
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    import ray
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    cores = len(os.sched_getaffinity(0))
    folder = tempfile.mkdtemp(prefix="ray-")
    if len(folder) > _LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    init: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(cores, threads),
        "num_gpus": gpus,
        "log_to_driver": False,
        "logging_level": "critical",
        "include_dashboard": False,
        "_temp_dir": folder,
    }
    resources: dict[str, Any] = {"num_cpus": threads, "num_gpus": 1.0 if gpus else 0.0}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backend = RayBackend({"init_args": init, "client_resources": resources})
            backend.build(client)
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts a handler of its own there
        yield backend
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_terminate)
        shutil.rmtree(folder, ignore_errors=True)


def _context(
    node: int, node_config: dict[str, Any] | None = None, *, run_config: dict[str, Any] | None = None
) -> Context:
    return Context(
        run_id=_RUN_ID,
        node_id=node,
        node_config=cast(UserConfig, node_config or {}),
        state=RecordDict(),
        run_config=cast(UserConfig, run_config or {}),
    )
