"""Curves of a run for TensorBoard and MLflow, by site; written only in the run's folder.

Both are made from the committed rounds. They are rewritten when tracking starts, then extended round by round, so
a resumed run has no point twice, and none that was not committed. Errors here are warnings and do not fail a run:
`sscxr track RUN` writes the curves afterwards.
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sscxr.errors import SscxrError

KINDS = ("tensorboard", "mlflow")  # each is also the name of the module that it needs
# Figures of a round's record, and of a site's row.
_WHOLE = (
    *("loss", "held_out_loss", "held_out_score", "mean_update_norm"),
    *("images", "sites", "seconds", "bytes_up", "bytes_down"),
)
_SITE = ("loss", "update_norm", "seconds", "bytes", "images")
_BATCH = 1000  # metrics that MLflow takes in one call

Record = Mapping[str, Any]
Points = dict[str, dict[str, float]]  # site, "" for the federation -> figure -> value
Read = Callable[[], tuple[Sequence[Record], Sequence[Mapping[str, str]]]]

log = logging.getLogger("sscxr.tracking")


class TrackingError(SscxrError):
    """Tracking is not possible; one line states why."""


def kinds_of(text: str) -> list[str]:
    """Return the names in a text such as "tensorboard,mlflow".

    Raises:
        TrackingError: a name is unknown, or its package is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise TrackingError(f"tracking by {name!r} is not known; choose one of: {', '.join(KINDS)}")
        if find_spec(name) is None:
            raise TrackingError(f"tracking by {name} needs another package: pip install 'sscxr[{name}]'")
    return names


class Tracking:
    """All curves of a run; their failures do not affect the run."""

    def __init__(
        self, kinds: Sequence[str], out: Path, name: str, read: Read, *, strict: bool = False
    ) -> None:
        """Rewrite the curves from the committed rounds.

        Args:
            out: the run's folder; each kind has a folder of its name in it.
            name: the run's.
            read: returns the records of `rounds.jsonl` and the rows of `sites.csv`.
            strict: raise on a failure instead of warning.

        Raises:
            TrackingError: if `strict`, here and below: curves could not be written.
        """
        self._read, self._done, self._strict = read, 0, strict
        self._tracks: dict[str, TensorBoard | MLflow] = {}
        makers: dict[str, type[TensorBoard | MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
        for kind in kinds:
            made = self._guarded(kind, makers[kind], out / kind, name)
            if made is not None:
                self._tracks[kind] = made
        self.follow()

    def follow(self) -> None:
        """Add the rounds that were committed since."""
        if not self._tracks:
            return
        try:
            records, rows = self._read()
        except Exception as error:
            if self._strict:
                raise
            log.warning("tracking: the ledger could not be read (%s)", error)
            return
        for record in records:
            if record["round"] > self._done:
                points = points_of(record, rows)
                for kind, track in list(self._tracks.items()):
                    self._guarded(kind, track.log, record["round"], points)
                self._done = record["round"]

    def close(self) -> None:
        """Write everything to disk and end."""
        for kind, track in list(self._tracks.items()):
            self._guarded(kind, track.close)

    def _guarded(self, kind: str, do: Callable[..., Any], *given: object) -> Any:
        """Return `do(*given)`; if it fails, end that kind and return None."""
        try:
            return do(*given)
        except Exception as error:
            self._tracks.pop(kind, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if self._strict:
                raise TrackingError(f"tracking by {kind}: not written ({reason})") from None
            log.warning(
                "tracking by %s ended (%s); the run continues, `sscxr track` writes it later", kind, reason
            )


def points_of(record: Record, rows: Sequence[Mapping[str, str]]) -> Points:
    """Return the figures of a committed round, for the federation and each folded site."""
    points: Points = {"": _numbers({name: record.get(name) for name in _WHOLE})}
    for row in rows:
        if row["outcome"] == "folded" and row["round"] == str(record["round"]):
            points.setdefault(row["site"], {}).update(_numbers({name: row[name] for name in _SITE}))
    for figure, name in (("held_out", "held_out_loss"), ("scores", "held_out_score")):
        for site, value in (record.get(figure) or {}).items():
            points.setdefault(site, {}).update(_numbers({name: value}))
    return points


def _numbers(cells: Mapping[str, object]) -> dict[str, float]:
    found = {}
    for name, cell in cells.items():
        try:
            value = float(str(cell))
        except ValueError:
            continue
        if math.isfinite(value):
            found[name] = value
    return found


def _clear(folder: Path) -> None:
    """Delete earlier curves; an error if that fails, since points would appear twice."""
    if folder.exists():
        shutil.rmtree(folder)


class TensorBoard:
    """Event files; each site is a TensorBoard run, so that one chart has all their curves."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start again: `purge_step` makes an open TensorBoard discard what it has read."""
        _clear(folder)
        self._folder, self._writers = folder, dict[str, Any]()

    def log(self, round_number: int, points: Points) -> None:
        """Take a round's figures."""
        for site, figures in points.items():
            writer = self._writers.get(site) or self._open(site)
            for name, value in figures.items():
                writer.add_scalar(name, value, round_number)
            writer.flush()

    def _open(self, site: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / "sites" / site if site else self._folder / "federation"
        self._writers[site] = SummaryWriter(str(folder), purge_step=0)
        return self._writers[site]

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """A local SQLite store with this one run; a site's figures are `loss/SITE` and so on."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start again."""
        # MLflow reads these on import: it would report usage otherwise.
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        _clear(folder)
        folder.mkdir(parents=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        experiment = self._client.create_experiment("sscxr")
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def log(self, round_number: int, points: Points) -> None:
        """Take a round's figures."""
        from mlflow.entities import Metric

        metrics = [
            Metric(f"{name}/{site}" if site else name, value, 0, round_number)
            for site, figures in points.items()
            for name, value in figures.items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[first : first + _BATCH])

    def close(self) -> None:
        """End the run in the store."""
        self._client.set_terminated(self._run)
