"""Curves for TensorBoard and MLflow: each committed round once, a failure kept away from the run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server import tracking
from server.tracking import Tracking, TrackingError


class Ledger:
    """Two sites; b is late in round 2, and a's figures are its own."""

    def __init__(self, rounds: int) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.rows: list[Mapping[str, str]] = []
        for number in range(1, rounds + 1):
            self.add(number)

    def add(self, number: int) -> None:
        self.records.append({"round": number, "loss": 1 / number, "seconds": 2.0, "held_out": {"a": number / 10},
                             "held_out_loss": None})  # fmt: skip
        for site in "ab":
            late = site == "b" and number == 2
            row = dict.fromkeys(
                ("loss", "update_norm", "seconds", "bytes", "images"), "" if late else str(number)
            )
            self.rows.append(
                row | {"round": str(number), "site": site, "outcome": "late" if late else "folded"}
            )

    def read(self) -> tuple[list[Mapping[str, Any]], list[Mapping[str, str]]]:
        return self.records, self.rows


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(one.step, round(one.value, 5)) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_each_committed_round_once_also_after_a_resume(tmp_path: Path) -> None:
    ledger = Ledger(2)
    tracks = Tracking(["tensorboard"], tmp_path, "lungs", ledger.read)
    ledger.add(3)
    tracks.follow()
    tracks.follow()
    # Killed here, before round 3 was committed: the ledger is cut, the run goes on from round 2.
    ledger = Ledger(2)
    tracks = Tracking(["tensorboard"], tmp_path, "lungs", ledger.read)
    for number in (3, 4):
        ledger.add(number)
        tracks.follow()
    tracks.close()
    assert len(list((tmp_path / "tensorboard").rglob("events*"))) == 3
    whole, a, b = (curves(tmp_path / "tensorboard" / place) for place in ("federation", "sites/a", "sites/b"))
    assert whole["loss"] == [(1, 1), (2, 0.5), (3, 0.33333), (4, 0.25)]
    assert "held_out_loss" not in whole
    assert a["loss"] == [(number, number) for number in (1, 2, 3, 4)]
    assert a["held_out_loss"] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [step for step, _ in b["loss"]] == [1, 3, 4]


@pytest.mark.slow
def test_mlflow_has_the_same(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    for _ in range(2):
        Tracking(["mlflow"], tmp_path, "lungs", Ledger(3).read).close()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("sscxr")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/b")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (3, 3.0)]


def test_what_fails_is_a_warning_and_ends_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file in its way")
    ledger = Ledger(1)
    with caplog.at_level(logging.WARNING):
        tracks = Tracking(["tensorboard"], tmp_path, "lungs", ledger.read)
        ledger.add(2)
        tracks.follow()
        tracks.close()
    (warning,) = caplog.records
    assert "tracking by tensorboard ended" in warning.getMessage()
    assert (tmp_path / "tensorboard").read_text() == "a file in its way"


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_of_a_command_what_fails_is_an_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder has to be")
    with pytest.raises(TrackingError, match=f"tracking by {kind}: not written"):
        Tracking([kind], tmp_path / "run", "run", Ledger(1).read, strict=True)


def test_what_is_not_known_or_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.kinds_of(" tensorboard, ") == ["tensorboard"]
    with pytest.raises(TrackingError, match=r"'wandb' is not known.*tensorboard, mlflow"):
        tracking.kinds_of("wandb")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=r"pip install 'sscxr\[mlflow\]'"):
        tracking.kinds_of("mlflow")


def test_figures_that_are_none_are_left_out() -> None:
    record = json.loads('{"round": 1, "loss": NaN, "seconds": 1.5, "scores": {"a": 0.5}}')
    assert tracking.points_of(record, []) == {"": {"seconds": 1.5}, "a": {"held_out_score": 0.5}}
