"""A federation of three hospitals on loopback, by the files of `deploy/` and with the commands of `docs/`."""

import base64
import http.client
import shutil
import socket
import ssl
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from deploy_files import DEPLOY
from deployments import BIN, NGINX, SETTINGS, Deployment
from flwr.cli.build import build_fab_from_files
from flwr.cli.install import install_from_fab
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from omegaconf import OmegaConf
from processes import free_port, wait_until
from simulations import weights

from client import sent
from client.settings import init

PROBE_BYTES = 2 << 20
slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("federation")
    with Deployment(folder, behind_nginx=NGINX is not None, services=True) as deployment:
        yield deployment.start_all()
    assert deployment.pids() == []


@pytest.fixture
def outside(federation: Deployment) -> Deployment:
    """The federation as the outside sees it."""
    if not federation.behind_nginx:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    return federation


def ask(
    federation: Deployment, port: int, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """Status and body of what a server on loopback answers, over TLS by the federation's CA."""
    context = ssl.create_default_context(cafile=str(federation.ca))
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
    try:
        connection.request(
            method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def plant(federation: Deployment, mark: Path) -> str:
    """Do what an evil run's code would: edit the honest bundle wherever Flower may look for it; its folder's name.

    Args:
        mark: the file that the edited bundle writes when it runs.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listed, cwd=federation.app, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    files = {name: federation.app / name for name in names if name and (federation.app / name).is_file()}
    fab = build_fab_from_files(files)[0]  # as `flwr run` makes it
    for site in federation.sites:
        own = federation.folder / "nodes" / site
        for home in (own / "flwr", own / "run" / "flwr", own / "run" / "tasks" / "earlier" / "flwr"):
            installed = install_from_fab(fab, home, skip_prompt=True)
            with (installed / "client" / "app.py").open("a") as file:
                file.write(f"\nopen({str(mark)!r}, 'a').close()\n")
    return installed.name


@slow
def test_three_hospitals_give_the_bytes_of_one_process(federation: Deployment, tmp_path: Path) -> None:
    from client.app import app as client
    from server.app import app as server
    from sim.engine import run_inline

    out, planted = federation.folder / "out", tmp_path / "planted"
    bundle = plant(federation, planted)
    two = ("federation.rounds=2", "federation.evaluate_every=2")
    federation.run(out, *two)
    alone = tmp_path / "alone"
    files = [_copy(file, tmp_path / "sites") for file in federation.files()]
    sites = f"federation.sites=[{','.join(federation.sites)}]"
    overrides = " ".join([*SETTINGS, *two, sites, "run.name=alone"])
    run_inline(server, client, files, {"config": "smoke", "overrides": overrides, "out": str(alone)})
    ended = federation.wait(out, limit=500)
    assert ended.state == "finished", f"{ended}\n{federation.tail()}"
    assert weights(out) == weights(alone)
    rows = (out / "sites.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 * len(federation.sites)
    assert all(",folded," in row for row in rows)
    assert not planted.exists(), "an installed bundle that was edited ran"
    for site in federation.sites:  # all of it by the site's service
        left = [(line.kind, line.round) for line in sent.read(federation.site(site) / "state")]
        assert [line for line in left if line[0] != "query"] == [("train", 0), ("train", 1), ("evaluate", 1)]
    used = [place.name for place in (federation.folder / "nodes").glob("*/run/tasks/*/flwr/apps/*")]
    assert used == [bundle] * len(federation.sites), "the very bundle, of one task: no later one finds it"


def _copy(file: Path, folder: Path) -> Path:
    """The same site with a state of its own."""
    settings = OmegaConf.load(file)
    settings.cache = str(file.parent / settings.cache)
    copy = folder / str(settings.name) / "site.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text(OmegaConf.to_yaml(settings))
    return copy


# ---- who is let in


@slow
def test_who_is_not_let_in(federation: Deployment, tmp_path: Path) -> None:
    """An unregistered key, none at all, a CA that did not sign the server's certificate, and plain HTTP."""
    port = federation.outside if federation.behind_nginx else federation.superlink_port
    init(tmp_path / "stranger", name="stranger", join=federation.home / "join.yaml")
    stranger = tmp_path / "stranger" / "node-key"
    subprocess.run([DEPLOY / "make-ca.sh", tmp_path / "other", "localhost"], check=True, capture_output=True)
    site = federation.sites[0]
    federation.start_node(site, key=stranger, name="unregistered")
    federation.start_node(site, ca=tmp_path / "other" / "ca.crt", name="wrong-ca")
    command = [BIN / "flower-supernode", "--superlink", f"localhost:{port}", "--max-retries", "1"]
    for name, words in {"plain": ["--insecure"], "no-key": ["--root-certificates", federation.ca]}.items():
        whole = [*command, *words, "--port", str(free_port())]
        federation.start(name, whole, {"PATH": f"{BIN}:/usr/bin:/bin"}, tmp_path)
    said = {
        "unregistered": "Failed to initialize the connection to the SuperLink",
        "wrong-ca": "CERTIFICATE_VERIFY_FAILED",
        "plain": "Failed to initialize the connection to the SuperLink",
        "no-key": "Failed to initialize the connection to the SuperLink",
    }
    for name, why in said.items():
        part = federation.parts[name]
        wait_until(lambda part=part: not part.alive, 90, f"{name} ends")
        log = part.log.read_text()
        assert part.process.returncode != 0
        assert "SuperNode ID" not in log
        assert why in log, log


@slow
def test_a_signature_of_another_key_is_refused(federation: Deployment) -> None:
    """Somebody who knows a hospital's public key, and has another private one."""
    site = federation.site(federation.sites[0])
    own = forms.load_ssh_private_key((site / "node-key").read_bytes(), None)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    public = public_key_to_bytes(own.public_key())
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30).SerializeToString()
    port = federation.outside if federation.behind_nginx else federation.superlink_port

    def activate(key: ec.EllipticCurvePrivateKey) -> int:
        time = now().isoformat()
        headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(key, time.encode())).decode(),
            TIMESTAMP_HEADER: time,
        }
        return ask(federation, port, "POST", "/v1/fleet/activate-node", body, **headers)[0]

    assert activate(ec.generate_private_key(ec.SECP384R1())) == 401
    assert activate(own) == 412  # let past: what it is told is that this node is online already


