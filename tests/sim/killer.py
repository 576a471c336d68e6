"""Runs `sim.run` in forked children and kills them where asked; a program, so that torch is imported once for all.

Says "ready", then reads jobs from stdin, one JSON object a line, and answers each with its exit status (negative:
the signal) and what it printed:

    argv    of `python -m sim.run`
    log     file for what it prints
    at      "module:function" to die in; absent: nowhere
    call    at its n-th call, from 1
    when    "before" it does anything, or "after" it did everything, but before it returns
    after   seconds after which to kill it instead
    once    a file: to kill it as soon as that is there
    signal  with which to do so; default: SIGKILL
"""

import functools
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def mine(at: str, call: int, when: str) -> None:
    """Let the process die at the n-th call of a function."""
    module, _, path = at.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    @functools.wraps(real)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def child(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin.close()
    sys.argv = ["sim.run", *job["argv"]]
    code = 70
    try:
        if "at" in job:
            mine(job["at"], job["call"], job["when"])
        from sim import run

        run.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plain() -> None:
    """Leave out what takes half of a small run's time and is compared by no test here: charts and the map."""
    from sim import holdings, pictures
    from sscxr.report import svg

    svg.draw = lambda *_, **__: "<svg></svg>"
    holdings.picture = lambda *_: b""
    pictures.plane = lambda features, seed: features[:, :2]


def main() -> None:
    for name in (
        "sim.run",
        "sim.asked",
        "sim.data",
        "sim.engine",
        "sim.outcome",
        "sim.progress",
        "sim.sites",
        "client.app",
        "sscxr.data.cache.view",
    ):
        importlib.import_module(name)
    plain()
    gc.freeze()  # children look for garbage among their own objects alone
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            child(job)
        if "after" in job or "once" in job:
            time.sleep(job.get("after", 0))
            until = time.monotonic() + 60
            while "once" in job and not Path(job["once"]).exists() and time.monotonic() < until:
                time.sleep(0.005)
            os.kill(pid, job.get("signal", signal.SIGKILL))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, "log": Path(job["log"]).read_text()}), flush=True)


if __name__ == "__main__":
    main()
