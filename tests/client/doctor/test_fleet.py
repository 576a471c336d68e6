"""The clock and the node key, against Flower's own server application."""

import datetime
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from superlinks import Authority, Key, Probe, SuperLink, https

from client.doctor import fleet as fleets
from client.doctor.checks import Check
from client.doctor.fleet import fleet, read_key
from client.doctor.network import Server


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with (
        pytest.MonkeyPatch.context() as patch,
        SuperLink(Authority(tmp_path_factory.mktemp("ca"))).running(patch) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def _right_clock(superlink: SuperLink) -> None:
    superlink.shift = 0.0


@pytest.fixture
def key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def by_name(server: Server, key: Key | None, clock: fleets.Clock = time.time) -> dict[str, Check]:
    return {check.name: check for check in fleet(server, key, clock)}


def test_flower_still_has_the_bounds_that_are_told() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert fleets.AHEAD == SYSTEM_TIME_TOLERANCE
    assert fleets.BEHIND == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_a_registered_key_and_a_right_clock(superlink: SuperLink, key: Key) -> None:
    superlink.register(key)
    found = by_name(superlink.server, key)
    assert {name: check.state for name, check in found.items()} == {"clock": "ok", "registration": "ok"}


def test_an_unregistered_key(superlink: SuperLink, key: Key) -> None:
    superlink.register(ec.generate_private_key(ec.SECP384R1()))
    found = by_name(superlink.server, key)
    assert found["clock"].state == "ok"
    assert found["registration"].state == "failed"
    assert found["registration"].value == "the server does not know this site's key"


def test_a_key_that_was_registered_once(superlink: SuperLink, key: Key) -> None:
    superlink.state.delete_node("a", superlink.register(key))
    assert by_name(superlink.server, key)["registration"].state == "failed"


@pytest.mark.parametrize(
    ("shift", "state", "said"),
    [
        (-3600.0, "failed", "ahead of"),
        (-5.6, "failed", "ahead of"),
        (-4.0, "warning", "ahead of"),
        (-2.4, "ok", "ahead of"),
        (2.0, "ok", "behind"),
        (302.4, "ok", "behind"),
        (304.0, "warning", "behind"),
        (305.6, "failed", "behind"),
        (86400.0, "failed", "behind"),
    ],
)
def test_the_clock_is_measured_to_a_fraction_of_a_second(
    superlink: SuperLink, key: Key, shift: float, state: str, said: str
) -> None:
    superlink.register(key)
    superlink.shift = shift
    found = by_name(superlink.server, key)
    assert found["clock"].state == state, found["clock"].value
    assert said in found["clock"].value
    assert abs(float(found["clock"].value.split()[0]) - abs(shift)) < 0.4
    assert found["registration"].state == "ok"  # a wrong clock is one line, not two


def test_the_bounds_are_those_that_the_server_holds_to(superlink: SuperLink, key: Key) -> None:
    superlink.register(key)
    for shift, word in ((-5.3, "refused"), (-4.5, "registered"), (304.5, "registered"), (305.3, "refused")):
        superlink.shift = shift
        handshake = fleets.Handshake(superlink.server, key, time.time)
        assert handshake.ask().word == word
        handshake.close()


def test_a_wrong_clock_at_the_site_is_the_same(superlink: SuperLink, key: Key) -> None:
    found = by_name(superlink.server, key, lambda: time.time() + 60)
    assert found["clock"].state == "failed"
    seconds, side = found["clock"].value.split(" s ")[:2]
    assert abs(float(seconds) - 60) < 0.4
    assert side.startswith("ahead of")
    assert found["registration"].value == "the server does not know this site's key"


def test_a_running_node_is_left_as_it_is(superlink: SuperLink, key: Key) -> None:
    from flwr.supercore.constant import NodeStatus

    node = superlink.register(key)

    def told() -> object:
        (info,) = superlink.state.get_node_info(node_ids=[node])
        return info.status, info.online_until, info.last_activated_at, info.last_deactivated_at

    before = told()
    by_name(superlink.server, key)
    assert told() == before
    assert superlink.state.activate_node(node, 30)
    online = told()
    assert by_name(superlink.server, key)["registration"].state == "ok"
    assert told() == online
    assert online[0] == NodeStatus.ONLINE  # type: ignore[index]


def test_the_coordinator_has_a_clock_and_no_key(superlink: SuperLink) -> None:
    assert list(by_name(superlink.server, None)) == ["clock"]


def test_a_server_that_is_no_superlink(tmp_path: Path, key: Key) -> None:
    authority = Authority(tmp_path)
    no_post = type("Handler", (BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
    with https(authority.issue(), no_post) as port:
        found = by_name(Server("localhost", port, authority.pem), key)
    assert found["node keys"].state == "failed"
    assert "does not answer as a SuperLink does (HTTP 501)" in found["node keys"].value


def answering(status: int, tmp_path: Path, key: Key) -> dict[str, Check]:
    class Handler(Probe):
        asked = 0

        def do_POST(self) -> None:  # noqa: N802 - the name that http.server asks for
            Handler.asked += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401 if status == 429 and Handler.asked == 1 else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    authority = Authority(tmp_path)
    with https(authority.issue(), Handler) as port:
        return by_name(Server("localhost", port, authority.pem), key)


def test_a_proxy_without_a_superlink_behind_it(tmp_path: Path, key: Key) -> None:
    assert "does not reach the SuperLink (HTTP 502)" in answering(502, tmp_path, key)["node keys"].value


def test_a_server_that_will_not_be_asked_so_often(tmp_path: Path, key: Key) -> None:
    assert {name: check.state for name, check in answering(429, tmp_path, key).items()} == {
        "clock": "warning"
    }


def written(file: Path, key: Key | ed25519.Ed25519PrivateKey, mode: int = 0o600) -> Path:
    file.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()))
    file.chmod(mode)
    return file


def test_a_key_file_is_read_as_flower_reads_it(tmp_path: Path, key: Key) -> None:
    file = written(tmp_path / "node-key", key)
    read, check = read_key(file)
    assert read is not None
    assert check.state == "ok"
    command = ["ssh-keygen", "-l", "-f", str(file)]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return
    assert check.value.split(", ")[1] in printed


def test_wrong_key_files_are_told_apart(tmp_path: Path, key: Key) -> None:
    assert read_key(written(tmp_path / "open", key, 0o644))[1].state == "warning"
    public = tmp_path / "node-key.pub"
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH))
    (tmp_path / "text").write_text("not a key")
    other = written(tmp_path / "other", ed25519.Ed25519PrivateKey.generate())
    for file, said in (
        (public, "a public key"),
        (tmp_path / "text", "not a private key"),
        (other, "another kind"),
        (tmp_path / "none", "not readable"),
    ):
        read, check = read_key(file)
        assert read is None
        assert check.state == "failed"
        assert said in check.value


def test_the_date_header_alone_would_be_too_rough() -> None:
    ours = datetime.datetime(2026, 11, 22, 12, 0, 0, 900_000, datetime.UTC).timestamp()
    rough = fleets._server_minus("Sun, 22 Nov 2026 12:00:00 GMT", ours)
    assert rough is not None
    assert abs(rough) <= 0.5
    assert fleets._server_minus("nonsense", ours) is fleets._server_minus(None, ours) is None
