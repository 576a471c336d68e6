"""Rounds against the real ClientApp: bad replies end in a row of the table, and the round goes on."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client import app as client
from server import mail, roster, rounds
from server.fold import ARRAYS, RECORD
from server.ledger import Ledger
from server.mail import RunStopped
from server.rounds import Federation
from sim.engine import InlineGrid
from sscxr import codecs, wire
from sscxr.training.pretrain import SiteTraining

NAMES = ["anna", "bona", "cora"]
PATIENT = "DOE^JANE"  # a name that may be on no disk of the server's


@pytest.fixture(scope="module")
def replies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Message]:
    """A good reply of each site to round 0, trained once for all tests that damage one."""
    config = fed.settings("federation.rounds=1")
    sites = fed.make_sites(tmp_path_factory.mktemp("sites"), NAMES)
    return {site.parent.name: fed.ask(config, site) for site in sites}


class Replay(InlineGrid):
    """Sites that answer `train` with replies made before, changed where `damage` names the site."""

    def __init__(self, sites: list[Path], replies: dict[str, Message], damage: dict[str, fed.Damage]) -> None:
        def copy(reply: Message, request: Message) -> Message:
            return answer(request, dict(reply.content.config_records[RECORD]), arrays(reply))

        def answer_of(name: str) -> fed.Damage:
            change = damage.get(name, lambda reply, request: reply)
            return lambda _, request: change(copy(replies[name], request), request)

        changes = {site.parent.name: answer_of(site.parent.name) for site in sites}
        super().__init__(fed.damaging(changes, train=False), sites)


def arrays(reply: Message) -> dict[str, Array]:
    return dict(reply.content.array_records[ARRAYS].items())


def answer(request: Message, fields: dict[str, Any], tensors: dict[str, Array] | None) -> Message:
    content = RecordDict({RECORD: ConfigRecord(fields)})
    if tensors is not None:
        content[ARRAYS] = ArrayRecord(tensors)
    return Message(content, reply_to=request)


def said(**fields: Any) -> fed.Damage:
    """A reply some of whose fields are others; a field that is None is left out."""

    def damage(reply: Message, request: Message) -> Message:
        record = {**reply.content.config_records[RECORD], **fields}
        return answer(request, {k: v for k, v in record.items() if v is not None}, arrays(reply))

    return damage


def sent(change: Callable[[np.ndarray[Any, Any]], object], name: str = "norm.bias") -> fed.Damage:
    """A reply one of whose tensors is another; what `change` returns, or the array that it changed."""

    def damage(reply: Message, request: Message) -> Message:
        tensors = arrays(reply)
        values = tensors[name].numpy().copy()
        changed = change(values)
        values = changed if isinstance(changed, np.ndarray) else values
        tensors[name] = changed if isinstance(changed, Array) else Array(values)
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def filled(value: float) -> fed.Damage:
    return sent(lambda values: values.__setitem__(0, value))


def without(name: str) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        tensors = {key: value for key, value in arrays(reply).items() if key != name}
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def with_more(name: str) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        tensors = {**arrays(reply), name: Array(np.zeros(3, np.float16))}
        return answer(request, dict(reply.content.config_records[RECORD]), tensors)

    return damage


def archive() -> Array:
    """What numpy opens as a lazy dictionary and not as an array."""
    buffer = io.BytesIO()
    np.savez(buffer, values=np.zeros(1, np.float16))
    return Array(dtype="float16", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float16", shape=(192,), stype=stype, data=data)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([PATIENT], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def huge_header() -> bytes:
    """A small file that says that it holds 2^60 values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": (2**60,)})
    return buffer.getvalue()


