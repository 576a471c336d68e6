"""The site service: a process of the hospital's own, which alone reads its images, state and settings, and trains.

The app that a coordinator sends hands it tasks over a Unix socket, and gets the replies of `federation.wire`. All
code here is what the hospital installed. Nothing that arrives is trusted: `work` checks each task by the settings
as they are at that moment, and one that is refused leaves one line in the log.

Tasks are done in the main thread, one at a time, as in a process of their own; gRPC's threads carry frames.
"""

import logging
import math
import os
import queue
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import torch._dynamo

from client import sent, work
from client.settings import SiteError, SiteSettings, read_settings
from sscxr import config as configs
from sscxr.config import Config
from sscxr.federation import frames, wire
from sscxr.files import is_full_disk, locked, private_folder

CALLS = 8  # open at a time; further ones are refused
_ARRIVES = 300.0  # seconds in which a task's frames must have arrived
_WAITS = 60.0  # seconds that a task waits for an earlier one to end, such as one whose courier was killed
_EVERY = 1.0  # seconds between two reports of steps
_LONGEST = 100  # letters of a socket's path; Linux allows 107
_OPTIONS = (
    ("grpc.max_receive_message_length", 4 * frames.FRAME),  # `frames` refuses what is above one, in words
    ("grpc.max_metadata_size", 8192),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message cannot expand
    ("grpc.so_reuseport", 0),
)

log = logging.getLogger("sscxr.site")


class Job:
    """A task between gRPC's thread, which carries its frames, and the main thread, which does it."""

    def __init__(self, kind: str, arriving: Iterator[bytes], context: grpc.ServicerContext) -> None:
        self.kind, self.arriving = kind, arriving
        self.gone = threading.Event()  # nobody waits for the reply any more
        self.out: queue.SimpleQueue[bytes | work.Reply] = queue.SimpleQueue()
        self._context = context
        if not context.add_callback(self.gone.set):
            self.gone.set()

    def read(self, get: Callable[[], Any]) -> Any:
        """Return what `get` reads of the frames.

        Raises:
            WireError: they broke off, did not come in time, or were malformed.
        """
        late = threading.Event()

        def end() -> None:
            late.set()
            self._context.cancel()

        timer = threading.Timer(_ARRIVES, end)
        timer.start()
        try:
            return get()
        except (StopIteration, grpc.RpcError, wire.WireError) as error:
            # A call that is cancelled may end as if the sender had ended it.
            if isinstance(error, wire.WireError) and not late.is_set():
                raise
            raise wire.WireError(
                f"a message that broke off, took more than {_ARRIVES:.0f} s, or has a frame of more than "
                f"{4 * frames.FRAME} bytes"
            ) from None
        finally:
            timer.cancel()