@slow
def test_a_site_that_is_removed_ends(federation: Deployment, tmp_path: Path) -> None:
    site = federation.sites[0]
    init(tmp_path / "guest", name="guest", join=federation.home / "join.yaml")
    key = tmp_path / "guest" / "node-key"
    node = federation.register("guest", key.with_suffix(".pub"))
    part = federation.start_node(site, key=key, name="guest")
    federation.wait_for_node("guest")
    assert "unregistered successfully" in federation.flwr("supernode", "unregister", node, "lungs")
    wait_until(lambda: not part.alive, 60, "its SuperNode ends")


# ---- what the outside sees

CONTROL = (
    "start-run",
    "list-runs",
    "stop-run",
    "register-node",
    "list-nodes",
    "stream-logs",
    "pull-artifacts",
)
PAGES = (
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/redoc",
    "/v1/runtime/acquire-task",
    "/v1/responses",
    "/v1/",
)
DETOURS = (
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol%2flist-runs",
    "/v1/fleet/%252e%252e/control/list-runs",
    "//v1/control/list-runs",
    "/v1/fleet//../control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/probe/../control/list-runs",
    "/V1/CONTROL/list-runs",
)


@slow
def test_nothing_but_the_fleet_api_is_outside(outside: Deployment) -> None:
    for path in (*(f"/v1/control/{call}" for call in CONTROL), *PAGES, *DETOURS):
        for method in ("GET", "POST", "PUT", "OPTIONS"):
            status, said = ask(outside, outside.outside, method, path)
            assert status in (400, 403, 404), f"{method} {path}: {status}"
            assert b"SuperLink" not in said
    # The same server does answer them within; a fleet call comes through, and says who is missing.
    assert ask(outside, outside.superlink_port, "GET", "/docs")[0] == 200
    assert ask(outside, outside.superlink_port, "POST", "/v1/control/list-runs")[0] != 404
    assert (
        ask(outside, outside.outside, "POST", "/v1/fleet/pull-messages", content_type=PROTOBUF_MEDIA_TYPE)[0]
        == 401
    )
    assert ask(outside, outside.outside, "GET", "/v1/fleet/pull-messages")[0] == 403