REFUSED: dict[str, tuple[fed.Damage, str]] = {
    "NaN": (filled(math.nan), "NaN or infinity in norm.bias"),
    "Inf": (filled(math.inf), "NaN or infinity in norm.bias"),
    "-Inf": (filled(-math.inf), "NaN or infinity in norm.bias"),
    "longer": (sent(lambda values: np.zeros(193, np.float16)), "wrong shape (193,)"),
    "transposed": (sent(lambda values: values.T.copy(), "blocks.0.attn.qkv.weight"), "wrong shape"),
    "fp32": (sent(lambda values: values.astype(np.float32)), "wrong dtype float32"),
    "integers": (sent(lambda values: values.astype(np.int16)), "wrong dtype int16"),
    "fp64 and long": (sent(lambda values: np.zeros(4096)), "oversized tensor norm.bias"),
    "missing": (without("pos_embed"), "missing tensor pos_embed"),
    "extra": (with_more(PATIENT), "unexpected"),
    "empty": (lambda reply, request: answer(request, dict(fields(reply)), {}), "missing tensor"),
    "no arrays": (lambda reply, request: answer(request, dict(fields(reply)), None), "without its update"),
    "no record": (lambda _, request: Message(RecordDict(), reply_to=request), "without its record"),
    "norm": (filled(3e4), "out of bounds"),
    "archive": (sent(lambda values: archive()), "unreadable tensor norm.bias"),
    "pickle": (sent(lambda values: raw(pickled())), "unreadable tensor norm.bias"),
    "no bytes": (sent(lambda values: raw(b"")), "unreadable tensor norm.bias"),
    "noise": (sent(lambda values: raw(b"\x93NUMPY" + bytes(90))), "unreadable tensor norm.bias"),
    "bomb": (sent(lambda values: raw(huge_header())), "unreadable tensor norm.bias"),
    "other form": (sent(lambda values: raw(b"", "torch")), "unreadable tensor norm.bias"),
    "other round": (said(round=1), "not to this message"),
    "other attempt": (said(attempt=1), "not to this message"),
    "other site": (said(site="anna"), "not to this message"),
    "patient for a site": (said(site=PATIENT), "not to this message"),
    "other recipe": (said(fingerprint="{}"), "not to this message"),
    "no images": (said(images=0), "images, steps or seconds out of range"),
    "negative images": (said(images=-40), "images, steps or seconds out of range"),
    "endless images": (said(images=2**62), "images, steps or seconds out of range"),
    "no steps": (said(steps=0), "images, steps or seconds out of range"),
    "negative seconds": (said(seconds=-1.0), "images, steps or seconds out of range"),
    "negative loss": (said(loss=-0.5), "loss out of range"),
    "endless loss": (said(loss=1e308), "loss out of range"),
    "NaN loss": (said(loss=math.nan), "TrainReply.loss is nan"),
    "text for a number": (said(images=PATIENT), "TrainReply.images is str"),
    "number for a text": (said(site=3), "TrainReply.site is int"),
    "list": (said(loss=[0.5]), "TrainReply.loss is list"),
    "field missing": (said(images=None), "missing: images"),
    "field extra": (said(**{PATIENT: 1}), "unexpected: 1"),
}
FAILED: dict[str, tuple[fed.Damage, str]] = {
    "error": (
        lambda _, request: Message(Error(code=3, reason=f"KeyError: {PATIENT}"), reply_to=request),
        "Flower error 3",
    ),
    "failure of its own words": (
        lambda _, request: answer(request, {"site": "bona", "failure": PATIENT}, None),
        "a reason that is not on the list",
    ),
    "failure": (
        lambda _, request: answer(request, {"site": "bona", "failure": "memory"}, None),
        "it ran out of memory",
    ),
}


def fields(reply: Message) -> dict[str, Any]:
    return dict(reply.content.config_records[RECORD])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "sites.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def disk(folder: Path) -> bytes:
    return b"\n".join(
        str(file.name).encode() + b"\n" + file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )


def sites(folder: Path) -> list[Path]:
    return fed.make_sites(folder / "sites", NAMES, images=4)


def encoder(out: Path, config: Any) -> dict[str, torch.Tensor]:
    state = Ledger(out, config, resume=True).last()
    assert state is not None
    return state.encoder


# ---- replies


@pytest.mark.parametrize("case", [*REFUSED, *FAILED])
def test_a_bad_reply_is_in_the_table_and_the_round_goes_on_without_it(
    tmp_path: Path, replies: dict[str, Message], case: str
) -> None:
    damage, reason = {**REFUSED, **FAILED}[case]
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6")
    state = fed.federation(Replay(sites(tmp_path), replies, {"bona": damage}), config, tmp_path / "out").run()
    rows = {row["site"]: row for row in table(tmp_path / "out")}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "anna": "folded",
        "bona": "refused" if case in REFUSED else "failed",
        "cora": "folded",
    }
    assert reason in rows["bona"]["reason"]
    assert rows["bona"]["images"] == rows["bona"]["update_norm"] == ""
    assert state.bases.keys() == {"anna", "cora"}, "its state of this round does not count"
    assert PATIENT.encode() not in disk(tmp_path / "out")
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert (record["sites"], record["roster"]) == (2, 3)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.encoder.values())


