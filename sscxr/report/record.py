"""The record of a run: its folder, read once for the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sscxr import config as configs
from sscxr import runs
from sscxr.evaluation.gains import KINDS, Comparison, Probe
from sscxr.report import pictures
from sscxr.report.pictures import Strip
from sscxr.runs import RunError, Status, Words

FOLDED = "folded"
NOTES, EMBEDDING, HOLDINGS = "notes.json", "embedding.csv", "holdings.png"
EMBEDDING_COLUMNS = ("x", "y", "site", "label")
Counts = Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True)
class SiteScore:
    """The federation's model, or encoder, and one that a site trained alone, on the same held-out patients.

    Attributes:
        figure: "auroc" or "dice" of a model; of an encoder "linear" or "k-NN", the probes' mean AUROC over the
            labels; empty: the site has too few images that the stage can use.
        images, test_images, test_patients: counts for training and for testing.
        federated, alone, gap: {value, low, high, n} with 95 % intervals over patients; the gap is the paired
            difference. None: not measured.
        where: whose held-out patients: `runs.OWN`, the site's, or `runs.EVERYBODY`, of all sites.
    """

    site: str
    figure: str
    images: int
    test_images: int
    test_patients: int
    federated: dict[str, Any] | None
    alone: dict[str, Any] | None
    gap: dict[str, Any] | None
    where: str = runs.OWN

    def told(self) -> tuple[str, str, str]:
        """Return the three figures as text, each with its interval."""
        return _shown(self.federated), _shown(self.alone), _shown(self.gap, sign="+")

    @property
    def name(self) -> str:
        """Return the figure's name, such as "AUROC", "Dice" or "linear AUROC"; empty without one."""
        known = {"auroc": "AUROC", "dice": "Dice"} | {kind: f"{kind} AUROC" for kind in KINDS}
        return known.get(self.figure, self.figure)

    @property
    def thing(self) -> str:
        """Return what is compared: "encoder" or "model"."""
        return "encoder" if self.figure in KINDS else "model"

    @property
    def better(self) -> bool:
        """Return whether the federation's model beats the site's own beyond the interval of the difference."""
        return bool(self.gap and self.gap["low"] is not None and self.gap["low"] > 0)

    @property
    def worse(self) -> bool:
        """Return whether it falls short of the site's own beyond that interval."""
        return bool(self.gap and self.gap["high"] is not None and self.gap["high"] < 0)


def _shown(found: Mapping[str, Any] | None, *, sign: str = "") -> str:
    if not found or found["value"] is None:
        return "–"
    value, low, high = (
        f"{found[k]:{sign}.3f}" if found[k] is not None else "–" for k in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Record:
    """A run, as its report shows it.

    Attributes:
        title: the run's name.
        stage: "pretrain", "classify" or "segment".
        status: its state.
        rounds: the records of rounds.jsonl.
        sites: the rows of sites.csv.
        counts: site -> its aggregate tables, as it reported them.
        probes: the encoder against the untrained one; none without labels.
        few: probes with few labels, as `sim.few.rows` returns them.
        scores: the run's model, or encoder, against those of sites alone.
        strips: pictures over the rounds; none without images.
        embedding: `EMBEDDING_COLUMNS`, one row per image; None without images.
        holdings: PNG of what each site holds; None without images.
        notes: lines for the reader, shown under the summary.
        min_cell: counts of images and patients below it are not shown.
        settings: those of the run, by dotted key.
        words: the names of its loss and score.
    """

    title: str
    stage: str
    status: Status
    rounds: Sequence[Mapping[str, Any]]
    sites: pd.DataFrame
    counts: Counts = field(default_factory=dict)
    probes: Sequence[Comparison] = ()
    few: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[SiteScore] = ()
    strips: Sequence[Strip] = ()
    embedding: pd.DataFrame | None = None
    holdings: bytes | None = None
    notes: Sequence[str] = ()
    min_cell: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=Words)

    @property
    def costs(self) -> dict[str, tuple[float, float]]:
        """Return site -> epsilon and delta of the run, as last reported; of sites that train privately."""
        rounds = (row.get("privacy") or {} for row in self.rounds)
        return {site: (epsilon, delta) for costs in rounds for site, (epsilon, delta) in costs.items()}

    @property
    def by_site(self) -> Sequence[SiteScore]:
        """Return one score for each site: of its own patients; of an encoder, by the linear probes."""
        return [score for score in self.scores if score.where == runs.OWN and score.figure != "k-NN"]

    @property
    def folded(self) -> pd.DataFrame:
        """Return the rows whose updates were averaged."""
        return self.sites[self.sites["outcome"] == FOLDED]


def read(folder: Path, **known: Any) -> Record:
    """Read a run's folder, as far as the run has written it.

    Args:
        known: fields that are known before they are on disk.

    Raises:
        RunError: no run has started there, or one of its files cannot be read.
    """
    if not (folder / runs.CONFIG).is_file():
        raise RunError(f"{folder}: no run has started there (no {runs.CONFIG})")
    # Settings added since the run are at their defaults.
    config = configs.load(folder / runs.CONFIG, foreign=True)
    found: dict[str, Any] = {
        "title": config.run.name,
        "stage": config.run.stage,
        "status": known.get("status") or _status(folder),
        "rounds": runs.read_rounds(folder / runs.ROUNDS),
        "sites": runs.read_sites(folder / runs.SITES),
        "counts": _counts(folder),
        "probes": _records(folder / runs.PROBES, _comparison),
        "scores": [
            score
            for name in (runs.SCORES, runs.ALONE)  # a run has one of them
            for score in _records(folder / name, lambda score: SiteScore(**score))
        ],
        "few": runs.read_list(folder / runs.FEW),
        "strips": pictures.read(folder / pictures.FOLDER),
        "embedding": _embedding(folder / EMBEDDING),
        "holdings": (folder / HOLDINGS).read_bytes() if (folder / HOLDINGS).is_file() else None,
        "notes": runs.read_list(folder / NOTES),
        "min_cell": config.privacy.min_cell,
        "settings": flat(configs.as_dict(config)),
        "words": runs.read_words(folder),
    }
    return Record(**found | known)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted key; lists and empty dictionaries are values."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def _status(folder: Path) -> Status:
    try:
        return runs.read_status(folder)
    except RunError:
        if (folder / runs.STATUS).exists():
            raise
        return Status("starting", 0, 0, "", "")  # in its first moment


def _counts(folder: Path) -> Counts:
    """Return the sites' aggregates from the last readable checkpoint."""
    for checkpoint in sorted((folder / "checkpoints").glob("round-?????"), reverse=True):
        try:
            return dict(json.loads((checkpoint / "state.json").read_text())["counts"])
        except (OSError, ValueError, KeyError):  # deleted just now, or damaged: an older one may do
            continue
    return {}


def _comparison(pair: Mapping[str, Any]) -> Comparison:
    probes = {name: Probe(**pair[name]) for name in ("trained", "untrained")}
    return Comparison(**{**pair, **probes})


def _embedding(file: Path) -> pd.DataFrame | None:
    if not file.exists():
        return None
    return runs.read_table(file, EMBEDDING_COLUMNS, words=("site", "label"))


def _records(file: Path, made: Callable[[Any], Any]) -> list[Any]:
    try:
        return [made(record) for record in runs.read_list(file)]
    except (KeyError, TypeError):
        raise RunError(f"{file}: not readable, its records are not those of a run") from None
