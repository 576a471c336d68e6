"""`flwr run` with Flower's local simulation, as a user types it: the very encoder that `sim.run` makes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from simulations import ROOT, SMALLEST, arguments, environment, left_running, small_cache, typed, weights

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
# Fixed ports: these tests must not run side by side, and a file is one worker's.
PORTS = {"FLWR_LOCAL_CONTROL_API_PORT": "39193", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "39191"}


class Flower:
    """The `flwr` command of somebody who has never used it."""

    def __init__(self, home: Path) -> None:
        self.mark = str(home)
        self.env = environment(
            HOME=str(home),
            FLWR_HOME=str(home / "flwr"),
            FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
            RAY_worker_niceness="0",
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            SSCXR_MARK=self.mark,
            **PORTS,
        )
        del self.env["PYTHONPATH"]  # a user has none
        (home / "flwr").mkdir(parents=True)
        self.home = home
        # A checkout's apps alone: Flower looks at every file of the folder, which takes seconds where it holds a
        # virtual environment. tests/deployment runs the checkout itself.
        self.app = home / "app"
        for part in ("client", "server"):
            shutil.copytree(ROOT / part, self.app / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.app)

    def __call__(self, *command: str, limit: float = 240) -> str:
        """What a command prints."""
        done = subprocess.run(
            [BIN / "flwr", *command], cwd=self.home, env=self.env, text=True, timeout=limit,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    def run(self, **settings: Any) -> tuple[str, str]:
        """Run the app on two virtual nodes; how the run ended, and what was printed."""
        given = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        nodes = "num-supernodes=2 client-resources-num-cpus=1"
        log = self("run", str(self.app), "--stream", "--federation-config", nodes, "--run-config", given)
        started = re.search(r"Successfully started run (\d+)", log)
        if not started:
            pytest.skip(f"flwr cannot start a local simulation here: {log[-500:]}")
        status, until = "", monotonic() + 60
        while not status.startswith("finished") and monotonic() < until:  # the log ends before the run does
            listed = self("list", "--format", "json", limit=60)
            runs = json.loads(listed[listed.index("{") :])["runs"]
            [status] = (entry["status"] for entry in runs if entry["run-id"] == started[1])
        return status, log


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    if not shutil.which("flwr", path=str(BIN)):
        pytest.skip("no flwr command beside this Python")
    command = Flower(tmp_path_factory.mktemp("flower") / "home")
    yield command
    # The SuperLink that `flwr run` starts stays; it and what it started end here, by their mark.
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SSCXR_MARK={command.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    assert left_running(command.mark) == []


def test_virtual_sites_give_the_bytes_of_sim_run(flower: Flower, tmp_path: Path) -> None:
    """Of DINO, whose teacher has to last between processes; GMML's bytes are those of a whole deployment's test."""
    out = tmp_path / "out"
    assert typed(arguments(out, "pretrain.objective=dino", data=small_cache(tmp_path))) == 0
    status, log = flower.run(
        sites=str(out / "sites"),
        config=str(out / "sites" / "run.yaml"),
        out=str(tmp_path / "flwr"),
        overrides="run.name=flwr",  # a name of its own: the sites keep the state of the other run
    )
    assert status == "finished:completed", log
    assert weights(tmp_path / "flwr") == weights(out)


def test_phantoms(flower: Flower, tmp_path: Path) -> None:
    small = " ".join([*SMALLEST, "federation.rounds=1"])
    status, log = flower.run(config="smoke", out=str(tmp_path / "flwr"), overrides=small)
    assert status == "finished:completed", log
    assert weights(tmp_path / "flwr")
    assert (tmp_path / "flwr" / "report.html").exists()
    rows = (tmp_path / "flwr" / "sites.csv").read_text().splitlines()[1:]
    assert len(rows) == 2
    assert all(",folded," in row for row in rows)


def test_a_wrong_setting_fails_the_run(flower: Flower, tmp_path: Path) -> None:
    status, log = flower.run(config="smoke", out=str(tmp_path / "flwr"), overrides="pretrain.lrr=1")
    assert status == "finished:failed", log
    assert "did you mean 'pretrain.lr'" in log


def test_a_stale_client_of_the_working_directory_is_not_run(flower: Flower, tmp_path: Path) -> None:
    stale = flower.home / "client"
    shutil.copytree(ROOT / "client", stale)
    with (stale / "app.py").open("a") as file:
        file.write("# of another day\n")
    try:
        status, log = flower.run(
            config="smoke", out=str(tmp_path / "flwr"), overrides="run.threads=1 federation.start_timeout=5"
        )
    finally:
        shutil.rmtree(stale)
    assert status == "finished:failed", log
    assert f"this actor runs {stale} in place of" in log
