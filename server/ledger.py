"""A run on disk: settings, one line per round, one row per site and round, checkpoints.

A round is committed by one rename of its checkpoint folder, which holds the encoder, the server optimiser and the
lengths that the two text files had then. A run killed anywhere resumes from the last commit: text written after
it is cut off, and a partial checkpoint is deleted.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from sscxr import config as configs
from sscxr import printable
from sscxr.config import Config
from sscxr.errors import SscxrError
from sscxr.files import save_tensors, sweep, whole_folder, write_atomically
from sscxr.runs import CONFIG, ROUNDS, SITE_COLUMNS, SITES, SiteRow

FORMAT_VERSION = 1
# Settings that may change when a run is resumed: they decide whether and when a round counts, not its
# content.
MAY_CHANGE = frozenset(
    f"federation.{name}" for name in ("quorum", "deadline", "start_timeout", "retries", "keep_checkpoints")
)
Tensors = dict[str, Tensor]
# A State's fields beside its tensors.
_SAVED = ("round", "bases", "roster", "images", "joined", "norms", "moment_norms", "counts", "costs", "keys")
_LATER = {"joined", "norms", "moment_norms", "costs"}  # fields that checkpoints of earlier versions lack


class LedgerError(SscxrError):
    """A run's folder cannot be used; one line states why and what to do."""


@dataclass
class State:
    """The state of a run between two rounds.

    Attributes:
        round: the next round, from 0.
        encoder: fp32 tensors by timm's names, and what is averaged beside them (`training.parts`).
        optimiser: the server optimiser's tensors.
        bases: site -> its last folded generation.
        roster: the sites expected.
        images: site -> the images it trains on, as last reported.
        joined: site -> the images it reported when it joined the run.
        norms: for each committed round, the median of its updates' norms, as `Bounds.relative` compares them.
        moment_norms: the upper quartile of the norms of its changes of moments, if any are averaged.
        counts: site -> its aggregate tables, as last reported.
        costs: site -> epsilon and delta of what the run has cost a patient of it, as last reported.
        keys: site -> SHA-256 of the public key that it is registered with, if it is registered by name.
    """

    round: int
    encoder: Tensors
    optimiser: Tensors
    bases: dict[str, str] = field(default_factory=dict)
    roster: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    joined: dict[str, int] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    moment_norms: list[float] = field(default_factory=list)
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def cost_of(self, site: str) -> tuple[float, float] | None:
        """Return epsilon and delta of what the run has cost a patient of a site; None without."""
        epsilon, delta = self.costs.get(site, (0.0, 0.0))
        return (epsilon, delta) if epsilon else None