SCALE = "blocks.0.attn.qkv.weight:scale"
REFUSED_INT8: dict[str, tuple[fed.Damage, str]] = {
    "scale beyond fp32": (
        sent(lambda scales: scales.__setitem__(3, 1e38), SCALE),
        "scale of blocks.0.attn.qkv",
    ),
    "negative scale": (sent(lambda scales: scales.__setitem__(3, -1.0), SCALE), "scale of blocks.0.attn.qkv"),
    "NaN scale": (sent(lambda scales: scales.__setitem__(3, math.nan), SCALE), f"NaN or infinity in {SCALE}"),
    "large scale": (sent(lambda scales: scales.__setitem__(3, 1e5), SCALE), "out of bounds"),
    "no scales": (without(SCALE), f"missing tensor {SCALE}"),
    "long scales": (sent(lambda scales: np.zeros(9999, np.float32), SCALE), f"oversized tensor {SCALE}"),
    "fp16": (sent(lambda values: values.astype(np.float16)), "wrong dtype float16"),
    "another's scales": (with_more(f"{PATIENT}:scale"), "unexpected"),
}


@pytest.fixture(scope="module")
def replies_int8(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Message]:
    config = fed.settings("federation.rounds=1", "federation.uplink=int8")
    sites = fed.make_sites(tmp_path_factory.mktemp("sites"), NAMES)
    return {site.parent.name: fed.ask(config, site) for site in sites}


@pytest.mark.parametrize("case", REFUSED_INT8)
def test_a_bad_int8_reply_is_refused(tmp_path: Path, replies_int8: dict[str, Message], case: str) -> None:
    damage, reason = REFUSED_INT8[case]
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.uplink=int8")
    grid = Replay(sites(tmp_path), replies_int8, {"bona": damage})
    state = fed.federation(grid, config, tmp_path / "out").run()
    rows = {row["site"]: row for row in table(tmp_path / "out")}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "anna": "folded",
        "bona": "refused",
        "cora": "folded",
    }
    assert reason in rows["bona"]["reason"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.encoder.values())


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_the_ledger_counts_the_bytes_of_each_round(
    tmp_path: Path, replies: dict[str, Message], replies_int8: dict[str, Message], codec: str
) -> None:
    """Up: every update, a refused one too. Down: the encoder, once to train and once to be measured."""
    good = {"fp16": replies, "int8": replies_int8}[codec]
    config = fed.settings(
        *("federation.rounds=1", "federation.quorum=0.6", "federation.evaluate_every=1"),
        f"federation.uplink={codec}",
    )
    grid = Replay(sites(tmp_path), good, {"bona": said(images=0)})
    state = fed.federation(grid, config, tmp_path / "out").run()
    update = sum(len(array.data) for array in arrays(good["anna"]).values())
    assert [int(float(row["bytes"])) for row in table(tmp_path / "out")] == [update] * 3
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert record["bytes_up"] == 3 * update
    values, headers = codecs.payload_bytes(codec, state.encoder), 128 * len(arrays(good["anna"]))
    assert update == values + headers
    down = codecs.payload_bytes("fp32", state.encoder) + 128 * len(state.encoder)
    assert record["bytes_down"] == 2 * 3 * down


def test_a_refused_reply_leaves_the_sum_as_if_it_had_never_come(
    tmp_path: Path, replies: dict[str, Message]
) -> None:
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6")
    files, ends = sites(tmp_path), []
    for number, damage in enumerate([filled(math.nan), filled(3e4), REFUSED["no record"][0]]):
        grid = Replay(files, replies, {"bona": damage})
        ends.append(fed.federation(grid, config, tmp_path / str(number)).run().encoder)
    for end in ends[1:]:
        assert all(torch.equal(end[name], ends[0][name]) for name in end)


