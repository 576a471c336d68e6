"""A run's folder, read from its files alone, at any time: also while the run goes on, and after it died.

`server/ledger.py` and `server/status.py` write these files; both ends of what is in them are here.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sscxr.errors import SscxrError
from sscxr.files import expanded, is_locked

if TYPE_CHECKING:  # pandas is imported by what makes tables: who watches a run has no need of it
    import pandas as pd

CONFIG, WORDS, STATUS, SITES, ROUNDS, PROBES, SCORES = (
    "config.yaml", "words.json", "status.json", "sites.csv", "rounds.jsonl", "probes.json", "scores.json",
)  # fmt: skip
USUAL = "~/.sscxr/runs"  # where a server keeps a run whose folder is not given
LOCK = "checkpoints/lock"  # held by the process that the run goes on in


class RunError(SscxrError):
    """A folder that is no run's, or a file of it that cannot be read: one line that says why."""


@dataclass(frozen=True)
class Words:
    """What a run trains, its loss and its score are called, for reports and cards.

    Attributes:
        kind: of run, a title.
        made: how its encoder came to be; a card has it behind "an encoder".
        loss: the name of the loss.
        axis: the same, with its unit.
        meaning: sentences on the loss and the score.
        score: the name of the second held-out figure; empty: there is none.
        pictures: a sentence on the reconstructions that a report shows; empty: nothing is to be added.
        task: whether it learns a task from labels or masks; its model is then compared with each site's own.
    """

    kind: str = "Federated training"
    made: str = "trained"
    loss: str = "loss"
    axis: str = "loss"
    meaning: str = ""
    score: str = ""
    pictures: str = ""
    task: bool = False


@dataclass(frozen=True)
class SiteRow:
    """One row of `sites.csv`: what came of one site in one attempt at one round.

    Attributes:
        round: counted from 1, as in every figure that a person sees.
        loss: mean over the round's steps; None where there was no reply.
        update_norm: L2 norm of its update.
        bytes: of its update as sent, folded or refused.
        outcome: folded, refused, failed, late, absent; a round without quorum folds nothing for good.
        reason: why, where it was not folded; a note where it was.
    """

    round: int
    site: str
    images: int | None
    loss: float | None
    update_norm: float | None
    seconds: float | None
    bytes: int | None
    outcome: str
    reason: str


SITE_COLUMNS = tuple(item.name for item in fields(SiteRow))


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
        since: ISO time at which the round began that is open now; empty: none is.
        expected: the sites that were asked in it.
        waiting: those of them that have not replied.
    """

    state: str
    round: int
    rounds: int
    reason: str
    updated: str
    since: str = ""
    expected: int = 0
    waiting: list[str] = field(default_factory=list)

    def age(self) -> float:
        """Seconds since the open round began; 0 where none is open."""
        if not self.since:
            return 0.0
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.since)).total_seconds())

    def line(self) -> str:
        """The outcome, as a log's last line has it."""
        return f"{self.state} after round {self.round} of {self.rounds}{': ' if self.reason else ''}{self.reason}"


def natural(name: object) -> list[tuple[str, int]]:
    """A key to sort names by as people do: site-2 comes before site-10."""
    parts = re.split(r"([0-9]+)", str(name))
    return [(word, int(number or -1)) for word, number in zip_longest(parts[::2], parts[1::2], fillvalue="")]


def find(run: str | Path) -> Path:
    """The folder of a run that is given by its path; or by its name, where the server keeps it in the usual place.

    Raises:
        RunError: there is no such folder; it says where it was looked for.
    """
    here = expanded(run)
    places = [here]
    found = any((here / name).is_file() for name in (STATUS, CONFIG))
    if len(here.parts) == 1 and not found:  # where it is, an account without a home need have none
        places.append(expanded(USUAL, "give the run's path, with a slash in it") / here)
    for place in places:
        if (place / STATUS).is_file() or (place / CONFIG).is_file():
            return place
    for place in places:
        if place.is_dir():
            return place
    looked = " nor ".join(str(place.absolute()) for place in places)
    raise RunError(f"no run {str(run)!r}: there is {'neither' if len(places) > 1 else 'no'} {looked}")


def read_status(out: Path, *, again: bool = True) -> Status:
    """How a run stands, a dead one told from a live one.

    Raises:
        RunError: no run, or an unreadable file.
    """
    try:
        status = Status(**json.loads((out / STATUS).read_text()))
    except FileNotFoundError:
        raise RunError(f"{out}: no run has started there (no {STATUS})") from None
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{out / STATUS}: not readable ({type(error).__name__})") from None
    if status.state != "running" or is_locked(out / LOCK):
        return status
    if again and (now := read_status(out, again=False)).state != "died":
        return now  # it ended between the two looks
    reason = "its process ended without a word; resume it"
    return Status(**asdict(status) | {"state": "died", "reason": reason})


def read_sites(file: Path) -> "pd.DataFrame":
    """The rows of a `sites.csv`, names as they are written (a site may be called NA or 007); empty without one.

    Raises:
        RunError: it is no such table.
    """
    return read_table(file, SITE_COLUMNS, words=("site", "outcome", "reason"))


def read_table(file: Path, columns: Sequence[str], words: Sequence[str]) -> "pd.DataFrame":
    """A run's CSV of these columns, those of `words` as they are written, the others numbers; empty without one.

    Raises:
        RunError: it is no such table.
    """
    import pandas as pd

    text = whole_lines(file)
    if not text:
        return pd.DataFrame(columns=list(columns))
    empty = {name: [""] for name in columns if name not in words}
    kinds = dict.fromkeys(words, str)
    try:
        rows = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=empty)
    except ValueError:  # of pandas' parser too
        raise RunError(f"{file}: not readable as a table") from None
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise RunError(f"{file}: not readable, it has no column {missing[0]!r}")
    return rows


def read_rounds(file: Path) -> list[dict[str, Any]]:
    """The records of a `rounds.jsonl`, as the server wrote them; none without one.

    Raises:
        RunError: a line of it is no round's record.
    """
    try:
        records = [json.loads(line) for line in whole_lines(file).splitlines()]
    except ValueError:
        raise RunError(f"{file}: not readable, a line of it is no JSON") from None
    if not all(isinstance(record, dict) and "round" in record for record in records):
        raise RunError(f"{file}: not readable, a line of it is no round's record")
    return records


def whole_lines(file: Path) -> str:
    """A text that another process may be adding to, without the half line at its end."""
    try:
        text = file.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return text[: text.rfind("\n") + 1]


def read_words(out: Path) -> Words:
    """Return the words of a run; of one that was made before they were kept, the general ones.

    Raises:
        RunError: the file cannot be read.
    """
    if not (out / WORDS).is_file():
        return Words()
    try:
        return Words(**json.loads((out / WORDS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise RunError(f"{out / WORDS}: not readable, it does not hold a run's words") from None


def read_list(file: Path) -> list[Any]:
    """A JSON list that is there whole or not at all; empty where it is not there.

    Raises:
        RunError: it is there and cannot be read.
    """
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        raise RunError(f"{file}: not readable as JSON") from None
