"""A pool of processes that may die, with bounded memory, in which one file does not stop the others."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TypeVar

from sscxr.data.pixels import quiet
from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.facts import Refused
from sscxr.errors import SscxrError

IN_FLIGHT = 4  # tasks handed to a worker: enough to keep it busy, few enough to bound memory
TIME_LIMIT = 120  # seconds for one file; the largest take two
MEMORY_LIMIT = 12 << 30  # bytes a worker may take at most; all workers together at most the machine's
LEAST_MEMORY = 2 << 30  # bytes a worker needs; the largest images take less
KEPT_MEMORY = 512 << 20  # bytes that a worker keeps from one file for the next (ours)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

Key = TypeVar("Key")


class WorkerError(SscxrError):
    """Worker processes cannot run here."""


def default_workers() -> int:
    """Return as many workers as cores and memory allow, at most 8: the disk soon limits reading."""
    return max(1, min(8, len(os.sched_getaffinity(0)), physical_memory() // LEAST_MEMORY))


def memory_share(workers: int) -> int:
    """Return the bytes that each of so many workers may take."""
    return min(MEMORY_LIMIT, physical_memory() // max(workers, 1))


def physical_memory() -> int:
    """Return the machine's main memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def decode(tasks: Iterable[tuple[Key, Task]], workers: int) -> Iterator[tuple[Key, Prepared | Refused]]:
    """Decode files in `workers` processes (0: in this one), in the order they finish.

    A worker that dies ends its pool. The files in flight are then retried one by one, so that the file that kills
    workers is found and refused, and the rest continues.
    """
    if workers == 0:
        yield from ((key, attempt(task)) for key, task in tasks)
        return
    waiting = iter(tasks)
    while True:
        suspects: list[tuple[Key, Task]] = []
        yield from _until_broken(waiting, workers, suspects)
        if not suspects:
            return
        for key, task in suspects:
            yield key, _alone(task)


def in_order(tasks: Iterable[Task], workers: int) -> Iterator[Prepared | Refused]:
    """Decode files like `decode`, but in order; a few results per worker are buffered."""
    waiting: dict[int, Prepared | Refused] = {}
    following = 0
    for number, outcome in decode(enumerate(tasks), workers):
        waiting[number] = outcome
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _until_broken(
    waiting: Iterator[tuple[Key, Task]], workers: int, suspects: list[tuple[Key, Task]]
) -> Iterator[tuple[Key, Prepared | Refused]]:
    """Yield results until all tasks are done or a worker dies; then `suspects` has the tasks in flight."""
    in_flight: dict[Future[Prepared | Refused], tuple[Key, Task]] = {}
    pool = _pool(workers)
    try:
        while True:
            for key, task in islice(waiting, workers * IN_FLIGHT - len(in_flight)):
                try:
                    in_flight[pool.submit(_limited, task)] = (key, task)
                except BrokenProcessPool:
                    suspects.append((key, task))
                    break
            if not in_flight and not suspects:
                return
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done if in_flight else ():
                key, task = in_flight.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    suspects.append((key, task))
                else:
                    yield key, result
            if suspects:
                suspects += in_flight.values()
                return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(task: Task) -> Prepared | Refused:
    with _pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:  # not the file's fault
            raise WorkerError("worker processes die as they start; free memory, or use --workers 0") from None
        try:
            return pool.submit(_limited, task).result()
        except BrokenProcessPool:
            return Refused(
                "kills its reader", f"decoding crashed, or took more than {TIME_LIMIT} s or all memory"
            )


def _pool(workers: int) -> ProcessPoolExecutor:
    # A fork server: workers share no lock or thread with the parent, and start in milliseconds once it runs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_main_modules()])
    start_fork_server()
    share = memory_share(workers)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(share,))


def start_fork_server() -> None:
    """Start it, if this is the main thread, with Ctrl-C ignored: it would show a traceback while it imports."""
    from multiprocessing import forkserver

    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set signals; the pool then starts the server itself
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _main_modules() -> list[str]:
    """Return the imports of the program's main module, which every worker imports too: quick in a fork."""
    values = vars(sys.modules["__main__"]).values()
    names = {getattr(value, "__module__", None) or getattr(value, "__name__", None) for value in values}
    return sorted(
        name for name in names if isinstance(name, str) and name in sys.modules and name != "__main__"
    )


def _limited(task: Task) -> Prepared | Refused:
    # The alarm's default action ends the process, even one that hangs in a decoder's C code.
    signal.alarm(TIME_LIMIT)
    try:
        return attempt(task)
    finally:
        signal.alarm(0)


def _start_worker(memory: int) -> None:
    """Silence and limit the worker, and end it when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    quiet.silence_loggers()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg and others print from C
    _limit_memory(memory)
    _keep_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _keep_memory() -> None:
    """Reuse one file's memory for the next: glibc returns large blocks, and the kernel clears their pages."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)


def _limit_memory(memory: int) -> None:
    """Limit further allocations; addresses that libraries reserve but never fill do not count."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + memory
    if soft != resource.RLIM_INFINITY:
        limit = min(soft, limit)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
