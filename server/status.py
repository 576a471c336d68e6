"""The state of a run: `status.json` in its folder, and a lock that distinguishes a running run from a dead one.

`flwr run` exits 0 even if the run failed; `sscxr run-status` does not.
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
_LOOKERS = 1.0  # seconds; a reader of the status holds the lock for an instant


def folder_of(run: str) -> Path:
    """Return the folder for a run given by path or name; `sscxr.runs.find` finds an existing one."""
    path = expanded(run)
    return path if len(path.parts) > 1 else expanded(USUAL, "give an absolute path") / run


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder.

    Raises:
        LedgerError: another process holds it.
        ExistsError: `out` is a file.
    """
    from server.ledger import LedgerError  # here: it brings torch, and who watches waits for none

    refuse_file(out)
    file = out / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    refusal = LedgerError(f"the run in {out} is going on in another process; wait for it, or end it")
    with locked(file, refusal, patience=_LOOKERS):
        yield


def write(out: Path, state: str, *, done: int, rounds: int, reason: str = "") -> Status:
    """Write and return the run's state now."""
    status = Status(state, done, rounds, reason, _now())
    write_atomically(out / STATUS, _text(status))
    return status


def of_round(record: Mapping[str, Any], rounds: int, left: str = "") -> str:
    """Return a line about a committed round."""
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
    """Return a line about a site's outcome in a round."""
    return f"round {row['round']}: {row['site']} {row['outcome']}: {row['reason']}"


class Open:
    """The round in progress, written to the status file after each reply, for `sscxr watch`."""

    def __init__(self, out: Path, *, done: int, rounds: int, sites: Iterable[str]) -> None:
        """Record that the sites were asked."""
        self._out, self._waiting = out, set(sites)
        self._status = Status("running", done, rounds, "", "", _now(), len(self._waiting))
        self._tell()

    def heard(self, site: str) -> None:
        """Record that a site has replied."""
        self._waiting.discard(site)
        self._tell()

    def _tell(self) -> None:
        # Unlike a round's end, this need not be synced to disk: it is only displayed, and rewritten at each
        # reply.
        partial = self._out / f".{STATUS}.open"
        partial.write_bytes(_text(replace(self._status, updated=_now(), waiting=sorted(self._waiting))))
        partial.replace(self._out / STATUS)


def _text(status: Status) -> bytes:
    return (json.dumps(asdict(status), indent=1) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