class Ledger:
    """A run's folder.

    Attributes:
        out: the folder.
    """

    def __init__(self, out: Path, config: Config, *, resume: bool) -> None:
        """Open the folder of a new run, or of one to resume.

        Raises:
            LedgerError: the folder has a run and `resume` is False, or its settings differ.
        """
        self.out = out
        self.rounds_file, self.sites_file = out / ROUNDS, out / SITES
        self.checkpoints = out / "checkpoints"
        self._pending = out / "checkpoints" / "attempt.json"
        exists = (out / CONFIG).exists()
        if exists and not resume:
            raise LedgerError(
                f'{out} already has a run; resume it with resume="{out}", or name another folder'
            )
        if exists:
            self._same_settings(config)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        sweep(out)
        write_atomically(out / CONFIG, configs.dumps(config).encode())

    def _same_settings(self, config: Config) -> None:
        try:
            stored = configs.as_dict(configs.loads((self.out / CONFIG).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:  # also text that is not UTF-8
            raise LedgerError(f"{self.out}/config.yaml: {error}") from None
        keys = [key for key in differing(stored, configs.as_dict(config)) if key not in MAY_CHANGE]
        if keys:
            raise LedgerError(
                f"{self.out} was started with other settings ({', '.join(keys[:3])}); "
                "resume with the same ones, or start another folder"
            )

    def last(self) -> State | None:
        """Return the last committed state; None if no round was committed yet.

        Text written after the commit is cut off.

        Raises:
            LedgerError: a checkpoint cannot be read.
        """
        names = sorted(folder.name for folder in self.checkpoints.glob("round-*") if folder.is_dir())
        if not names:
            self._cut({"rounds": 0, "sites": 0})
            return None
        folder = self.checkpoints / names[-1]
        try:
            saved = json.loads((folder / "state.json").read_text())
            if saved.get("format_version") != FORMAT_VERSION:
                raise LedgerError(
                    f"{folder} has format version {saved.get('format_version')}, not {FORMAT_VERSION}"
                )
            encoder = safetensors.torch.load_file(folder / "encoder.safetensors")
            optimiser = safetensors.torch.load_file(folder / "optimiser.safetensors")
            state = State(
                encoder=encoder,
                optimiser=optimiser,
                **{name: saved[name] for name in _SAVED if name in saved or name not in _LATER},
            )
        except LedgerError:
            raise
        except Exception as error:
            raise LedgerError(
                f"checkpoint {folder} is damaged ({type(error).__name__}); delete that folder to resume from the "
                "one before it"
            ) from None
        self._cut(saved["lengths"])
        return state

    def _cut(self, lengths: Mapping[str, int]) -> None:
        for file, length in ((self.rounds_file, lengths["rounds"]), (self.sites_file, lengths["sites"])):
            if file.exists() and file.stat().st_size > length:
                with file.open("r+b") as handle:
                    handle.truncate(length)

    def next_attempt(self, round_number: int) -> int:
        """Return the number of the next attempt at a round; it is unique, even after a kill."""
        attempt = 0
        try:
            before = json.loads(self._pending.read_text())
            if before["round"] == round_number:
                attempt = int(before["attempt"]) + 1
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no attempt yet, or a partial file after a power cut: numbers start again
        write_atomically(self._pending, json.dumps({"round": round_number, "attempt": attempt}).encode())
        return attempt

    def log_sites(self, rows: Sequence[SiteRow]) -> None:
        """Append rows to `sites.csv`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.sites_file.exists() or not self.sites_file.stat().st_size:
            writer.writerow(SITE_COLUMNS)
        for row in rows:
            writer.writerow(["" if value is None else _plain(value) for value in asdict(row).values()])
        _append(self.sites_file, text.getvalue())

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Append a line to `rounds.jsonl`."""
        _append(self.rounds_file, json.dumps(record, sort_keys=True) + "\n")

    def commit(self, state: State, *, keep: int) -> None:
        """Write the state and make it the last one by one rename, then delete all but the newest `keep`."""
        folder = self.checkpoints / f"round-{state.round:05d}"
        saved = {name: getattr(state, name) for name in _SAVED}
        saved["format_version"] = FORMAT_VERSION
        saved["lengths"] = {"rounds": _length(self.rounds_file), "sites": _length(self.sites_file)}
        with whole_folder(folder) as fresh:
            save_tensors(_sorted(state.encoder), fresh / "encoder.safetensors")
            save_tensors(_sorted(state.optimiser), fresh / "optimiser.safetensors")
            (fresh / "state.json").write_text(json.dumps(saved, indent=1, sort_keys=True))
        older = sorted(old for old in self.checkpoints.glob("round-*") if old.is_dir())[: -max(1, keep)]
        for old in older:
            shutil.rmtree(old)


def _sorted(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensors[name].contiguous() for name in sorted(tensors)}


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _plain(value: object) -> str:
    """Return a table cell on one line; text that a spreadsheet would run as a formula is quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable.cell(" ".join(value.split()) if isinstance(value, str) else value)


def may_change(config: Config) -> list[str]:
    """Return the settings that may change when a run is resumed, as overrides."""
    sections = configs.as_dict(config)
    return [f"{key}={sections[key.split('.')[0]][key.split('.')[1]]}" for key in sorted(MAY_CHANGE)]


def differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys at which two trees of settings differ."""
    keys: list[str] = []
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += differing(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys
