"""Workers that die, or look at their memory; in a module of their own, so that workers can import it."""

import os
import resource
import signal

from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.facts import Refused


def limited(task: Task) -> Prepared | Refused:
    if task.file.name == "7.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt(task)


def greedy(task: Task) -> Prepared | Refused:
    """What a decoder may do that is lied to about a size."""
    try:
        bytearray(int(task.file.name))
    except MemoryError:
        return Refused("too large")
    return Refused("fits")


def die(memory: int) -> None:
    os._exit(1)


def faults() -> int:
    """Pages that the kernel clears for a second 48 MB, the first having been freed: all 12,288, or none."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
