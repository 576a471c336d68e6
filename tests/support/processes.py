"""Processes that carry a mark in their environment, what they start in turn too, and that end by their pids."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

from simulations import environment

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def _end_with_us() -> None:
    """Let this process be ended with the tests' own, where those are killed; Flower's children follow theirs."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class DeploymentError(AssertionError):
    """Something of the federation did not come up or did not end; the text says what it logged."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(there: Callable[[], Any], limit: float, what: str, every: float = 0.2) -> Any:
    """What `there` returns, once it is something.

    Raises:
        DeploymentError: nothing within `limit` seconds.
    """
    until = monotonic() + limit
    while not (found := there()):
        if monotonic() > until:
            raise DeploymentError(f"{what}: not within {limit:g} s")
        sleep(every)
    return found


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Part:
    """One of the federation's processes, and whatever it starts in turn.

    Attributes:
        name: superlink, nginx, a site's name, or the name of a test's own.
        log: what it prints, after what an earlier one of that name did.
        start: bytes of the log that were there before.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    start: int

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """What this one printed so far."""
        return self.log.read_bytes()[self.start :].decode(errors="replace")


@dataclass
class Processes:
    """The parts of a federation, by name, and their logs in a folder.

    `pids` and `kill` find by the command line what a part started in turn: `kill("superlink", "flwr-serverapp")`,
    `kill("hospital-a", "flwr-clientapp")`. Flower's detached processes carry the mark too.

    Attributes:
        folder: everything of it.
        parts: those that were started last under each name.
        mark: in the environment of each.
    """

    folder: Path
    parts: dict[str, Part] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.mark = str(self.folder)
        (self.folder / "logs").mkdir(parents=True)

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, *, of: str = ""
    ) -> Part:
        """Start a process; its log goes on where an earlier one's of that name ended.

        Args:
            of: the part that it is found and ended with; none: its own.
        """
        log = self.folder / "logs" / f"{name}.log"
        whole = environment(**env, SSCXR_MARK=self.mark, SSCXR_PART=of or name)
        del whole["PYTHONPATH"]  # a hospital has none
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=cwd, env=whole, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_us,
            )  # fmt: skip
        self.parts[name] = Part(name, process, log, start)
        return self.parts[name]

    def pids(self, part: str = "", command: str = "") -> list[int]:
        """Living processes of a part (all parts), whose command line has this text."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # gone, or another user's
                continue
            ours = f"SSCXR_MARK={self.mark}".encode() in variables
            if (
                ours
                and (not part or f"SSCXR_PART={part}".encode() in variables)
                and words
                and command in words
            ):
                found.append(int(folder.name))
        return sorted(found)

    def kill(self, part: str = "", command: str = "", number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to the processes of a part that match, all of them by default; the pids."""
        pids = self.pids(part, command)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if not command and part in self.parts and number == signal.SIGKILL:
            self.parts[part].process.wait(10)
        return pids

    def stop(self, part: str, limit: float = 20) -> None:
        """End a part as systemd does: SIGTERM to it and to what it started, SIGKILL to what is left."""
        self.kill(part, number=signal.SIGTERM)
        until = monotonic() + limit
        while self.pids(part) and monotonic() < until:
            self._reap()
            sleep(0.1)
        self.kill(part)

    def _reap(self) -> None:
        for part in self.parts.values():
            part.process.poll()

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for name in reversed(self.parts):
            self.kill(name, number=signal.SIGTERM)
        until = monotonic() + 5
        while self.pids() and monotonic() < until:
            self._reap()
            sleep(0.1)
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._reap()
            sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def logs(self) -> dict[str, str]:
        """What each part printed, its SuperExec and apps included."""
        files = sorted((self.folder / "logs").glob("*.log"))
        return {file.stem: file.read_text(errors="replace") for file in files}

    def tail(self, characters: int = 2500) -> str:
        """The logs' ends, for a failure's text."""
        return "\n".join(f"--- {name}\n{text[-characters:]}" for name, text in self.logs().items())
