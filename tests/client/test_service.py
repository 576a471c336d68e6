"""The site service: a task over the real socket is the same work, and whatever is not on the list is refused."""

import json
import logging
import socket as sockets
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import federation as fed
import grpc
import pytest
import services
import torch
from answers import failure, said, states, update

from client import app as client
from client import sent, work
from client import service as services_code
from client.service import Service
from client.settings import SiteError, read_settings
from sscxr import config as configs
from sscxr.federation import codecs, courier, frames, wire
from sscxr.stages.pretrain import SiteTraining

CONFIG = fed.settings("federation.local_epochs=3")


@pytest.fixture
def socket() -> Iterator[Path]:
    with services.short_folder() as folder:
        yield folder / "run" / "site.sock"


@pytest.fixture
def service(site: Path, socket: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Service]:
    caplog.set_level(logging.INFO, logger="sscxr.site")
    fed.approve(CONFIG, site)
    with services.in_a_thread(site, socket) as running:
        yield running


def task(**fields: object) -> dict[str, object]:
    fingerprint = wire.fingerprint(configs.recipe_hash(CONFIG))
    made = wire.Task(CONFIG.run.name, 0, 0, "", configs.dumps(CONFIG), fingerprint, 600.0)
    return {**wire.to_record(made), **fields}


def encoder() -> bytes:
    return codecs.encode(fed.start(CONFIG).encoder, CONFIG.federation.downlink)


def carry(socket: Path, kind: str = "train", **fields: object) -> tuple[dict[str, object], bytes | None]:
    return courier.carry(str(socket), kind, task(**fields), encoder())  # type: ignore[return-value]


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# ---- the same work


@pytest.mark.usefixtures("service")
def test_rounds_over_the_socket_are_those_of_one_process(site: Path, socket: Path, tmp_path: Path) -> None:
    """Two rounds, the second from the state of the first, and an evaluation: the bytes of replies and of states."""
    direct = fed.make_site(tmp_path / "direct" / "anna", "anna", images=10)
    fed.approve(CONFIG, direct)
    steps = [
        ("query", {}),
        ("train", {}),
        ("train", {"round": 1, "base": "r00000-a00"}),
        ("evaluate", {"round": 1, "base": "r00001-a00"}),
    ]
    for kind, fields in steps:
        there, there_update = carry(socket, kind, **fields)
        asked = task(**fields)
        request = work.Request(kind, lambda asked=asked: asked, frames.limited(encoder()))  # type: ignore[misc]
        here, here_update = work.answer(request, lambda: read_settings(direct))
        assert not isinstance(here, wire.Failure)
        expected = wire.to_record(here)
        for record in (there, expected):
            record.pop("seconds", None)
        assert (there, there_update) == (expected, here_update)
        assert {type(value) for value in there.values()} <= {str, int, float}
    own, others = states(site), states(direct)
    del own[sent.FILE]
    assert own == others


@pytest.mark.usefixtures("service")
def test_the_app_of_a_node_with_a_service_carries_and_reads_nothing(site: Path, socket: Path) -> None:
    grid = services.Grid(client.app, [site], [socket])
    del grid._contexts[1].node_config["site"], grid._contexts[1].node_config["partition-id"]
    message = fed.task_message(CONFIG, "train")
    (reply,) = grid.send_and_receive([message])
    assert wire.from_record(wire.TrainReply, said(reply)).site == "anna"
    assert len(update(reply)) > 1000
    # The same node without its service has nothing to train on.
    grid._contexts[1].node_config.clear()
    (reply,) = grid.send_and_receive([message])
    assert failure(reply) == "settings"


@pytest.mark.usefixtures("service")
def test_steps_are_reported_at_the_first_and_once_a_second(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_code, "_EVERY", 3600.0)  # three steps may take longer than a second
    said = raw(socket, frames.method("train"), list(frames.of(task(), encoder())))
    assert [frame for frame in said if frame[:1] == frames.STEPS] == [b"s1"]
    monkeypatch.setattr(services_code, "_EVERY", -1.0)
    said = raw(socket, frames.method("train"), list(frames.of(task(attempt=1), encoder())))
    assert [frame for frame in said if frame[:1] == frames.STEPS] == [b"s1", b"s2", b"s3"]
    assert said[3][:1] == frames.RECORD


