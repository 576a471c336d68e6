"""Whichever engine carries the messages: the same encoder, bit for bit, the same errors, nothing left running."""

from pathlib import Path

import pytest
from simulations import Ended, arguments, left_running, losses, run, small_cache, weights

pytestmark = pytest.mark.slow
ENGINES = ("inline", "ray")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def cache(place: Path) -> Path:
    return small_cache(place)


@pytest.fixture(scope="module")
def runs(place: Path, cache: Path) -> dict[str, Ended]:
    """Two runs of each engine."""
    return {
        f"{engine}-{number}": run(
            arguments(place / f"{engine}-{number}", "--engine", engine, data=cache), mark=f"{place}-{engine}"
        )
        for engine in ENGINES
        for number in (1, 2)
    }


def test_same_bytes(runs: dict[str, Ended], place: Path) -> None:
    for name, ended in runs.items():
        assert ended.status == 0, ended.log
        assert weights(place / name) == weights(place / "inline-1"), name
        assert losses(place / name) == losses(place / "inline-1"), name


def test_as_quiet_as_each_other(runs: dict[str, Ended]) -> None:
    def lines(name: str) -> list[str]:
        return [line.split(",")[0] for line in runs[name].log.splitlines() if line.startswith("round ")]

    assert len(lines("inline-1")) == 3
    assert lines("ray-1") == lines("inline-1")
    assert len(runs["ray-1"].log.splitlines()) == len(runs["inline-1"].log.splitlines()), runs["ray-1"].log


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_left_running(engine: str, runs: dict[str, Ended], place: Path) -> None:
    assert left_running(f"{place}-{engine}") == []


def test_same_errors(cache: Path, tmp_path: Path) -> None:
    ended = [
        run(
            arguments(tmp_path / engine, "--engine", engine, "gmml.blocks=[7]", data=cache),
            mark=str(tmp_path),
        )
        for engine in ENGINES
    ]
    assert [one.status for one in ended] == [1, 1]
    assert ended[0].log == ended[1].log
    assert ended[0].log.startswith("error: gmml.blocks=[7]")
    assert ended[0].log.count("\n") == 1
    assert left_running(str(tmp_path)) == []


def test_a_shared_head_ends_in_pictures(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(arguments(out, "federation.share_head=true", data=cache), mark=str(tmp_path))
    assert ended.status == 0, ended.log
    assert "the shared head" in (out / "report.html").read_text()


def test_ctrl_c_of_ray_then_inline(runs: dict[str, Ended], place: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = arguments(out, data=cache)
    ended = run(
        [*argv, "--engine", "ray"], mark=str(tmp_path), interrupt_when=out / "checkpoints" / "round-00001"
    )
    assert ended.status == 130, ended.log
    assert "Traceback" not in ended.log
    assert ended.log.splitlines()[-1].startswith("stopped; finished work is saved")
    assert left_running(str(tmp_path)) == []
    assert not (out / "encoder").exists()
    ended = run([*argv, "--resume"], mark=str(tmp_path))
    assert ended.status == 0, ended.log
    assert weights(out) == weights(place / "inline-1")
