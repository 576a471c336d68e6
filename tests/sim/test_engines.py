"""Whichever engine carries the messages: the same encoder, bit for bit, the same errors, nothing left running."""

from pathlib import Path

import pytest
from simulations import Ended, arguments, left_running, losses, run, typed, weights

pytestmark = pytest.mark.slow
ENGINES = ("inline", "pool", "ray")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def runs(place: Path, cache: Path) -> dict[str, Ended]:
    """A run of each engine; that each gives the same bytes twice is held below and in `test_resume.py`."""
    return {
        engine: run(arguments(place / engine, "--engine", engine, data=cache), mark=f"{place}-{engine}")
        for engine in ENGINES
    }


def test_same_bytes(runs: dict[str, Ended], place: Path) -> None:
    for ended in runs.values():
        assert ended.status == 0, ended.log
    for engine in ("pool", "ray"):
        assert weights(place / engine) == weights(place / "inline")
        assert losses(place / engine) == losses(place / "inline")


def test_as_quiet_as_each_other(runs: dict[str, Ended]) -> None:
    def lines(name: str) -> list[str]:
        return [line.split(",")[0] for line in runs[name].log.splitlines() if line.startswith("round ")]

    assert len(lines("inline")) == 3
    for name in ("pool", "ray"):
        assert lines(name) == lines("inline")
        assert len(runs[name].log.splitlines()) == len(runs["inline"].log.splitlines()), runs[name].log


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_left_running(engine: str, runs: dict[str, Ended], place: Path) -> None:
    assert left_running(f"{place}-{engine}") == []


@pytest.mark.parametrize("engine", ["pool", "ray"])
def test_same_errors(engine: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(engine: str) -> list[str]:
        return arguments(tmp_path / engine, "--engine", engine, "gmml.blocks=[7]", data=cache)

    ended = run(asked(engine), mark=str(tmp_path))
    assert (ended.status, typed(asked("inline"))) == (1, 1)
    assert capsys.readouterr().err == ended.log
    assert ended.log.startswith("error: gmml.blocks=[7]")
    assert ended.log.count("\n") == 1
    assert left_running(str(tmp_path)) == []


@pytest.mark.parametrize("engine", ["pool", "ray"])
def test_ctrl_c_then_inline(
    engine: str, runs: dict[str, Ended], place: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = arguments(out, data=cache)
    ended = run(
        [*argv, "--engine", engine], mark=str(tmp_path), interrupt_when=out / "checkpoints" / "round-00001"
    )
    assert ended.status == 130, ended.log
    assert "Traceback" not in ended.log
    assert ended.log.splitlines()[-1].startswith("stopped; finished work is saved")
    assert left_running(str(tmp_path)) == []
    assert not (out / "encoder").exists()
    assert typed([*argv, "--resume"]) == 0
    assert weights(out) == weights(place / "inline")
    assert losses(out) == losses(place / "inline")


def test_a_secure_sum_gives_the_bytes_of_one_without_masks(place: Path, cache: Path) -> None:
    """Of three sites, whose keys a simulation makes; nothing is clipped."""
    bare = [
        "--clients",
        "3",
        "federation.weight_cap=0",
        "federation.evaluate_every=0",
        "federation.clip_updates=0",
    ]
    masked = [*bare, "federation.secure=true"]
    for name, given in {
        "bare": bare, "masked": masked, "masked-ray": [*masked, "--engine", "ray"]
    }.items():  # fmt: skip
        ended = run(arguments(place / name, *given, data=cache), mark=f"{place}-{name}")
        assert ended.status == 0, ended.log
        assert "picture for the report was not drawn" not in ended.log
    assert weights(place / "masked") == weights(place / "masked-ray") == weights(place / "bare")
