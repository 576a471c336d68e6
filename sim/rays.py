"""Flower's own engine for simulations: messages go to the actors of its pool, which are processes of Ray.

Only its pool is used: `run_simulation` is deprecated, and does not let the ServerApp run in the main thread.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from sim.engine import LocalGrid, context
from sscxr.errors import SscxrError

log = logging.getLogger("sscxr.sim")

_LONGEST_FOLDER = 40  # letters; Ray puts sockets below it, whose paths may have at most 107


class RayGrid(LocalGrid):
    """A message goes to an idle actor of Flower's pool; an actor answers one at a time."""

    def __init__(self, pool: Any, load: Callable[[], ClientApp], sites: Sequence[Path]) -> None:
        """Args: a filled `BasicActorPool`, and the function that loads the ClientApp in its actors."""
        super().__init__(sites)
        self._pool, self._load = pool, load
        self._queue: dict[str, Message] = {}
        self._working: dict[str, tuple[Message, Any]] = {}

    def _take(self, identifier: str, message: Message) -> None:
        self._queue[identifier] = message
        self._employ()

    def _employ(self) -> None:
        while self._queue and self._pool.is_actor_available():
            identifier = next(iter(self._queue))
            message = self._queue.pop(identifier)
            node = message.metadata.dst_node_id
            job = (self._load, message, str(node), self._contexts[node])
            self._working[identifier] = message, self._pool.submit(_run_on, job)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        import ray
        from ray.exceptions import RayActorError

        for identifier in message_ids:
            message, future = self._working.get(identifier, (None, None))
            if message is None or not ray.wait([future], timeout=0)[0]:
                continue
            del self._working[identifier]
            try:
                reply, _ = self._pool.fetch_result_and_return_actor_to_pool(future)
            except Exception as error:
                log.warning("an actor failed: %s", str(error).strip().splitlines()[-1])
                if isinstance(error, RayActorError):
                    self._pool.add_actors_to_pool(1)  # to replace one that died
                else:
                    self._pool.add_actor_back_to_pool(future)
                reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "the actor failed"), reply_to=message)
            self._employ()
            yield reply

    def wait(self, seconds: float) -> None:
        """Wait until there is a reply, at most so long."""
        import ray

        if self._working:
            ray.wait([future for _, future in self._working.values()], timeout=seconds)


def _run_on(actor: Any, load: Callable[[], ClientApp], message: Message, name: str, context: Context) -> Any:
    return actor.run.remote(load, message, name, context)


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
        client_file: the file of `client.app` in this process; an actor that finds another one refuses to work.
    """
    load = partial(_client_of, client_file)
    with _actors(load, len(sites), threads, gpus) as pool:
        server(RayGrid(pool, load, sites), context(0, run_config=run_config))


def _prepare(actor: Any, load: Callable[[], ClientApp]) -> None:
    load()


def _client_of(file: str) -> ClientApp:
    """Return the ClientApp in an actor; never a stale copy from some working directory."""
    import client.app
    import client.work  # seconds, which do not count towards a site's time to answer

    if client.app.__file__ != file:
        raise ImportError(f"the actor found {client.app.__file__} instead of {file}")
    return client.app.app


@contextmanager
def _actors(load: Callable[[], ClientApp], most: int, threads: int, gpus: int) -> Iterator[Any]:
    """Yield Flower's pool of Ray actors, silent, in a temporary folder."""
    # Ray reads these when it is first imported or started; actors find modules where this process does.
    os.environ |= {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # the sites are the machine's main work
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    if find_spec("ray") is None:
        raise SscxrError("--engine ray needs Ray: pip install 'sscxr[sim]', or leave --engine out")
    with warnings.catch_warnings():  # Flower turns on all deprecation warnings on import
        import ray
        from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor

    folder = tempfile.mkdtemp(prefix="ray-")
    if len(folder) > _LONGEST_FOLDER:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    resources = {"num_cpus": threads, "num_gpus": 1.0 if gpus else 0.0}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address="local",
                num_cpus=max(len(os.sched_getaffinity(0)), threads),
                num_gpus=gpus,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                include_dashboard=False,
                _temp_dir=folder,
            )
            signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own handler
            pool = BasicActorPool(ClientAppActor, resources, {})
            pool.add_actors_to_pool(min(most, pool.actors_capacity))
            # Imports take seconds, which do not count towards a site's time to answer.
            ray.get([actor.__ray_call__.remote(_prepare, load) for actor in cast(list[Any], pool.pool)])
        yield pool
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, on_terminate)
        shutil.rmtree(folder, ignore_errors=True)