@slow
def test_a_request_too_large_is_not_passed_on(outside: Deployment) -> None:
    with socket.create_connection(("127.0.0.1", outside.outside), timeout=30) as plain:
        context = ssl.create_default_context(cafile=str(outside.ca))
        with context.wrap_socket(plain, server_hostname="localhost") as stream:
            stream.sendall(
                b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17000000\r\n\r\n"
            )
            assert b" 413 " in stream.recv(100)


@slow
def test_plain_http_is_answered_with_an_error(outside: Deployment) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", outside.outside, timeout=30)
    connection.request("POST", "/v1/fleet/pull-messages")
    assert connection.getresponse().status == 400
    connection.close()


@slow
def test_the_bandwidth_probe(outside: Deployment) -> None:
    port = outside.outside
    status, bytes_ = ask(outside, port, "GET", "/v1/probe")
    assert (status, len(bytes_)) == (200, PROBE_BYTES)
    assert len(zlib.compress(bytes_)) >= PROBE_BYTES
    assert ask(outside, port, "POST", "/v1/probe", bytes_) == (204, b"")
    assert ask(outside, port, "POST", "/v1/probe", bytes_ + b"1")[0] == 413
    assert ask(outside, port, "DELETE", "/v1/probe")[0] == 403
    answers = [ask(outside, port, "POST", "/v1/probe", b"1")[0] for _ in range(10)]
    assert set(answers) == {204, 429}


# ---- the files themselves


def make_ca(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([DEPLOY / "make-ca.sh", *map(str, words)], capture_output=True, text=True)


def test_a_ca_is_made_once_and_its_certificate_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    assert make_ca(folder, "fl.example.org", "192.0.2.7", "2001:db8::1").returncode == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(before) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in ("ca.key", "server.key"))
    again = make_ca(folder, "fl.example.org")
    assert again.returncode == 1
    assert "never overwritten" in again.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    assert make_ca("--renew", folder).returncode == 0
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert [name for name in after if after[name] != before[name]] == ["server.crt"]
    assert _hosts(folder / "server.crt", tmp_path, before["server.crt"]) == _hosts(
        folder / "server.crt", tmp_path
    )
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / "server.crt", folder / "server.key")


def _hosts(file: Path, scratch: Path, text: bytes = b"") -> str:
    if text:
        file = scratch / "earlier.crt"
        file.write_bytes(text)
    command = ["openssl", "x509", "-in", str(file), "-noout", "-ext", "subjectAltName"]
    hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "DNS:fl.example.org" in hosts
    return hosts


@pytest.mark.parametrize(
    "words", [(), ("FOLDER",), ("FOLDER", "a b"), ("FOLDER", "x,DNS:y"), ("--renew", "FOLDER")]
)
def test_a_ca_that_cannot_be_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = make_ca(*(word.replace("FOLDER", str(tmp_path / "ca")) for word in words))
    assert done.returncode == 1
    assert done.stderr.startswith("make-ca.sh: ")
    assert not (tmp_path / "ca").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
@pytest.mark.parametrize("name", ["superlink", "supernode", "site"])
def test_units_are_ones_to_systemd(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"sscxr-{name}.service"
    file.write_text((DEPLOY / f"{name}.service").read_text().replace("/opt/sscxr/venv/bin", str(BIN)))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(file)],
        capture_output=True,
        text=True,
    )
    assert scored.returncode == 0, scored.stdout  # an exposure of at most 2.0, of 10
