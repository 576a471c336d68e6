"""Two ways to carry messages between the same two apps: in this process, or by Flower's simulation engine."""

import logging
import os
import warnings
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1


class InlineGrid(Grid):
    """A Grid without a network: a message is answered when its reply is pulled, one site at a time.

    The server folds each reply before it pulls the next, so one update at a time is in memory.
    """

    def __init__(self, client: ClientApp, sites: list[Path]) -> None:
        """Args: the ClientApp, and each node's `site.yaml`."""
        self._client = client
        self._contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config=cast(UserConfig, {"site": str(site)}),
                state=RecordDict(),
                run_config=cast(UserConfig, {}),
            )
            for node, site in enumerate(sites, start=1)
        }
        self._numbers = count(1)
        self._waiting: dict[str, Message] = {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, 0, 0

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        """There is no record of the run beside ours."""
        raise RuntimeError("the inline Grid keeps no Flower run")

    def create_message(self, *args: Any, **settings: Any) -> Message:
        """Build a message; Flower deprecates this in favour of `Message(...)`."""
        return Message(*args, **settings)

    def get_node_ids(self) -> Iterable[int]:
        """The virtual sites' nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until their replies are asked for."""
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = identifier  # Flower has no public setter
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the sites answer these messages now."""
        for identifier in message_ids:
            message = self._waiting.pop(identifier, None)
            if message is not None:
                yield self._client(message, self._contexts[message.metadata.dst_node_id])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull."""
        return list(self.pull_messages(self.push_messages(messages)))


def run_inline(server: ServerApp, client: ClientApp, sites: list[Path], run_config: dict[str, Any]) -> None:
    """Run both apps in this process, sites in turn."""
    grid = InlineGrid(client, sites)
    context = Context(
        run_id=_RUN_ID,
        node_id=0,
        node_config=cast(UserConfig, {}),
        state=RecordDict(),
        run_config=cast(UserConfig, run_config),
    )
    server(grid, context)


def run_ray(
    server: ServerApp,
    client: ClientApp,
    sites: Path,
    count_of_sites: int,
    run_config: dict[str, Any],
    threads: int,
) -> None:
    """Run both apps on Flower's simulation engine: one Ray actor for each `threads` cores.

    Args:
        sites: the folder of virtual sites; the actors find it in their environment.
    """
    # Ray and Flower read these when they are first used.
    os.environ.update(
        SSCXR_SITES=str(sites.resolve()),
        FLWR_TELEMETRY_ENABLED="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DEDUP_LOGS="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    import ray
    from flwr.simulation import run_simulation

    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = cast(UserConfig, run_config)
        server(grid, context)

    cores = os.cpu_count() or 1
    resources = {"num_cpus": min(threads, cores), "num_gpus": 0.0}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_simulation(
                server_app=configured,
                client_app=client,
                num_supernodes=count_of_sites,
                backend_config=cast(
                    Any,
                    {
                        "client_resources": resources,
                        "init_args": {"num_cpus": cores, "log_to_driver": False, "include_dashboard": False},
                    },
                ),
            )
    finally:
        ray.shutdown()
