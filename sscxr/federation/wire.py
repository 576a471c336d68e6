"""Every message that crosses the network, field by field, for both client and server.

Only the fields of `Hello`, `TrainReply`, `EvaluateReply`, `SecureReply` and `Failure` leave a site. A message is a
flat record of numbers and short texts, and at most one encoder or update as bytes (`codecs`); in a secure sum, a
masked update (`lattice`) or keys and shares (`parcels`). No pickle.

Updates are deltas: the encoder after local training minus the encoder as the site decoded it.

The coordinator's app imports this module for each message: it must not import omegaconf, numpy or torch.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import (
    version,  # without importing these packages, which takes seconds
)
from typing import Any, Final, TypeVar

import sscxr
from sscxr.data.cache import FORMAT_VERSION
from sscxr.errors import SscxrError
from sscxr.printable import PLAIN_NAME

WIRE_VERSION = 8
RECORD = "sscxr"  # the name of the record of a message's fields
ARRAYS = "encoder"  # the name of the record of an encoder or an update, and of the one array in it

# Larger numbers of images and losses are refused; sums of smaller ones stay finite.
MAX_COUNT = 2**40
MAX_LOSS = 1e6
NO_SCORE = -1.0
NO_LOSS = -1.0

Scalar = str | int | float | bool
Record = dict[str, Scalar]

# Why a site did not do its task, in fixed words: an exception's own text never leaves.
FAILURES: Final[dict[str, str]] = {
    "fingerprint": "its recipe, wire format, cache format or package versions differ from the run's",
    "request": "the request was malformed, or repeated an earlier one",
    "not allowed": "the run asks for what its site settings do not allow",
    "not approved": "it has not approved this recipe: its site.yaml pins another, or none",
    "paused": "it is paused",
    "settings": "its site settings cannot be used",
    "name": "its site.yaml gives another name than the one that its key is registered under",
    "cache": "its cache cannot be used",
    "privacy": "its budget of differential privacy does not allow it",
    "few images": "it has too few images that the run can use",
    "time": "its training did not end in time",
    "loss": "its loss became NaN or infinite",
    "codec": "its update has values that the run's codec cannot represent",
    "memory": "it ran out of memory",
    "disk": "its disk is full",
    "busy": "it is at work on another task",
    "service": "its site service did not answer, or ended while it worked",
    "masks": "it refused a step of the secure sum, or lost its keys; its own log has the reason",
    "internal": "it failed; its own log has the reason",
}
_PLAIN_PART = re.compile(r"[a-z_]{1,20}=[A-Za-z0-9.+_-]{0,40}")  # of a fingerprint


class WireError(SscxrError):
    """An invalid message, update or name; one line states why."""


def check_name(name: str, what: str) -> str:
    """Check and return a site's or a run's name, which becomes a file name and a table cell: it must be plain."""
    if not PLAIN_NAME.fullmatch(name):
        raise WireError(
            f"{what} {name[:80]!r}: use 1 to 64 letters, digits, dots, dashes or underscores, "
            "the first a letter or digit"
        )
    return name


def fingerprint(recipe: str) -> str:
    """Return, as one line of JSON, what must agree at both ends for an update to have the same meaning.

    Args:
        recipe: `sscxr.config.recipe_hash`.
    """
    parts = {
        "wire": WIRE_VERSION,
        "cache": FORMAT_VERSION,
        "recipe": recipe,
        "sscxr": sscxr.__version__,
        "torch": version("torch").split("+")[0],
        "timm": version("timm"),
    }
    return json.dumps(parts, sort_keys=True)


def read_fingerprint(text: str) -> str:
    """Return a fingerprint that another machine sent, checked so that it can be shown.

    Raises:
        WireError: the text is not a fingerprint.
    """
    try:
        parts = json.loads(text[:1000])
        if isinstance(parts, dict) and all(_PLAIN_PART.fullmatch(f"{k}={v}") for k, v in parts.items()):
            return json.dumps(parts, sort_keys=True)
    except (ValueError, RecursionError):
        pass
    raise WireError("its fingerprint is malformed")


@dataclass(frozen=True)
class Task:
    """A task for a site, beside the encoder's arrays.

    Attributes:
        run: the run's name; the site keeps its state under it.
        round, attempt: the attempt at the round.
        base: the site's last folded generation, as `generation` names it; empty: no state yet.
        config: the run's settings, YAML.
        fingerprint: the site's must be equal.
        budget: seconds the site has.
        registered: the name that the site's key is registered under; in a query only.
        sites: in a secure sum, names with commas: those that shared their keys, or those whose updates arrived.
        norm, moment_norm: in a secure sum, the usual norm of an update (`limits.Pace.relative`; 0: none yet), and
            the largest of the change of its moments (0: no limit).
    """

    run: str
    round: int
    attempt: int
    base: str
    config: str
    fingerprint: str
    budget: float
    registered: str = ""
    sites: str = ""
    norm: float = 0.0
    moment_norm: float = 0.0


def generation(round_number: int, attempt: int) -> str:
    """Return the name of a site's state after one attempt at one round, e.g. `r00003-a01`."""
    return f"r{round_number:05d}-a{attempt:02d}"


