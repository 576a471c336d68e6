"""How a run stands: `status.json` in its folder, and a lock that tells a run that goes on from one that died.

`flwr run` exits 0 whatever became of the run; this does not.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from server.ledger import LedgerError
from sscxr.files import write_atomically

RUNS = "~/.sscxr/runs"
EXIT_CODES = {"finished": 0, "running": 3}  # anything else: 1
_FILE, _LOCK = "status.json", "checkpoints/lock"
_LOOKERS = 1.0  # seconds; one who asks how the run stands has the lock for an instant


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        state: running; finished: its encoder is released; stopped: it cannot go on now, its state is saved;
            failed: by an error; died: its process ended without a word.
        round: the rounds that are done.
        rounds: the rounds that there will be.
        reason: of a stop or a failure.
        updated: ISO time, UTC.
    """

    state: str
    round: int
    rounds: int
    reason: str
    updated: str

    def line(self) -> str:
        """The outcome, as a log's last line has it."""
        return f"{self.state} after round {self.round} of {self.rounds}{': ' if self.reason else ''}{self.reason}"


def folder_of(run: str) -> Path:
    """The folder of a run that is given by its path, or by its name where it is in the usual place."""
    path = Path(run).expanduser()
    return path if len(path.parts) > 1 else Path(RUNS).expanduser() / run


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises:
        LedgerError: another process holds it.
    """
    file = out / _LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        until = monotonic() + _LOOKERS
        while not _locks(handle, fcntl.LOCK_EX):
            if monotonic() > until:
                raise LedgerError(f"the run in {out} is going on in another process; wait for it, or end it")
            sleep(0.05)
        yield


def write(out: Path, state: str, *, done: int, rounds: int, reason: str = "") -> Status:
    """Write how the run stands now."""
    status = Status(state, done, rounds, reason, datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(out / _FILE, (json.dumps(asdict(status), indent=1) + "\n").encode())
    return status


def read(out: Path) -> Status:
    """How the run stands, a dead one told from a live one.

    Raises:
        LedgerError: no run, or an unreadable file.
    """
    try:
        status = Status(**json.loads((out / _FILE).read_text()))
    except FileNotFoundError:
        raise LedgerError(f"{out}: no run has started there (no {_FILE})") from None
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(f"{out / _FILE}: not readable ({type(error).__name__})") from None
    if status.state != "running" or _is_locked(out):
        return status
    reason = "its process ended without a word; resume it"
    return Status("died", status.round, status.rounds, reason, status.updated)


def _is_locked(out: Path) -> bool:
    try:
        with (out / _LOCK).open() as handle:
            return not _locks(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _locks(handle: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
