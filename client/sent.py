"""The site's own record of what left through its service, a line of JSON each, in its state: `sscxr site log`.

The line is on the disk before the reply leaves. It is also how the service recognises a task that it has answered:
the server numbers its attempts, and sends each once, also after a crash.
"""

import datetime
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from client.settings import SiteError
from sscxr.federation import wire
from sscxr.files import private_folder

FILE = "_sent.jsonl"  # cannot be a run's folder

log = logging.getLogger("sscxr.site")


@dataclass(frozen=True)
class Sent:
    """A reply that left.

    Attributes:
        time: UTC, to the second.
        kind: one of `frames.KINDS`.
        run, stage, round, attempt: of the task; the round counts from 0.
        bytes: of the reply's fields and of its update.
    """

    time: str
    kind: str
    run: str
    stage: str
    round: int
    attempt: int
    bytes: int

    @property
    def words(self) -> str:
        """The line of `sscxr site log`."""
        what = {
            "query": "its name and number of images",
            "train": "an update",
            "evaluate": "figures",
            "keys": "public keys",
            "shares": "shares of its keys, sealed for other sites",
            "survivors": "a signature",
            "unmask": "shares of other sites' keys",
        }
        place = "" if self.kind == "query" else f" round {self.round + 1} attempt {self.attempt + 1}"
        return f"{self.time} {self.run} {self.stage}{place}: {what.get(self.kind, self.kind)}, {self.bytes} bytes"


def now(*, hours_ago: float = 0) -> str:
    """Return the time as the lines have it; they sort as times do."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours_ago)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def read(folder: Path) -> list[Sent]:
    """Return what left so far, the oldest first; a line that a power cut damaged is left out."""
    file, found, damaged = folder / FILE, [], 0
    if not file.exists():
        return []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            sent = Sent(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            damaged += 1
            continue
        if all(type(getattr(sent, field.name)) is field.type for field in fields(Sent)):
            found.append(sent)
        else:
            damaged += 1
    if damaged:
        log.warning("%s: damaged lines, which are left out: %d", file, damaged)
    return found


def add(folder: Path, sent: Sent) -> None:
    """Record a reply; on the disk when this returns."""
    private_folder(folder)
    handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        whole = size == 0 or os.pread(handle, 1, size - 1) == b"\n"
        text = ("" if whole else "\n") + json.dumps(asdict(sent), sort_keys=True) + "\n"
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def check_new(before: Sequence[Sent], kind: str, task: wire.Task) -> None:
    """Check that the site has not answered this attempt before; a query may come again.

    Args:
        before: what left so far.

    Raises:
        WireError: it has.
    """
    if kind == "query":
        return
    own = (kind, task.run, task.round, task.attempt)
    for sent in before:
        if (sent.kind, sent.run, sent.round, sent.attempt) == own:
            raise wire.WireError(
                f"a repeat: run {task.run} had its answer to {kind} in round {task.round + 1}, attempt "
                f"{task.attempt + 1}, at {sent.time}; a new run needs a new run.name"
            )


def trained_today(before: Sequence[Sent]) -> int:
    """Return how many updates left in the last 24 hours."""
    return sum(sent.kind == "train" and sent.time > now(hours_ago=24) for sent in before)


def check_daily(before: Sequence[Sent], most: int) -> None:
    """Check that fewer than `most` updates left in the last 24 hours; 0: any number may.

    Raises:
        SiteError: as many have left.
    """
    recent = trained_today(before)
    if 0 < most <= recent:
        raise SiteError(
            "not allowed", f"{recent} updates left in 24 hours; site.yaml allows limits.rounds_a_day={most}"
        )
