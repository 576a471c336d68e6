"""Processes that work side by side for a simulation; one that dies costs its own task and no other.

Each is forked from a server that has imported torch once for all of them. In place of the executors of
`concurrent.futures`, which lose all tasks in progress when one process dies, and wait for them on Ctrl-C.
"""

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
_PATIENCE = 30.0  # seconds for a process to end by itself
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_DONE, _SAID, _LOGGED = "done", "said", "logged"  # what a process sends


def start_forking(modules: Sequence[str], threads: int) -> None:
    """Start the process that others are forked from, unless it is there; it imports these modules once for all.

    A process has one such server: this one has to be started before `sscxr.data.prepare` starts its own.

    Args:
        modules: what the forks need.
        threads: of the libraries that they use besides torch.
    """
    # Imported here: it imports the readers of images, which the forks do not need.
    from sscxr.data.prepare.pool import start_fork_server

    before = dict(os.environ)
    # The server reads these as it starts. The path is for this very code to be found.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), before.get("PYTHONPATH"))))
    os.environ |= dict.fromkeys(_THREADS, str(threads)) | {"PYTHONPATH": path}
    try:
        CONTEXT.set_forkserver_preload(list(modules))
        start_fork_server()
    finally:
        os.environ.clear()
        os.environ |= before


def end(processes: Sequence[BaseProcess]) -> None:
    """End processes now: those that do not follow SIGTERM in time are killed."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


@dataclass(frozen=True)
class Ended:
    """How a task ended.

    Attributes:
        name: as it was given.
        value: what its function returned.
        problem: why it did not return; empty if it did.
    """

    name: Hashable
    value: Any
    problem: str = ""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Hashable = None


class Pool:
    """A fixed number of processes, started as they are needed; they end with the pool.

    Attributes:
        heard: called with what a task passes to `say`.
    """

    def __init__(self, processes: int, modules: Sequence[str], threads: int) -> None:
        """Args as in `start_forking`."""
        self.heard: Callable[..., None] = lambda *said: None
        self._most, self._modules, self._threads = processes, modules, threads
        self._workers: list[_Worker] = []
        self._queue: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._ended: list[Ended] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        end([worker.process for worker in self._workers])
        self._workers = []

    @property
    def busy(self) -> bool:
        """Return whether a task waits, is worked on, or has ended without having been fetched."""
        return bool(self._queue or self._ended or any(worker.task is not None for worker in self._workers))

    def put(self, name: Hashable, function: Callable[..., Any], *args: Any) -> None:
        """Have a process call a function, in the order of these calls; both have to be picklable.

        Args:
            name: identifies the task until it has been fetched.
            function: of a module.
            args: its arguments.
        """
        self._queue[name] = function, args
        self._employ()

    def drop(self, name: Hashable) -> None:
        """Forget a task, and end the process that works on it."""
        self._queue.pop(name, None)
        self._ended = [ended for ended in self._ended if ended.name != name]
        for worker in [worker for worker in self._workers if worker.task == name]:
            self._remove(worker)

    def fetch(self, seconds: float | None = 0.0) -> list[Ended]:
        """Return the tasks that have ended since the last call.

        Args:
            seconds: how long to wait for one, if there are others; None: until there is one.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            self._listen(0.0 if self._ended else left)
            if self._ended or not self.busy or (until is not None and time.monotonic() >= until):
                found, self._ended = self._ended, []
                return found

    def _listen(self, seconds: float | None) -> None:
        """Read what processes have sent, and note which of them died."""
        at_work = {worker.connection: worker for worker in self._workers if worker.task is not None}
        for connection in wait(list(at_work), seconds) if at_work else ():
            worker = at_work[connection]  # type: ignore[index]
            try:
                kind, *content = worker.connection.recv()
            except (EOFError, OSError):  # also broken off within a message
                self._remove(worker, _PATIENCE)
                code = worker.process.exitcode
                how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
                self._ended.append(Ended(worker.task, None, f"its process ended {how}"))
                continue
            if kind == _SAID:
                self.heard(*content)
            elif kind == _LOGGED:
                name, level, text = content
                logging.getLogger(name).log(level, "%s", text)
            else:
                value, problem = content
                self._ended.append(Ended(worker.task, value, problem))
                worker.task = None
        self._employ()

    def _remove(self, worker: _Worker, patience: float = 0.0) -> None:
        self._workers.remove(worker)
        worker.process.join(patience)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.connection.close()

    def _employ(self) -> None:
        while self._queue and (worker := self._idle()) is not None:
            name = next(iter(self._queue))
            worker.task = name
            with contextlib.suppress(OSError):  # it has died; `_listen` reads the end of its connection
                worker.connection.send(self._queue.pop(name))

    def _idle(self) -> _Worker | None:
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            if worker.task is None:  # it died while it had nothing to do
                self._remove(worker)
        idle = next((worker for worker in self._workers if worker.task is None), None)
        if idle is None and len(self._workers) < self._most:
            start_forking(self._modules, self._threads)
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            idle = _Worker(process, ours)
            self._workers.append(idle)
        return idle


class _Line:
    """A process's connection to the pool; several threads may send."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self._lock = threading.Lock()

    def send(self, *content: Any) -> None:
        if self.connection is not None:
            try:
                with self._lock:
                    self.connection.send(content)
            except OSError:  # the pool's process has ended
                os._exit(1)


_line = _Line()


class _Passes(logging.Handler):
    """Passes log records on to the pool's process, which shows them as its own."""

    def emit(self, record: logging.LogRecord) -> None:
        _line.send(_LOGGED, record.name, record.levelno, self.format(record))


def say(*content: Any) -> None:
    """Pass something to `Pool.heard`, from a task; nothing happens outside a pool."""
    _line.send(_SAID, *content)


def _work(connection: Connection) -> None:
    """Do tasks until the pool's process ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the pool's process, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    logging.getLogger().addHandler(_Passes())
    _line.connection = connection
    gc.freeze()  # collections then look at the tasks' own objects alone
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            value, problem = function(*args), ""
        except Exception as error:
            value, problem = None, f"{type(error).__name__}: {error}"
        try:
            _line.send(_DONE, value, problem)
        except Exception as error:  # it cannot be pickled
            _line.send(_DONE, None, f"{type(error).__name__}: {error}")
        del function, args, value
        gc.collect()  # Flower's messages, with an encoder each, are in reference cycles


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