def test_the_text_of_an_exception_at_a_site_reaches_no_disk_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SiteTraining, *args: Any, site: str, **named: Any) -> Any:
        if site == "bona":
            raise RuntimeError(f"no image of {PATIENT}")
        return real(self, *args, site=site, **named)

    real = SiteTraining.train_round
    monkeypatch.setattr(SiteTraining, "train_round", fail)
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.evaluate_every=1")
    files = fed.make_sites(tmp_path / "sites", NAMES)
    fed.federation(InlineGrid(client.app, files), config, tmp_path / "out").run()
    rows = {row["site"]: row for row in table(tmp_path / "out")}
    assert rows["bona"]["outcome"] == "failed"
    assert rows["bona"]["reason"] == "it failed; its own log says why"
    assert PATIENT.encode() not in disk(tmp_path / "out")


def test_replies_in_any_order_give_the_same_encoder(tmp_path: Path, replies: dict[str, Message]) -> None:
    config, ends = fed.settings("federation.rounds=1"), []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0])):
        files = [sites(tmp_path)[place] for place in order]
        out = tmp_path / f"out-{number}"
        fed.federation(Replay(files, replies, {}), config, out).run()
        ends.append((out / "checkpoints" / "round-00001" / "encoder.safetensors").read_bytes())
        assert [row["site"] for row in table(out)] == NAMES, "rows by name, whatever the order"
        assert json.loads((out / "rounds.jsonl").read_text())["loss"] == pytest.approx(
            np.mean([fields(reply)["loss"] for reply in replies.values()])
        )
    assert ends[0] == ends[1] == ends[2]


def test_the_mean_is_weighted_by_images_up_to_the_cap(tmp_path: Path, replies: dict[str, Message]) -> None:
    config = fed.settings("federation.rounds=1", "federation.max_images=100")
    grid = Replay(sites(tmp_path), replies, {"anna": said(images=50), "bona": said(images=1_000_000)})
    state = fed.federation(grid, config, tmp_path / "out").run()
    weights = {"anna": 50, "bona": 100, "cora": fields(replies["cora"])["images"]}
    before = fed.start(config).encoder["norm.bias"].double()
    mean = sum(
        torch.from_numpy(arrays(replies[name])["norm.bias"].numpy()).double() * weight
        for name, weight in weights.items()
    ) / sum(weights.values())
    torch.testing.assert_close(state.encoder["norm.bias"].double(), before + mean, rtol=1e-6, atol=1e-9)
    assert state.images["bona"] == 1_000_000, "the table says what the site said"
    assert json.loads((tmp_path / "out" / "rounds.jsonl").read_text())["images"] == sum(weights.values())


@pytest.mark.parametrize("score", [0.75, wire.NO_SCORE, 1.5])
def test_a_bad_evaluation_is_left_out(tmp_path: Path, replies: dict[str, Message], score: float) -> None:
    config = fed.settings("federation.rounds=1", "federation.evaluate_every=1")
    grid = Replay(sites(tmp_path), replies, {})
    bad = {
        "anna": {"loss": 1e308, "score": -1.0, "counts": "{}"},
        "bona": {"loss": 0.5, "score": -1.0, "counts": f'{{"{PATIENT}": {{}}}}'},
        "cora": {"loss": 0.5, "score": score, "counts": '{"sex": {"F": 40}}'},
    }
    bad = {name: {"site": name, "round": 0, "images": 9} | told for name, told in bad.items()}
    real = grid._client

    def respond(message: Message, context: Any) -> Message:
        if message.metadata.message_type != "evaluate":
            return real(message, context)
        return answer(message, bad[Path(str(context.node_config["site"])).parent.name], None)

    grid._client = respond
    state = fed.federation(grid, config, tmp_path / "out").run()
    record = json.loads((tmp_path / "out" / "rounds.jsonl").read_text())
    if score > 1:
        assert (state.counts, record["held_out"]) == ({}, {})
    else:
        assert state.counts == {"cora": {"sex": {"F": 40}}}
        assert record["held_out"] == {"cora": 0.5}
        assert record["scores"] == ({"cora": 0.75} if score > 0 else {})
    assert PATIENT.encode() not in disk(tmp_path / "out")


# ---- who answers