@pytest.mark.usefixtures("service")
def test_what_is_compiled_lasts_as_long_as_its_recipe(
    site: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: begun.append(len(begun)))
    other = fed.settings("federation.local_epochs=4")
    fed.approve(other, site)
    its = {"config": configs.dumps(other), "fingerprint": wire.fingerprint(configs.recipe_hash(other))}
    longer = fed.settings("pretrain.lr=0.01")
    fed.approve(longer, site)
    anothers = {"config": configs.dumps(longer), "fingerprint": wire.fingerprint(configs.recipe_hash(longer))}
    counts = []
    for fields in ({}, {"attempt": 1}, its, anothers, anothers):
        assert "failure" not in carry(socket, "query", **fields)[0]
        counts.append(len(begun))
    assert counts == [1, 1, 1, 2, 2]


def test_what_left_is_listed(site: Path, socket: Path, service: Service) -> None:
    record, data = carry(socket)
    carry(socket, "evaluate")
    carry(socket, "query")
    assert data is not None
    lines = sent.read(site.parent / "state")
    assert [(line.kind, line.run, line.stage, line.round) for line in lines] == [
        (kind, "smoke", "pretrain", 0) for kind in ("train", "evaluate", "query")
    ]
    assert lines[0].bytes == len(json.dumps(record)) + 1 + len(data) + 1 + (len(data) - 1) // (
        frames.FRAME - 1
    )
    assert "smoke pretrain round 1 attempt 1: an update" in lines[0].words
    assert (site.parent / "state" / sent.FILE).stat().st_mode & 0o777 == 0o600


def test_a_reply_that_cannot_be_recorded_does_not_leave(
    site: Path, socket: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sent, "add", full)
    assert carry(socket) == ({"site": "anna", "failure": "disk"}, None)


# ---- what a hostile bundle may try


def raw(socket: Path, method: str, sends: list[bytes]) -> list[bytes]:
    """What comes back over a call of one's own."""
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        return list(channel.stream_stream(method)(iter(sends)))