# A site's messages: only the following five classes leave it, beside an update's arrays.


@dataclass(frozen=True)
class Hello:
    """A site's answer to a query.

    Attributes:
        site: its name.
        fingerprint: of its installation and of the recipe as it reads it; the recipe's part is empty if it could
            not read the query.
        images: how many it will train on in one epoch, as in its `TrainReply`; 0 if it could not read the query.
    """

    site: str
    fingerprint: str
    images: int


@dataclass(frozen=True)
class TrainReply:
    """A site's report on its training, beside the update's arrays.

    Attributes:
        site, round, attempt, fingerprint: identify the task.
        images: trained on in one epoch; its weight in the average. With differential privacy the number of patients
            that the site has made public.
        steps: optimiser steps.
        loss: mean over the steps; `NO_LOSS` with differential privacy.
        seconds: of training; 0 with differential privacy.
        state: "kept": it continued from its head and moments; "new": it had none yet; "lost": they were missing or
            damaged.
        epsilon, delta: what the run has cost a patient of the site so far, this update included; both 0 without
            differential privacy.
    """

    site: str
    round: int
    attempt: int
    fingerprint: str
    images: int
    steps: int
    loss: float
    seconds: float
    state: str
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class EvaluateReply:
    """A site's report on its held-out images.

    Attributes:
        images: how many were held out; 0 if fewer than the minimum cell.
        loss: the mean loss on them; 0 if `images` is 0.
        score: a classifier's mean AUROC on them or a segmenter's Dice, 0..1; `NO_SCORE` without one, or if a class
            has fewer images than the minimum cell.
        counts: JSON, table -> cell -> count over all the site's usable images, small cells suppressed
            (`suppress`), and a histogram of grey levels (`suppress_grey`). Tables and cells come from fixed
            lists, never from the site's own words.
    """

    site: str
    round: int
    images: int
    loss: float
    score: float
    counts: str = "{}"