class Service:
    """Does tasks by the settings in a file.

    Attributes:
        stopping: whether it ends.
        at_work: the task that is being done.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stopping = threading.Event()
        self.at_work: Job | None = None
        self._ended = threading.Event()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._free = threading.Semaphore()
        self._recipe = ""

    def run(self) -> None:
        """Do tasks until `stop`; in the main thread."""
        try:
            while (job := self._jobs.get()) is not None:
                self.at_work = job
                try:
                    job.out.put(self._done(job))
                finally:
                    self.at_work = None
                    self._free.release()
        finally:
            self._ended.set()

    def stop(self) -> None:
        """End; a task that is being done is dropped at its next step."""
        self.stopping.set()
        self._jobs.put(None)

    def call(self, kind: str, arriving: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer one call with the frames of its reply; in one of gRPC's threads."""
        if not self._free.acquire(timeout=_WAITS):
            log.error("%s refused: another task is being done", kind)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        job = Job(kind, arriving, context)
        self._jobs.put(job)
        said: bytes | work.Reply = b""
        while isinstance(said, bytes):
            try:
                said = job.out.get(timeout=1)
            except queue.Empty:
                if self._ended.is_set():
                    context.abort(grpc.StatusCode.UNAVAILABLE, "ending")
                continue
            if isinstance(said, bytes):
                yield said
        reply, update = said
        yield from frames.of(wire.to_record(reply), update)

    def _done(self, job: Job) -> work.Reply:
        """Do a task, and record what is about to leave."""
        admitted: list[tuple[SiteSettings, sent.Sent]] = []

        def admit(settings: SiteSettings, task: wire.Task, config: Config) -> None:
            before = sent.read(Path(settings.state))
            sent.check_new(before, job.kind, task)
            if job.kind == "train":
                sent.check_daily(before, settings.limits.rounds_a_day)
            self._begin(configs.recipe_hash(config))
            stage = config.run.stage
            line = sent.Sent(sent.now(), job.kind, task.run, stage, task.round, task.attempt, 0)
            admitted.append((settings, line))

        request = work.Request(
            job.kind,
            lambda: job.read(lambda: frames.record(next(job.arriving))),
            lambda most: job.read(lambda: frames.pieces(job.arriving, most)),
            admit,
            self._reporter(job),
        )
        reply, update = work.answer(request, lambda: read_settings(self.file))
        if not admitted or isinstance(reply, wire.Failure):
            return reply, update
        ((settings, line),) = admitted
        size = sum(map(len, frames.of(wire.to_record(reply), update)))
        line = replace(line, time=sent.now(), bytes=size)
        try:
            sent.add(Path(settings.state), line)
        except OSError as error:
            log.error("the reply is not sent, as it could not be recorded: %s", error.strerror)
            return wire.Failure(settings.name, "disk" if is_full_disk(error) else "internal"), None
        log.info("sent: %s", line.words)
        return reply, update

    def _begin(self, recipe: str) -> None:
        """Keep the compiled step from round to round of a recipe, and begin another as a new process does.

        torch.compile serves every model of a recipe by one compilation; a ninth other would stay uncompiled.
        """
        if recipe != self._recipe:
            torch._dynamo.reset()
            self._recipe = recipe

    def _reporter(self, job: Job) -> work.OnStep:
        """Return what follows each step: it drops work that nobody waits for, and reports the steps done."""
        last = -math.inf

        def on_step(site: str, count: int, steps: int, images: int, loss: float) -> None:
            nonlocal last
            if self.stopping.is_set():
                raise SiteError("service", "the service is ending: the task is dropped")
            if job.gone.is_set():
                raise SiteError("service", "nobody waits for the task any more: it is dropped")
            if monotonic() - last > _EVERY:
                last = monotonic()
                job.out.put(frames.STEPS + str(steps).encode())

        return on_step


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods of `frames.METHODS`; a call of another one is refused."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        kind = frames.METHODS.get(details.method)
        if kind is None:
            log.error("request refused: %r is not a method of this service", details.method[:80])
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._service.call, kind))


def serve(file: Path, socket: Path, group: str = "") -> None:
    """Serve a site until SIGTERM or SIGINT.

    Args:
        file: its `site.yaml`.
        socket: where to listen; its folder is made if absent.
        group: the accounts that may hand tasks over; empty: this process's group.

    Raises:
        SiteError: the settings or the socket cannot be used, or another service has the state.
    """
    state = Path(read_settings(file).state)
    private_folder(state)
    refusal = SiteError("settings", f"another site service works on {state}")
    service = Service(file)
    with locked(state / "_service.lock", refusal), listening(service, socket, group):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        log.info("site service ready at %s", socket)
        service.run()
    log.info("site service ended")


@contextmanager
def listening(service: Service, socket: Path, group: str = "") -> Iterator[None]:
    """Accept tasks at a socket within the block; see `serve`."""
    _make_room(socket, group)
    server = grpc.server(
        ThreadPoolExecutor(CALLS),
        handlers=[_Methods(service)],
        options=_OPTIONS,
        maximum_concurrent_rpcs=CALLS,
    )
    with _closed():
        server.add_insecure_port(f"unix:{socket.absolute()}")
    if group:
        _give(socket, group)
    socket.chmod(0o660)
    server.start()
    try:
        yield
    finally:
        server.stop(grace=5).wait()
        socket.unlink(missing_ok=True)


def _make_room(socket: Path, group: str) -> None:
    """Check the socket's place, and make its folder, closed to all but this account and the group.

    Raises:
        SiteError: it cannot be used, with the reason.
    """
    folder = socket.absolute().parent
    if len(str(socket.absolute())) > _LONGEST:
        raise SiteError("settings", f"{socket}: a socket's path has at most {_LONGEST} letters")
    try:
        if not folder.exists():
            private_folder(folder)
            folder.chmod(0o750)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise SiteError(
                "settings",
                f"{folder}: other accounts could put their own socket there; give the service a folder of its own",
            )
        if group and not found.st_mode & 0o007:
            _give(folder, group)
        if socket.exists() and not stat.S_ISSOCK(socket.stat().st_mode):
            raise SiteError("settings", f"{socket} is there, and not a socket; name another")
        socket.unlink(missing_ok=True)  # of a service that was killed: the lock shows that it has ended
    except (OSError, LookupError) as error:
        raise SiteError("settings", f"{socket}: {error}") from None


def _give(path: Path, group: str) -> None:
    """Change a path's group, given by name or number."""
    shutil.chown(path, group=int(group) if group.isdigit() else group)


@contextmanager
def _closed() -> Iterator[None]:
    """Make the socket, from its first moment, for its account and group alone."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)
