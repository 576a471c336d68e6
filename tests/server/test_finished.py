"""A run that was killed with its encoder written and not yet called finished."""

from pathlib import Path

import federation as fed

from client import app as client
from server import app as server
from server import status
from sscxr.runs import read_status


def test_a_run_killed_at_its_last_word_is_finished_by_a_resume(tmp_path: Path) -> None:
    out, files = tmp_path / "out", fed.make_sites(tmp_path, ["anna"], images=10)
    config = fed.settings("federation.rounds=1")
    server.run(fed.Grid(client.app, files), config, out, resume=False)
    assert read_status(out).state == "finished"
    ended = (out / "status.json").read_bytes()
    server.run(fed.Grid(client.app, files), config, out, resume=True)
    assert (out / "status.json").read_bytes() == ended
    status.write(out, "running", done=1, rounds=1)
    assert read_status(out).state == "died"
    server.run(fed.Grid(client.app, files), config, out, resume=True)
    assert read_status(out).state == "finished"