@pytest.mark.parametrize(
    "method",
    ["/sscxr.Site1/read", "/sscxr.Site1/", "/sscxr.Site1/../etc/passwd", "/grpc.health.v1.Health/Check"],
)
@pytest.mark.usefixtures("service")
def test_another_method_is_refused(socket: Path, caplog: pytest.LogCaptureFixture, method: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw(socket, method, [b"r{}"])
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert refusals(caplog) == [f"request refused: {method!r} is not a method of this service"]


RECORD = b"r" + json.dumps(task()).encode()
BAD = {
    "nothing": ([], "broke off"),
    "no record": ([b"p123"], "does not begin with its record"),
    "not JSON": ([b"r{"], "not JSON"),
    "a list": ([b"r[1]"], "a JSON list"),
    "deep": ([b"r" + b"[" * 100_000], "not JSON"),
    "a path": ([b"r" + json.dumps(task(path="/srv/cache")).encode()], "unexpected: 1"),
    "another run's folder": ([b"r" + json.dumps(task(run="../../etc")).encode()], "run '../../etc'"),
    "another base": ([b"r" + json.dumps(task(base="../../../x")).encode()], "../../../x"),
    "long": ([b"r" + b" " * frames.RECORD_BYTES + b"{}"], "a record of 262147 bytes"),
    "giant": ([b"r" + b"x" * (5 << 20)], "a frame of more than"),
    "no encoder": ([RECORD], "a task without an encoder"),
    "a short encoder": ([RECORD, b"p" + b"0" * 100], "weights of 100 bytes"),
    "more encoder": ([RECORD, *[b"p" + b"\0" * 900_000] * 9], "an encoder of more than the"),
    "a frame of another kind": ([RECORD, b"x/srv/cache"], "not a piece of an encoder"),
    "a frame too long": ([RECORD, b"p" + b"0" * frames.FRAME], "not a piece of an encoder"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("service")
def test_a_tampered_task_is_refused_in_one_line(
    site: Path, socket: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    sends, reason = BAD[name]
    if name == "giant":  # gRPC itself ends a call whose message is larger than it reads
        with pytest.raises(grpc.RpcError) as ended:
            raw(socket, frames.method("train"), sends)
        assert ended.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
        services.wait_until(lambda: refusals(caplog), 20, "the refusal is logged")
    else:
        (reply,) = raw(socket, frames.method("train"), sends)
        assert frames.record(reply) == {"site": "anna", "failure": "request"}
    (line,) = refusals(caplog)
    assert reason in line
    assert not set(states(site)) - {"_service.lock"}
    assert carry(socket)[1], "and the service goes on"


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("sends", [[], [RECORD]], ids=["nothing", "no encoder"])
def test_a_task_that_does_not_arrive_ends(
    socket: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sends: list[bytes]
) -> None:
    monkeypatch.setattr(services_code, "_ARRIVES", 0.5)
    never = threading.Event()

    def stalling() -> Iterator[bytes]:
        yield from sends
        never.wait(60)

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        with pytest.raises(grpc.RpcError):
            list(channel.stream_stream(frames.method("train"))(stalling()))
        never.set()
    services.wait_until(lambda: refusals(caplog), 20, "it is logged")
    assert "a message that broke off, took more than" in refusals(caplog)[0]
    monkeypatch.setattr(services_code, "_ARRIVES", 60.0)
    assert carry(socket)[1]


@pytest.mark.usefixtures("service")
def test_a_repeated_task_is_refused(site: Path, socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert carry(socket)[1]
    before = states(site)
    assert carry(socket, budget=500.0) == ({"site": "anna", "failure": "request"}, None)
    assert "a repeat: run smoke had its answer to train in round 1, attempt 1, at 20" in refusals(caplog)[0]
    assert states(site) == before, "what the site keeps is untouched"
    assert carry(socket, attempt=1)[1]
    assert carry(socket, "evaluate")[0]["images"] == 2
    assert carry(socket, "evaluate")[0]["failure"] == "request"


@pytest.mark.usefixtures("service")
def test_the_site_s_own_rules_hold_whatever_the_bundle_does(
    site: Path, socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = site.read_text()
    site.write_text(f"{text}\npaused: true\n")
    assert carry(socket)[0]["failure"] == "paused"
    site.write_text(text)
    other = fed.settings("federation.local_epochs=4")
    mine = {"config": configs.dumps(other), "fingerprint": wire.fingerprint(configs.recipe_hash(other))}
    assert carry(socket, **mine)[0]["failure"] == "not approved"
    assert len(refusals(caplog)) == 2
    assert not sent.read(site.parent / "state")


@pytest.mark.usefixtures("service")
def test_a_site_trains_so_many_rounds_a_day(
    site: Path, socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = site.read_text()
    site.write_text(f"{text}\nlimits: {{rounds_a_day: 2}}\n")
    folder = site.parent / "state"
    yesterday = sent.Sent(sent.now(hours_ago=24.1), "train", "other", "pretrain", 0, 0, 1)
    sent.add(folder, yesterday)
    sent.add(folder, replace(yesterday, time=sent.now(hours_ago=23.9)))
    assert carry(socket)[1]
    refused = carry(socket, attempt=1)
    assert refused == ({"site": "anna", "failure": "not allowed"}, None)
    assert refusals(caplog) == ["2 updates left in 24 hours; site.yaml allows limits.rounds_a_day=2"]
    assert carry(socket, "evaluate")[0]["images"] == 2


@pytest.mark.usefixtures("service")
def test_a_site_trains_so_many_seconds_a_round(site: Path, socket: Path) -> None:
    text = site.read_text()
    site.write_text(f"{text}\nlimits: {{round_seconds: 0.0001}}\n")
    assert carry(socket) == ({"site": "anna", "failure": "time"}, None)


def test_a_record_that_a_power_cut_damaged_is_read_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = sent.Sent(sent.now(), "train", "run", "pretrain", 0, 0, 10)
    sent.add(tmp_path, line)
    with (tmp_path / sent.FILE).open("a") as file:
        file.write('{"time": "20')
    sent.add(tmp_path, replace(line, round=1))
    with (tmp_path / sent.FILE).open("a") as file:  # lines of JSON that no service wrote
        for wrong in ([], {**asdict(line), "time": 5}, {**asdict(line), "round": None}, {"time": "2026"}):
            file.write(json.dumps(wrong) + "\n")
    assert [one.round for one in sent.read(tmp_path)] == [0, 1]
    sent.check_daily(sent.read(tmp_path), 5)
    assert caplog.messages[-1].endswith("damaged lines, which are left out: 5")


# ---- one task at a time, and ends


def test_a_second_task_waits_and_is_then_refused(
    site: Path,
    socket: Path,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    really = work.WORK["train"]

    def slow(*given: object) -> work.Reply:
        inside.set()
        assert go_on.wait(60)
        return really(*given)  # type: ignore[arg-type]

    monkeypatch.setitem(work.WORK, "train", slow)
    monkeypatch.setattr(services_code, "_WAITS", 0.2)
    replies: list[object] = []
    first = threading.Thread(target=lambda: replies.append(carry(socket)))
    first.start()
    assert inside.wait(60)
    assert carry(socket, "query")[0] == {"site": "unknown", "failure": "busy"}
    assert "query refused: another task is being done" in refusals(caplog)
    monkeypatch.setattr(services_code, "_WAITS", 60.0)
    second = threading.Thread(target=lambda: replies.append(carry(socket, "query")))
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert [reply[0].get("images") for reply in replies] == [8, 8]  # type: ignore[index]


def test_work_for_a_courier_that_was_killed_is_dropped(
    site: Path,
    socket: Path,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside, gone = threading.Event(), threading.Event()
    really = SiteTraining.train_round

    def slow(*given: Any, **named: Any) -> object:
        inside.set()
        assert gone.wait(60)
        return really(*given, **named)

    monkeypatch.setattr(SiteTraining, "train_round", slow)
    channel = grpc.insecure_channel(f"unix:{socket}")
    call = channel.stream_stream(frames.method("train"))(frames.of(task(), encoder()))
    assert inside.wait(60)
    call.cancel()
    channel.close()
    services.wait_until(lambda: service.at_work and service.at_work.gone.is_set(), 20, "it is noticed")
    gone.set()
    services.wait_until(lambda: refusals(caplog), 60, "it is dropped")
    assert "nobody waits for the task any more" in refusals(caplog)[0]
    monkeypatch.setattr(SiteTraining, "train_round", really)
    assert not sent.read(site.parent / "state")
    assert carry(socket)[1], "the same attempt, again"


def test_without_a_service_the_courier_says_so(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "_PATIENCE", 0.5)
    failed = ({"site": "unknown", "failure": "service"}, None)
    assert carry(socket) == failed
    socket.parent.mkdir()
    assert carry(socket) == failed
    with sockets.socket(sockets.AF_UNIX) as deaf:
        deaf.bind(str(socket))
        assert carry(socket) == failed


# ---- the socket's place


def test_the_socket_is_for_its_account_and_group(service: Service, socket: Path) -> None:
    assert socket.stat().st_mode & 0o777 == 0o660
    assert socket.parent.stat().st_mode & 0o777 == 0o750


def test_a_place_where_others_could_put_a_socket_is_refused(site: Path, socket: Path) -> None:
    socket.parent.mkdir(mode=0o700)
    socket.parent.chmod(0o777)
    with pytest.raises(SiteError, match="other accounts could put their own socket there"):
        services_code.serve(site, socket)
    socket.parent.chmod(0o700)
    socket.write_text("a file")
    with pytest.raises(SiteError, match="not a socket"):
        services_code.serve(site, socket)
    with pytest.raises(SiteError, match="at most 100 letters"):
        services_code.serve(site, socket.parent / ("x" * 100))
    with pytest.raises(SiteError, match="no-such-group"):
        services_code.serve(site, socket.parent / "s", "no-such-group")


def test_two_services_of_one_site_are_refused(site: Path, socket: Path) -> None:
    from sscxr.files import locked

    (site.parent / "state").mkdir()
    with (
        locked(site.parent / "state" / "_service.lock"),
        pytest.raises(SiteError, match="another site service"),
    ):
        services_code.serve(site, socket)
