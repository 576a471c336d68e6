"""The report between rounds: it takes a hundredth of a run's time at most, and stops none."""

import logging
from pathlib import Path

import pytest

from server import reporting
from server.reporting import Reporter


class Clock:
    """Time that passes when it is told to; each report takes a while of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: float) -> None:
        self.now, self.written, self.takes = 100.0, 0, takes
        monkeypatch.setattr(reporting, "monotonic", lambda: self.now)
        monkeypatch.setattr("sscxr.report.write", self.write)

    def write(self, out: Path, **known: object) -> None:
        self.now += self.takes
        self.written += 1


def rounds(clock: Clock, reporter: Reporter, number: int, seconds: float) -> None:
    for _ in range(number):
        clock.now += seconds
        reporter.committed({})


@pytest.mark.parametrize("seconds", [0.2, 5.0, 60.0])
def test_reports_take_a_hundredth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float
) -> None:
    clock = Clock(monkeypatch, takes=0.5)
    reporter, began = Reporter(tmp_path), clock.now
    rounds(clock, reporter, 1000, seconds)
    passed = clock.now - began
    # The first is taken to cost less than it does.
    assert 0.5 * clock.written <= 0.01 * passed + 0.5
    assert clock.written >= 0.8 * min(1000, 0.01 * passed / 0.5)


def test_short_rounds_have_none_and_long_ones_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(monkeypatch, takes=0.5)
    rounds(clock, Reporter(tmp_path), 9, 1.0)
    assert clock.written == 0
    rounds(clock, Reporter(tmp_path), 9, 60.0)
    assert clock.written == 9


def test_at_the_end_it_is_written_whatever_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock(monkeypatch, takes=0.5)
    Reporter(tmp_path).write()
    assert clock.written == 1


def test_a_report_that_fails_is_said_and_counts_as_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch, takes=0.5)

    def full(out: Path, **known: object) -> None:
        clock.write(out)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sscxr.report.write", full)
    caplog.set_level(logging.ERROR, "sscxr.server")  # a simulation in this process may have silenced it
    rounds(clock, Reporter(tmp_path), 1, 15.0)
    assert "the report was not written (OSError)" in caplog.text
    assert clock.written == 1
    reporter = Reporter(tmp_path)
    reporter.write()
    rounds(clock, reporter, 1, 50.0)  # 0.5 s spent and 0.5 s to come are more than a hundredth of 50.5 s
    assert clock.written == 2
