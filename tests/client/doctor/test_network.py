"""The way to the server: each thing that can be wrong with it is told from every other."""

import socket
from pathlib import Path
from typing import Any

import pytest
from superlinks import Authority, Probe, https

from client.doctor.bandwidth import bandwidth
from client.doctor.checks import Check
from client.doctor.network import Server, certificate, listens, proxy, resolves
from sscxr.federation.join import Join, Payload


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def shown(
    authority: Authority, host: str = "localhost", ca: str | None = None, name: str = "localhost", **leaf: Any
) -> Check:
    with https(authority.issue(name, **leaf)) as port:
        (check,) = certificate(Server(host, port, authority.pem if ca is None else ca))
    return check


def test_a_good_certificate_is_ok(authority: Authority) -> None:
    check = shown(authority)
    assert (check.state, check.advice) == ("ok", "")
    assert "364 days" in check.value


@pytest.mark.parametrize(
    ("leaf", "state", "said"),
    [
        ({"start": -30, "days": -1}, "failed", "expired on"),
        ({"start": 1}, "failed", "not valid before"),
        ({"name": "other.example.org"}, "failed", "made out to other.example.org, not to localhost"),
        ({"days": 29}, "warning", "28 days"),
        ({"days": 31.5}, "ok", "31 days"),
    ],
)
def test_dates_and_names(authority: Authority, leaf: dict[str, Any], state: str, said: str) -> None:
    check = shown(authority, **leaf)
    assert check.state == state
    assert said in check.value


def test_an_address_needs_a_certificate_of_that_address(authority: Authority) -> None:
    assert "made out to localhost, not to 127.0.0.1" in shown(authority, host="127.0.0.1").value
    assert shown(authority, host="127.0.0.1", name="127.0.0.1").state == "ok"


def test_a_wrong_ca(authority: Authority, tmp_path: Path) -> None:
    check = shown(authority, ca=Authority(tmp_path).pem)
    assert (check.state, check.value) == ("failed", "not signed by the CA given")
    assert shown(authority, ca="").value == "not signed by a publicly trusted CA"


def test_an_expired_ca_is_told_from_an_expired_certificate(tmp_path: Path) -> None:
    check = shown(Authority(tmp_path, days=-0.5))
    assert (check.state, check.value) == ("failed", "its CA, or one between, has expired")


def test_a_ca_that_ends_soon(tmp_path: Path) -> None:
    check = shown(Authority(tmp_path, days=9.5))
    assert check.state == "warning"
    assert check.value.startswith("the CA's, valid until")


def test_plain_http(authority: Authority) -> None:
    with https(None) as port:
        (check,) = certificate(Server("localhost", port, authority.pem))
    assert (check.state, check.value) == ("failed", "plain HTTP at this port, no TLS")


def test_something_that_is_no_web_server(authority: Authority) -> None:
    class Rude:
        def __init__(self, request: socket.socket, *_: Any) -> None:
            request.sendall(b"220 mail ready\r\n")

    with https(None, Rude) as port:
        (check,) = certificate(Server("localhost", port, authority.pem))
    assert (check.state, check.value) == ("failed", "no TLS connection")


def test_a_closed_and_an_open_port(authority: Authority) -> None:
    with https(authority.issue()) as port:
        (check,) = listens(Server("localhost", port, ""))
        assert (check.state, check.value) == ("ok", f"{port} is open")
    (check,) = listens(Server("localhost", port, ""))
    assert (check.state, check.value) == ("failed", f"{port} is closed: the connection was refused")


def test_a_port_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doctor.network.TIMEOUT", 0.2)
    with socket.socket() as full:  # its queue of connections is full: further ones get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        (check,) = listens(Server("127.0.0.1", full.getsockname()[1], ""))
        for one in waiting:
            one.close()
    assert check.state == "failed"
    assert "does not answer within" in check.value


def test_a_host_name_without_an_address() -> None:
    (check,) = resolves(Server("nowhere.invalid", 443, ""))
    assert (check.state, check.value) == ("failed", "nowhere.invalid has no address here")
    assert next(resolves(Server("localhost", 443, ""))).state == "ok"


def test_a_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert list(proxy(Server("fl.example.org", 443, ""))) == []
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    assert [check.state for check in proxy(Server("fl.example.org", 443, ""))] == ["warning"]
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert list(proxy(Server("fl.example.org", 443, ""))) == []


def a_join(up: float, down: float, deadline: float, probe: str = "/v1/probe") -> Join:
    return Join(
        "lungs", "localhost:1", "", {}, "{}", "", Payload(up_mb=up, down_mb=down), deadline, 1.0, probe, ""
    )


def measured(authority: Authority, join: Join, **settings: Any) -> Check:
    handler = type("Handler", (Probe,), settings)
    with https(authority.issue(), handler) as port:
        (check,) = bandwidth(Server("localhost", port, authority.pem), join)
    return check


def test_a_payload_that_the_link_carries_in_time(authority: Authority) -> None:
    check = measured(authority, a_join(44, 88, 7200))
    assert check.state == "ok", check.value


@pytest.mark.slow
def test_a_payload_too_big_for_link_and_deadline(authority: Authority) -> None:
    slow = {"rate": 4e6}  # bytes a second: at most 32 Mbit/s
    check = measured(authority, a_join(20, 40, 7200), **slow)
    assert check.state == "ok", check.value
    down = float(check.value.split(" Mbit/s down")[0])
    assert 10 < down <= 34
    check = measured(authority, a_join(20, 40, 30), **slow)  # 15 s and more
    assert check.state == "warning", check.value
    check = measured(authority, a_join(20, 40, 10), **slow)
    assert check.state == "failed", check.value
    assert "20 MB up take" in check.value


def test_a_very_slow_link_is_not_waited_for(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doctor.bandwidth._LONGEST", 0.5)
    check = measured(authority, a_join(44, 88, 250), rate=3e5)
    assert check.state == "failed", check.value
    assert float(check.value.split(" Mbit/s down")[0]) < 3


def test_no_probe_is_a_warning(authority: Authority) -> None:
    check = measured(authority, a_join(1, 1, 60), status=404)
    assert (check.state, check.value) == ("warning", "not measured: the server answers HTTP 404")
    assert measured(authority, a_join(1, 1, 60, probe="")).state == "warning"
