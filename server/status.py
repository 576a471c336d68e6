"""How a run stands: `status.json` in its folder, and a lock that tells a run that goes on from one that died.

`flwr run` exits 0 whatever became of the run; this does not.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sscxr.files import expanded, locked, refuse_file, write_atomically
from sscxr.runs import LOCK, STATUS, USUAL, Status

EXIT_CODES = {"finished": 0, "running": 3}  # anything else: 1
_LOOKERS = 1.0  # seconds; one who asks how the run stands has the lock for an instant


def folder_of(run: str) -> Path:
    """Where a server writes a run that is given by its path or by its name; `sscxr.runs.find` looks for one."""
    path = expanded(run)
    return path if len(path.parts) > 1 else expanded(USUAL, "give an absolute path") / run


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises:
        LedgerError, ExistsError: another process holds it; it is a file.
    """
    from server.ledger import LedgerError  # here: it brings torch, and who watches waits for none

    refuse_file(out)
    file = out / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    refusal = LedgerError(f"the run in {out} is going on in another process; wait for it, or end it")
    with locked(file, refusal, patience=_LOOKERS):
        yield


def write(out: Path, state: str, *, done: int, rounds: int, reason: str = "") -> Status:
    """Write how the run stands now."""
    status = Status(state, done, rounds, reason, _now())
    write_atomically(out / STATUS, _text(status))
    return status


def of_round(record: Mapping[str, Any], rounds: int, left: str = "") -> str:
    """A committed round in a line."""
    loss, held_out = record["loss"], record.get("held_out_loss")
    parts = [
        f"round {record['round']} of {rounds}: {record['sites']} of {record['roster']} sites",
        "" if loss is None else f"loss {loss:.4f}",
        "" if held_out is None else f"held-out loss {held_out:.4f}",
        f"{record['seconds']:.1f} s",
        left,
    ]
    return ", ".join(part for part in parts if part)


def of_site(row: Mapping[str, Any]) -> str:
    """A site that something is to be said of in a round, in a line."""
    return f"round {row['round']}: {row['site']} {row['outcome']}: {row['reason']}"


class Open:
    """The round that is open, told in the status file after each reply, for those who watch."""

    def __init__(self, out: Path, *, done: int, rounds: int, sites: Iterable[str]) -> None:
        """Say that the sites were asked."""
        self._out, self._waiting = out, set(sites)
        self._status = Status("running", done, rounds, "", "", _now(), len(self._waiting))
        self._tell()

    def heard(self, site: str) -> None:
        """Say that one has replied."""
        self._waiting.discard(site)
        self._tell()

    def _tell(self) -> None:
        # Unlike a round's end it need not reach the disk: it is only looked at, and written anew at each reply.
        partial = self._out / f".{STATUS}.open"
        partial.write_bytes(_text(replace(self._status, updated=_now(), waiting=sorted(self._waiting))))
        partial.replace(self._out / STATUS)


def _text(status: Status) -> bytes:
    return (json.dumps(asdict(status), indent=1) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
