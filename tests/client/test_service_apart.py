"""The site service as a process of its own: under its own account, killed in a round, and ended."""

import csv
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import services
import torch
from simulations import ROOT, environment

from client import app as client
from client import sent, work
from client.settings import read_settings
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr.federation import codecs, courier, frames, wire

pytestmark = pytest.mark.slow
SETTINGS = (
    "federation.local_epochs=15",
    "federation.rounds=2",
    "federation.retries=1",
    "federation.quorum=1",
)
SERVICE, APP, SHARED = 64201, 64202, 64203  # two accounts that nobody has, and a group
PATHS = f"{ROOT}:{ROOT / 'tests' / 'support'}"

# What is imported late is imported before the accounts change: they need not be able to read Python's own modules.
AS_SERVICE = f"""
import logging, os, sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
import federation as fed
from client import service
scratch = fed.make_site(Path(sys.argv[4]), "scratch", images=10)
assert not fed.ask(fed.settings(), scratch).has_error()
with service.listening(service.Service(scratch), Path(sys.argv[4]) / "run" / "site.sock"):
    pass
os.setgroups([{SHARED}]); os.setgid({SERVICE}); os.setuid({SERVICE})
logging.basicConfig(level=logging.INFO)
service.serve(Path(sys.argv[2]), Path(sys.argv[3]), "{SHARED}")
"""
AS_APP = f"""
import hashlib, json, os, sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
import client.app
from sscxr.federation import courier
courier._PATIENCE = 0.1
courier.carry(sys.argv[2] + "-none", "train", {{}}, b"")
courier._PATIENCE = 60
os.setgroups([]); os.setgid({SHARED}); os.setuid({APP})
opened = []
for place in sys.argv[4:]:
    try:
        opened.append(os.listdir(place) if Path(place).is_dir() else Path(place).read_bytes()[:1].hex())
    except PermissionError:
        continue
task = json.loads(sys.stdin.readline())
encoder = bytes.fromhex(sys.stdin.readline())
record, update = courier.carry(sys.argv[2], "train", task, encoder)
print(json.dumps([opened, record, hashlib.sha256(update or b"").hexdigest()]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with services.short_folder() as folder:
        yield folder


def a_task(config: Any) -> tuple[dict[str, Any], bytes]:
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    task = wire.Task(config.run.name, 0, 0, "", configs.dumps(config), fingerprint, 600.0)
    return wire.to_record(task), codecs.encode(fed.start(config).encoder, config.federation.downlink)


def own(folder: Path) -> None:
    """Give a folder to the service's account, closed to all others."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, SERVICE, SERVICE)
        path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="wants root, for two accounts")
@pytest.mark.skipif(
    not all(parent.stat().st_mode & 0o001 for parent in Path(torch.__file__).parents),
    reason="other accounts cannot read the packages installed here; install them outside a private folder",
)
def test_the_apps_account_opens_nothing_and_completes_a_round(folder: Path, tmp_path: Path) -> None:
    config = fed.settings()
    site = fed.make_site(folder / "anna", "anna", images=10)
    direct = fed.make_site(tmp_path / "anna", "anna", images=10)
    fed.approve(config, site, direct)
    (folder / "anna" / "state").mkdir()
    own(folder / "anna")
    (folder / "anna").chmod(0o755)  # the files' own rights have to do
    (folder / "run").mkdir(mode=0o750)
    os.chown(folder / "run", SERVICE, SERVICE)
    socket = folder / "run" / "site.sock"
    command = [sys.executable, "-c", AS_SERVICE, PATHS, str(site), str(socket), str(tmp_path / "scratch")]
    process = subprocess.Popen(command, env=environment(), cwd="/", stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    while not any("ready at" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    try:
        assert process.poll() is None
        assert (socket.stat().st_gid, socket.stat().st_mode & 0o777) == (SHARED, 0o660)
        task, encoder = a_task(config)
        cache = folder / "anna" / "cache"
        closed = [site, cache, cache / "images.npy", cache / "index.csv", folder / "anna" / "state"]
        assert all(path.exists() for path in closed)
        app = subprocess.run(
            [sys.executable, "-c", AS_APP, PATHS, str(socket), "-", *map(str, closed)],
            input=f"{json.dumps(task)}\n{encoder.hex()}\n", env=environment(), cwd="/",
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert app.returncode == 0, app.stderr
    finally:
        process.terminate()
        log = process.communicate(timeout=60)[1]
    opened, record, digest = json.loads(app.stdout)
    assert opened == []
    request = work.Request("train", lambda: task, frames.limited(encoder))
    reply, update = work.answer(request, lambda: read_settings(direct))
    assert update is not None
    assert digest == hashlib.sha256(update).hexdigest()
    assert record["loss"] == wire.to_record(reply)["loss"]
    assert process.returncode == 0
    assert "sent: " in log


def test_a_service_killed_in_a_round_costs_the_run_not_one_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fed.settings(*SETTINGS, "federation.sites=[anna,bona]")
    plain = fed.make_sites(tmp_path / "plain", ["anna", "bona"], images=10)
    expected = fed.federation(InlineGrid(client.app, plain), config, tmp_path / "a").run()

    sites = fed.make_sites(tmp_path / "served", ["anna", "bona"], images=10)
    place = folder / "b" / "site.sock"
    running = [services.Serving(sites[1], place).wait()]

    def steps(*said: object) -> None:
        """Kill bona's service at its first step in the second round, and start it again."""
        others = [line.round for line in sent.read(sites[0].parent / "state") if line.kind == "train"]
        if said[0] == "%s steps" and others == [0, 1] and len(running) == 1:
            running[0].kill()
            running.append(services.Serving(sites[1], place))

    monkeypatch.setattr(courier.log, "info", steps)
    with services.in_a_thread(sites[0], folder / "a" / "site.sock"):
        grid = services.Grid(client.app, sites, [folder / "a" / "site.sock", place])
        found = fed.federation(grid, config, tmp_path / "b").run()
    assert len(running) == 2
    running[1].process.send_signal(signal.SIGTERM)
    assert running[1].process.wait(60) == 0
    assert "site service ended" in running[1].said()
    with (tmp_path / "b" / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    lost = [(row["site"], row["reason"]) for row in rows if row["outcome"] == "failed"]
    assert lost == [("bona", wire.FAILURES["service"])]
    assert expected.encoder.keys() == found.encoder.keys()
    assert all(torch.equal(tensor, found.encoder[name]) for name, tensor in expected.encoder.items())


def test_a_service_that_is_ended_at_work_replies_so(folder: Path, tmp_path: Path) -> None:
    """SIGTERM, as for an upgrade: at the next step, with the state as it was."""
    config = fed.settings("federation.local_epochs=400")
    site = fed.make_site(tmp_path / "anna", "anna", images=10)
    fed.approve(config, site)
    task, encoder = a_task(config)
    with services.Serving(site, folder / "run" / "site.sock") as serving:
        handler = logging.Handler()
        handler.emit = lambda record: serving.process.terminate()  # type: ignore[method-assign]
        courier.log.addHandler(handler)
        courier.log.setLevel(logging.INFO)
        try:
            reply = courier.carry(str(serving.socket), "train", task, encoder)
        finally:
            courier.log.removeHandler(handler)
            courier.log.setLevel(logging.NOTSET)
        assert serving.process.wait(60) == 0
    assert reply == ({"site": "anna", "failure": "service"}, None)
    assert not list((site.parent / "state").glob("smoke/*"))
