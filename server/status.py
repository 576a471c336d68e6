"""How a run stands: `status.json` in its folder, and a lock that tells a run that goes on from one that died.

`flwr run` exits 0 whatever became of the run; this does not.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from server.ledger import LedgerError
from sscxr.files import try_lock, write_atomically
from sscxr.runs import LOCK, STATUS, Status

RUNS = "~/.sscxr/runs"
EXIT_CODES = {"finished": 0, "running": 3}  # anything else: 1
_LOOKERS = 1.0  # seconds; one who asks how the run stands has the lock for an instant


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
    file = out / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        until = monotonic() + _LOOKERS
        while not try_lock(handle, fcntl.LOCK_EX):
            if monotonic() > until:
                raise LedgerError(f"the run in {out} is going on in another process; wait for it, or end it")
            sleep(0.05)
        yield


def write(out: Path, state: str, *, done: int, rounds: int, reason: str = "") -> Status:
    """Write how the run stands now."""
    status = Status(state, done, rounds, reason, datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(out / STATUS, (json.dumps(asdict(status), indent=1) + "\n").encode())
    return status