class Clock:
    """Time that passes only while the server sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rounds, "monotonic", lambda: self.now)
        for module in (mail, roster):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
            monkeypatch.setattr(module, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Silent(Replay):
    """Nodes that take messages of some kinds and never answer."""

    silent: frozenset[tuple[int, str]] = frozenset()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            message = self._waiting.get(identifier)
            if message and (message.metadata.dst_node_id, message.metadata.message_type) not in self.silent:
                yield from super().pull_messages([identifier])


def test_at_the_deadline_the_round_ends_without_the_late(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.deadline=7")
    grid = Silent(sites(tmp_path), replies, {})
    grid.silent = frozenset({(2, "train")})
    fed.federation(grid, config, tmp_path / "out").run()
    rows = {row["site"]: (row["outcome"], row["reason"]) for row in table(tmp_path / "out")}
    assert rows["bona"] == ("late", "no reply in 7 s")
    assert rows["anna"] == rows["cora"] == ("folded", "")
    assert 7 <= clock.now < 9


def test_a_site_that_is_not_there_is_absent(tmp_path: Path, replies: dict[str, Message]) -> None:
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.sites=[anna,bona,cora]")
    grid = Replay([sites(tmp_path)[0], sites(tmp_path)[2]], replies, {})
    fed.federation(grid, config, tmp_path / "out").run()
    rows = {row["site"]: (row["outcome"], row["reason"]) for row in table(tmp_path / "out")}
    assert rows["bona"] == ("absent", "not connected")
    assert rows["anna"] == rows["cora"] == ("folded", "")


def test_too_few_sites_at_the_start_stop_the_run_with_their_names(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = fed.settings("federation.sites=[anna,bona,cora]", "federation.start_timeout=5")
    grid = Replay(sites(tmp_path)[:1], replies, {})
    with pytest.raises(RunStopped, match=r"1 of 3 sites came .*missing: bona, cora") as error:
        fed.federation(grid, config, tmp_path / "out").run()
    assert "\n" not in str(error.value)
    assert 5 <= clock.now < 7


@pytest.mark.parametrize("kind", ["silent", "failed", "nobody"])
def test_no_site_at_all_stops_the_run(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    Clock(monkeypatch)
    config = fed.settings("privacy.min_cell=1000" if kind == "failed" else "federation.rounds=1")
    grid = Silent(sites(tmp_path)[: 0 if kind == "nobody" else 1], replies, {})
    grid.silent = frozenset({(1, "query")} if kind == "silent" else ())
    with pytest.raises(RunStopped, match="no site answered"):
        fed.federation(grid, config, tmp_path / "out").run()


def test_a_site_that_fails_at_its_hello_stops_nobody_else(
    tmp_path: Path, replies: dict[str, Message]
) -> None:
    files = sites(tmp_path)
    (files[1].parent / "cache" / "images.npy").unlink()
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.sites=[anna,bona,cora]")
    fed.federation(Replay(files, replies, {}), config, tmp_path / "out").run()
    outcomes = {row["site"]: row["outcome"] for row in table(tmp_path / "out")}
    assert outcomes == {"anna": "folded", "bona": "failed", "cora": "folded"}


class Changing(InlineGrid):
    """Nodes that come and go: `nodes` says which there are now."""

    nodes: Callable[[], list[int]]

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes()


def test_a_second_node_under_a_taken_name_is_not_listened_to_until_the_first_has_gone(tmp_path: Path) -> None:
    one, other = sites(tmp_path)[0], fed.make_site(tmp_path / "again", "anna", images=4, seed=8)
    config = fed.settings("federation.rounds=2", "federation.quorum=1")
    grid = Changing(client.app, [one, other])
    grid.nodes = lambda: [1, 2] if running.state.round == 0 else [2]
    running = fed.federation(grid, config, tmp_path / "out")
    state = running.run()
    assert state.roster == ["anna"]
    assert [(row["round"], row["outcome"], row["reason"]) for row in table(tmp_path / "out")] == [
        ("1", "folded", ""),
        ("1", "refused", "a second node claimed this name; refused"),
        ("2", "folded", "its state was missing or damaged; it started anew"),
    ]
    kept = [list((folder / "state").rglob("*.safetensors")) for folder in (one.parent, other.parent)]
    assert [[file.stem for file in files] for files in kept] == [["r00000-a00"], ["r00001-a00"]]


# ---- quorum and retries


def broken_until(attempt: int) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        return said(images=-1)(reply, request) if fields(reply)["attempt"] < attempt else reply

    return damage


def test_a_round_without_quorum_is_tried_again_and_ends_as_if_it_had_been_the_first(tmp_path: Path) -> None:
    config = fed.settings("federation.rounds=2", "federation.retries=2", "federation.quorum=1")
    plain, retried = (fed.make_sites(tmp_path / name, NAMES[:2], images=6) for name in ("plain", "retried"))
    expected = fed.federation(InlineGrid(client.app, plain), config, tmp_path / "a").run()
    grid = InlineGrid(fed.damaging({"bona": broken_until(2)}), retried)
    found = fed.federation(grid, config, tmp_path / "b").run()
    assert [(row["round"], row["site"], row["outcome"]) for row in table(tmp_path / "b")] == [
        *(("1", "anna", "dropped"), ("1", "bona", "refused")) * 2,
        *(("1", "anna", "folded"), ("1", "bona", "folded")),
        *(("2", "anna", "dropped"), ("2", "bona", "refused")) * 2,
        *(("2", "anna", "folded"), ("2", "bona", "folded")),
    ]
    assert found.bases == dict.fromkeys(NAMES[:2], "r00001-a02")
    assert all(torch.equal(found.encoder[name], expected.encoder[name]) for name in expected.encoder)


def test_without_quorum_the_run_stops_with_its_state_saved_and_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    config = fed.settings("federation.rounds=2", "federation.retries=1", "federation.quorum=1")
    plain, stopped = (fed.make_sites(tmp_path / name, NAMES[:2], images=6) for name in ("plain", "stopped"))
    expected = fed.federation(InlineGrid(client.app, plain), config, tmp_path / "a").run()

    def second_round(reply: Message, request: Message) -> Message:
        return said(images=-1)(reply, request) if fields(reply)["round"] == 1 else reply

    grid = InlineGrid(fed.damaging({"bona": second_round}), stopped)
    with pytest.raises(
        RunStopped, match="round 2: 1 of 2 sites replied in 2 attempts, the quorum is 2"
    ) as error:
        fed.federation(grid, config, tmp_path / "b").run()
    assert "\n" not in str(error.value)
    saved = Ledger(tmp_path / "b", config, resume=True).last()
    assert saved is not None
    assert saved.round == 1
    found = fed.federation(InlineGrid(client.app, stopped), config, tmp_path / "b", resume=True).run()
    assert all(torch.equal(found.encoder[name], expected.encoder[name]) for name in expected.encoder)
    assert found.bases == dict.fromkeys(NAMES[:2], "r00001-a02"), (
        "the attempts before were not numbered again"
    )


@pytest.mark.parametrize(
    ("share", "sites", "needed"),
    [(0.75, 8, 6), (0.75, 4, 3), (0.75, 3, 3), (0.1, 3, 1), (1.0, 7, 7), (1 / 3, 3, 1), (0.7, 10, 7)],
)
def test_the_quorum_is_the_share_rounded_up(tmp_path: Path, share: float, sites: int, needed: int) -> None:
    config = fed.settings(f"federation.quorum={share}")
    ledger, state = Ledger(tmp_path, config, resume=False), fed.start(config)
    state.roster = [f"site-{number}" for number in range(sites)]
    running = Federation(InlineGrid(client.app, []), config, ledger, state, None)  # type: ignore[arg-type]
    assert running.roster.quorum() == needed


def test_a_run_with_momentum_goes_on_alike(tmp_path: Path) -> None:
    """Stopped between two rounds, server optimiser and all."""
    override = ["federation.rounds=3", "federation.server.name=nesterov", "federation.server.momentum=0.9"]
    config = fed.settings(*override)
    whole, cut = (fed.make_sites(tmp_path / name, NAMES[:1], images=6) for name in ("whole", "cut"))
    expected = fed.federation(InlineGrid(client.app, whole), config, tmp_path / "a").run()

    def stop(record: Any) -> None:
        if record["round"] == 2:
            raise KeyboardInterrupt

    running = fed.federation(InlineGrid(client.app, cut), config, tmp_path / "b")
    running.listener = rounds.Listener(committed=stop)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    found = fed.federation(InlineGrid(client.app, cut), config, tmp_path / "b", resume=True).run()
    assert found.round == 3
    assert all(torch.equal(found.encoder[name], expected.encoder[name]) for name in expected.encoder)