@dataclass(frozen=True)
class SecureReply:
    """A site's answer to a step of a secure sum, beside the step's bytes.

    Attributes:
        site, round, attempt, fingerprint: identify the task.
        state: as in `TrainReply`; empty in the other steps.
    """

    site: str
    round: int
    attempt: int
    fingerprint: str
    state: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a site did not do its task: a key of `FAILURES`."""

    site: str
    failure: str


Message = Task | Hello | TrainReply | EvaluateReply | SecureReply | Failure
MessageT = TypeVar("MessageT", Task, Hello, TrainReply, EvaluateReply, SecureReply, Failure)


def to_record(message: Message) -> Record:
    """Return a message as a flat record."""
    return asdict(message)


def from_record(kind: type[MessageT], record: Mapping[str, object]) -> MessageT:
    """Read a message from a flat record.

    Raises:
        WireError: a field is missing, unexpected, not finite or of another type.
    """
    wanted = {item.name: item.type for item in fields(kind)}
    missing, unexpected = sorted(wanted.keys() - record.keys()), sorted(record.keys() - wanted.keys())
    if missing or unexpected:
        raise WireError(
            f"{kind.__name__} with fields missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {len(unexpected)}"
        )
    values: dict[str, Any] = {}
    for name, kind_of in wanted.items():
        value = record[name]
        if kind_of is float and type(value) is int:
            value = float(value)
        if type(value) is not kind_of:
            raise WireError(f"{kind.__name__}.{name} is {type(value).__name__}, expected {kind_of}")
        if isinstance(value, float) and not math.isfinite(value):
            raise WireError(f"{kind.__name__}.{name} is {value}")
        values[name] = value
    return kind(**values)


# Tables of counts that a site may report, and their cells.
COUNT_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "view": ("PA", "AP", "AP supine", "L", "unknown"),
    "sex": ("F", "M", "unknown"),
    "age": ("0-4", "5-17", "18-39", "40-59", "60-79", "80+", "paediatric", "adult", "unknown"),
    "images": ("first of a patient", "further of a patient"),  # the former is the number of patients
}
# Beside the counts, if the site allows it: whole per cent of its images' pixels, by grey level of the cache.
GREY: Final = "grey"
GREY_CELLS: Final[tuple[str, ...]] = tuple(f"{low}-{low + 15}" for low in range(0, 256, 16))
# Labels whose counts may be reported: the fourteen of NIH ChestX-ray14 and those of COVID-19 corpora.
LABELS: Final[tuple[str, ...]] = (
    *("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion", "emphysema", "fibrosis", "hernia"),
    *("infiltration", "mass", "nodule", "pleural_thickening", "pneumonia", "pneumothorax"),
    *("covid19", "tuberculosis", "normal", "other"),
)
LABEL_CELLS: Final[tuple[str, ...]] = ("present", "absent", "unknown")


def suppress(cells: Mapping[str, int], minimum: int) -> dict[str, int]:
    """Return the cells that may be reported of a table whose total is known.

    Cells below `minimum`, empty ones too, are dropped, and then the next smallest until those dropped are at
    least two, sum to at least `minimum`, and every reported cell is larger than their sum. So the total reveals
    neither a single cell nor a small sum of cells. Even to someone who knows this rule, each dropped cell may be
    anything from zero to all of their sum, since no reported cell bounds it.
    """
    ordered = sorted(cells.items(), key=lambda item: (item[1], item[0]))
    small = sum(count < minimum for _, count in ordered)
    if not small:
        return dict(cells)
    for dropped in range(max(small, 2), len(ordered)):
        together = sum(count for _, count in ordered[:dropped])
        if minimum <= together < ordered[dropped][1]:
            return dict(sorted(ordered[dropped:]))
    return {}


def suppress_grey(shares: Mapping[str, float], patients: Mapping[str, int], minimum: int) -> dict[str, int]:
    """Return the cells of a histogram of grey levels that may be reported, in whole per cent.

    Cells to which fewer than `minimum` patients contribute are dropped, and if that is only one, the smallest
    other as well, since the cells sum to all pixels. An image changes a cell by at most its own share of all
    images, which is below the rounding from a hundred images on.

    Args:
        shares: each cell of `GREY_CELLS` -> its share of the pixels, 0..1, each image with the same weight.
        patients: cell -> how many patients have a pixel in it.
    """
    ordered = sorted(shares, key=lambda cell: (patients[cell] >= minimum, shares[cell], cell))
    small = sum(patients[cell] < minimum for cell in ordered)
    reported = ordered[max(2, small) if small else 0 :]
    return {cell: round(100 * shares[cell]) for cell in GREY_CELLS if cell in reported}


def counts_to_json(
    tables: Mapping[str, Mapping[str, int]], minimum: int, grey: Mapping[str, int] | None = None
) -> str:
    """Return tables of counts that may leave, as JSON: known tables and cells only, small cells suppressed.

    Args:
        grey: the result of `suppress_grey`; None: not reported.
    """
    reported = {}
    for name, cells in tables.items():
        allowed = _cells(name)
        if set(cells) - set(allowed):
            raise WireError(f"table {name!r} has cells that are not on the list")
        reported[name] = suppress({cell: cells.get(cell, 0) for cell in allowed}, minimum)
    if grey is not None:
        reported[GREY] = {cell: grey[cell] for cell in GREY_CELLS if cell in grey}
    return json.dumps(reported, sort_keys=True)


def counts_from_json(text: str) -> dict[str, dict[str, int]]:
    """Read the tables that a site reported, checked against the fixed lists.

    Raises:
        WireError: not JSON, too long, or a table, cell or count that is not on the lists.
    """
    if len(text) > 20_000:
        raise WireError(f"counts of {len(text)} characters")
    try:
        tables = json.loads(text)
        allowed = {name: GREY_CELLS if name == GREY else _cells(name) for name in tables}
        most = {name: 100 if name == GREY else MAX_COUNT for name in tables}
        return {
            name: {cell: _count(cells[cell], most[name]) for cell in cells if _known(cell, allowed[name])}
            for name, cells in tables.items()
        }
    except WireError:
        raise
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise WireError(f"counts are not tables of numbers ({type(error).__name__})") from None


def _cells(table: str) -> Sequence[str]:
    if table in COUNT_TABLES:
        return COUNT_TABLES[table]
    if table.removeprefix("label:") in LABELS and table.startswith("label:"):
        return LABEL_CELLS
    raise WireError("a table that is not on the list")


def _known(cell: str, allowed: Sequence[str]) -> bool:
    if cell not in allowed:
        raise WireError("a cell that is not on the list")
    return True


def _count(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise WireError("a count that is not a whole number, or out of range")
    return value
