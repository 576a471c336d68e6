"""Workers that die; in a module of their own, so that workers can import it."""

import os
import signal

from sscxr.data.decode import Prepared, Task, attempt
from sscxr.data.facts import Refused


def limited(task: Task) -> Prepared | Refused:
    if task.file.name == "7.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt(task)


def die() -> None:
    os._exit(1)
