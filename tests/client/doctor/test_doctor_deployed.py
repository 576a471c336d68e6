"""`sscxr doctor` against a real SuperLink behind nginx, as `deploy/` starts them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployments import BIN, NAME, NGINX, SETTINGS, Deployment
from processes import wait_until
from simulations import environment
from superlinks import Authority

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="no nginx here"),
]
SITE = "hospital-a"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("federation"), sites=(SITE,), images=80, services=True) as one:
        # Valid since yesterday: `deploy/make-ca.sh` makes certificates that a clock behind would refuse by itself.
        authority = Authority(one.folder / "ca")
        one.ca.write_text(authority.pem)
        for made, wanted in zip(authority.issue("localhost", "127.0.0.1"), ("crt", "key"), strict=True):
            Path(made).rename(one.etc / f"server.{wanted}")
        one.make_sites()
        one.start_superlink()
        one.start_nginx()
        one.start_service(SITE)
        yield one


def doctor(federation: Deployment, clock: str = "") -> tuple[int, dict[str, dict[str, str]]]:
    """Its exit code and its lines by name; `clock`: seconds that the whole process's clock is off."""
    shifted = (
        {"LD_PRELOAD": str(FAKETIME), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"} if clock else {}
    )
    done = subprocess.run(
        [BIN / "sscxr", "doctor", federation.site(SITE) / "site.yaml", "--json"],
        cwd=federation.home, env=environment(**shifted), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


def wrong(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: check["state"] for name, check in found.items() if check["state"] != "ok"}


def node_status(federation: Deployment) -> dict[str, str]:
    printed = federation.flwr("supernode", "list", NAME, "--format", "json")
    (node,) = json.loads(printed[printed.index("{") :])["nodes"]
    return {name: node[name] for name in ("status", "online-at", "offline-at")}


def test_a_site_from_its_first_day_to_its_first_run(federation: Deployment) -> None:
    code, found = doctor(federation)
    assert (code, wrong(found)) == (2, {"approval": "failed", "registration": "failed"})
    federation.approve("smoke", SETTINGS)
    federation.register(SITE)
    code, found = doctor(federation)
    assert (code, wrong(found)) == (0, {})
    federation.start_node(SITE)
    federation.wait_for_node(SITE)
    online = node_status(federation)
    assert online["status"] == "online"
    assert doctor(federation)[0] == 0
    assert node_status(federation) == online  # the running SuperNode was not touched
    if FAKETIME is None:
        pytest.skip("no libfaketime: the clock is not shifted")
    clocks = {"+8s": "failed", "+4s": "warning", "-304s": "warning", "-308s": "failed"}
    for clock, state in clocks.items():
        code, found = doctor(federation, clock)
        assert wrong(found) == {"clock": state}, clock
    federation.kill(SITE)
    wait_until(lambda: not federation.pids(SITE), 10, "the SuperNode ends")
