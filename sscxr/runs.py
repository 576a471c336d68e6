"""Reads a run's folder from its files alone, at any time: also while the run is going, and after it died.

`server/ledger.py` and `server/status.py` write these files, with the columns and fields defined here.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sscxr.errors import SscxrError
from sscxr.files import expanded, is_locked

if TYPE_CHECKING:  # pandas is imported by the functions that make tables: watching a run does not need it
    import pandas as pd

CONFIG, WORDS, STATUS, SITES, ROUNDS, PROBES, SCORES = (
    "config.yaml", "words.json", "status.json", "sites.csv", "rounds.jsonl", "probes.json", "scores.json",
)  # fmt: skip
ALONE = "alone.json"  # a pretraining's encoder against those of sites alone
FEW = "few.json"  # its probes with few labels
OWN, EVERYBODY = "own", "everybody's"  # whose held-out patients a figure of a site is of
USUAL = "~/.sscxr/runs"  # where a server keeps a run without a given folder
LOCK = "checkpoints/lock"  # held by the process of a running run


# A site whose cosine with the others is below this in so many rounds in a row is named; ours, run-a-federation.md.
_AGAINST, _AGAINST_ROUNDS = -0.05, 3


class RunError(SscxrError):
    """A folder is not a run, or a file of it cannot be read; one line states why."""


@dataclass(frozen=True)
class Words:
    """The names of a run's kind, loss and score in reports and on cards.

    Attributes:
        kind: the kind of run, as a title.
        made: how its encoder came to be; a card has it behind "an encoder".
        loss: the name of the loss.
        axis: the same, with its unit.
        meaning: sentences on the loss and the score.
        score: the name of the second held-out figure; empty: none.
        pictures: a sentence on the reconstructions that a report shows; empty: none.
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
    """One row of `sites.csv`: the outcome of one site in one attempt at one round.

    Attributes:
        round: counted from 1, as in all displayed figures.
        loss: mean over the round's steps; None without a reply.
        update_norm: L2 norm of its update.
        bytes: of its update as sent, folded or refused.
        outcome: folded, refused, failed, late, absent; dropped: folded in an attempt without quorum.
        reason: why it was not folded; or a note if it was.
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
    """The state of a run.

    Attributes:
        state: running; finished: its encoder is released; stopped: it cannot continue now, its state is saved;
            failed: by an error; died: its process ended unexpectedly.
        round: the number of rounds done.
        rounds: the number of rounds in all.
        reason: of a stop or a failure.
        updated: ISO time, UTC.
        since: ISO time at which the open round began; empty if no round is open.
        expected: how many sites were asked in the open round.
        waiting: the sites that have not replied in it.
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
        """Return the seconds since the open round began; 0 if none is open."""
        if not self.since:
            return 0.0
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.since)).total_seconds())

    def line(self) -> str:
        """Return the outcome as in a log's last line."""
        return f"{self.state} after round {self.round} of {self.rounds}{': ' if self.reason else ''}{self.reason}"


def natural(name: object) -> list[tuple[str, int]]:
    """Return a key that sorts names naturally: site-2 before site-10."""
    parts = re.split(r"([0-9]+)", str(name))
    return [(word, int(number or -1)) for word, number in zip_longest(parts[::2], parts[1::2], fillvalue="")]


def find(run: str | Path) -> Path:
    """Return the folder of a run given by its path, or by its name in the server's usual place.

    Raises:
        RunError: the folder does not exist; the error names the places that were tried.
    """
    here = expanded(run)
    places = [here]
    found = any((here / name).is_file() for name in (STATUS, CONFIG))
    if len(here.parts) == 1 and not found:  # if found, an account without a home folder is not an error
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
    """Return the state of a run; one whose process has ended is reported as died.

    Raises:
        RunError: not a run, or an unreadable file.
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
        return now  # it ended between the two reads
    reason = "its process ended unexpectedly; resume it"
    return Status(**asdict(status) | {"state": "died", "reason": reason})


def read_sites(file: Path) -> "pd.DataFrame":
    """Read the rows of a `sites.csv`, with names as text (a site may be called NA or 007); empty without a file.

    Raises:
        RunError: it is not such a table.
    """
    return read_table(file, SITE_COLUMNS, words=("site", "outcome", "reason"))


def read_table(file: Path, columns: Sequence[str], words: Sequence[str]) -> "pd.DataFrame":
    """Read a run's CSV of these columns, those in `words` as text, the others as numbers; empty without a file.

    Raises:
        RunError: it is not such a table.
    """
    import pandas as pd

    text = whole_lines(file)
    if not text:
        return pd.DataFrame(columns=list(columns))
    empty = {name: [""] for name in columns if name not in words}
    kinds = dict.fromkeys(words, str)
    try:
        rows = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=empty)
    except ValueError:  # also from pandas' parser
        raise RunError(f"{file}: not readable as a table") from None
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise RunError(f"{file}: not readable, it has no column {missing[0]!r}")
    return rows


def read_rounds(file: Path) -> list[dict[str, Any]]:
    """Read the records of a `rounds.jsonl`; none without a file.

    Raises:
        RunError: a line is not a round's record.
    """
    try:
        records = [json.loads(line) for line in whole_lines(file).splitlines()]
    except ValueError:
        raise RunError(f"{file}: not readable, a line of it is not JSON") from None
    if not all(isinstance(record, dict) and "round" in record for record in records):
        raise RunError(f"{file}: not readable, a line of it is not a round's record")
    return records


def against(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sites whose updates lately pointed against the others', and their mean cosine with these.

    Args:
        rounds: records of `rounds.jsonl`, the oldest first.
    """
    cosines: dict[str, list[float]] = {}
    for record in rounds:
        for site, cosine in record.get("agreement", {}).items():
            cosines.setdefault(site, []).append(float(cosine))
    last = {site: found[-_AGAINST_ROUNDS:] for site, found in cosines.items()}
    return {
        site: round(sum(found) / len(found), 3)
        for site, found in sorted(last.items())
        if len(found) == _AGAINST_ROUNDS and max(found) < _AGAINST
    }


def against_in_words(site: str, cosine: float) -> str:
    """Return the sentence on a site that `against` names."""
    return (
        f"the updates of {site} point against the other sites' (mean cosine {cosine:g} in the last "
        f"{_AGAINST_ROUNDS} rounds): ask it about its images and its code"
    )


def whole_lines(file: Path) -> str:
    """Return the complete lines of a text that another process may be appending to."""
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
        words = Words(**json.loads((out / WORDS).read_text(encoding="utf-8")))
        if [*map(type, asdict(words).values())] != [*map(type, asdict(Words()).values())]:
            raise TypeError
        return words
    except (OSError, ValueError, TypeError):
        raise RunError(f"{out / WORDS}: not readable, it does not hold a run's words") from None


def read_list(file: Path) -> list[Any]:
    """Read a JSON list that is written atomically; empty without a file.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        raise RunError(f"{file}: not readable as JSON") from None
