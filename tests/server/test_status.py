"""How a run stands, whoever asks: running, finished, stopped, failed, or dead without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server import status
from server.ledger import LedgerError
from sscxr.runs import RunError, read_status


def test_a_run_is_named_by_its_folder_or_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert status.folder_of("/data/a") == Path("/data/a")
    assert status.folder_of("~/a") == tmp_path / "a"
    assert status.folder_of("a") == tmp_path / ".sscxr" / "runs" / "a"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = status.write(tmp_path, "stopped", done=2, rounds=5, reason="no quorum")
    assert read_status(tmp_path) == written
    assert written.line() == "stopped after round 2 of 5: no quorum"


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_run_that_died(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from server import status; out = Path(sys.argv[1])\n"
        "with status.held(out):\n"
        "    status.write(out, 'running', done=1, rounds=3); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert read_status(tmp_path).state == "running"
        with pytest.raises(LedgerError, match="in another process"), status.held(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert read_status(tmp_path).state == "died"
    with status.held(tmp_path):
        assert read_status(tmp_path).state == "running"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"state": "finished"}', '{"a": 1}'])
def test_no_run_or_a_damaged_file_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    with pytest.raises(RunError) as error:
        read_status(tmp_path)
    assert "\n" not in str(error.value)
