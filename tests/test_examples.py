"""The examples without arguments, on their own phantoms; with arguments the pages of docs/ run them."""

import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from simulations import ROOT, SMALLEST, environment, typed

mpl.use("agg")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def run(name: str, *arguments: str) -> None:
    file = str(ROOT / "examples" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [file, *arguments])
        runpy.run_path(file, run_name="__main__")


def test_a_map_is_drawn_of_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("embedding_map.py")
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert "96 images" in capsys.readouterr().out


def test_few_labels_are_learned_from(capsys: pytest.CaptureFixture[str]) -> None:
    run("few_labels.py", "--steps", "2")
    assert "held-out patients" in capsys.readouterr().out


def test_two_runs_are_made_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(command: list[str], *, check: bool) -> None:
        """In this process: torch takes seconds to import."""
        assert (command[:3], check) == ([sys.executable, "-m", "sim.run"], True)
        assert typed([*command[3:], *SMALLEST]) == 0

    monkeypatch.setattr("subprocess.run", here)
    run("compare_runs.py")
    out = capsys.readouterr().out
    for words in ("finished after round 2 of 2", "federation.server.name", "nesterov", "loss by round"):
        assert words in out
