"""A bad reply ends in a row of the table, and the round goes on as if it had never come."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from marks import slow
from replies import (
    NAMES,
    PATIENT,
    Replay,
    answer,
    disk,
    holding,
    said,
    sent,
    sites,
    table,
)

from client import app as client
from sim.engine import InlineGrid
from sscxr.federation import wire
from sscxr.stages.pretrain import SiteTraining

REFUSED: dict[str, tuple[fed.Damage, str]] = {
    "NaN": (holding(math.nan), "NaN or infinity in norm.bias"),
    "Inf": (holding(math.inf), "NaN or infinity in norm.bias"),
    "-Inf": (holding(-math.inf), "NaN or infinity in norm.bias"),
    "norm": (holding(3e4), "out of bounds"),
    "longer": (sent(lambda data: data + b"\0\0"), "bytes, expected"),
    "shorter": (sent(lambda data: data[:-1]), "bytes, expected"),
    "as fp32": (sent(lambda data: data + data), "bytes, expected"),
    "no bytes": (sent(lambda data: b""), "0 bytes, expected"),
    "pickle": (sent(lambda data: pickle.dumps(PATIENT)), "bytes, expected"),
    "two updates": (
        sent(lambda data: data, lambda data: data),
        "without its update (2 arrays, expected one)",
    ),
    "no array": (sent(), "without its update (0 arrays, expected one)"),
    "no record": (lambda _, request: Message(RecordDict(), reply_to=request), "without its record"),
    "other round": (said(round=1), "another round"),
    "other attempt": (said(attempt=1), "another attempt"),
    "other site": (said(site="anna"), "another site"),
    "patient for a site": (said(site=PATIENT), "another site"),
    "other recipe": (said(fingerprint="{}"), "another fingerprint"),
    "no images": (said(images=0), "images, steps or seconds out of range"),
    "negative images": (said(images=-40), "images, steps or seconds out of range"),
    "endless images": (said(images=2**62), "images, steps or seconds out of range"),
    "no steps": (said(steps=0), "images, steps or seconds out of range"),
    "negative seconds": (said(seconds=-1.0), "images, steps or seconds out of range"),
    "negative loss": (said(loss=-0.5), "loss out of range"),
    "endless loss": (said(loss=1e308), "loss out of range"),
    "negative epsilon": (said(epsilon=-1.0), "epsilon or delta out of range"),
    "certain delta": (said(delta=1.0), "epsilon or delta out of range"),
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
        lambda _, request: answer(request, {"site": "bona", "failure": PATIENT}),
        "a reason that is not on the list",
    ),
    "failure": (
        lambda _, request: answer(request, {"site": "bona", "failure": "memory"}),
        "it ran out of memory",
    ),
}


# One of each kind: values, norm, size, none, another message's reply, figures, types, scales.
QUICK = {
    "NaN", "norm", "longer", "no array", "other round", "patient for a site", "endless images", "NaN loss",
    "field extra", "error", "scale beyond fp32",
}  # fmt: skip


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in (*REFUSED, *FAILED)])
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
    "scale beyond fp32": (holding(1e38, SCALE, "int8"), "scale of blocks.0.attn.qkv"),
    "negative scale": (holding(-1.0, SCALE, "int8"), "scale of blocks.0.attn.qkv"),
    "NaN scale": (holding(math.nan, SCALE, "int8"), f"NaN or infinity in {SCALE}"),
    "large scale": (holding(1e5, SCALE, "int8"), "out of bounds"),
    "longer": (sent(lambda data: data + b"\0"), "bytes, expected"),
}


@pytest.mark.parametrize("case", [case if case in QUICK else slow(case) for case in REFUSED_INT8])
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


def test_a_refused_reply_leaves_the_sum_as_if_it_had_never_come(
    tmp_path: Path, replies: dict[str, Message]
) -> None:
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6")
    files, ends = sites(tmp_path), []
    for number, damage in enumerate([holding(math.nan), holding(3e4), REFUSED["no record"][0]]):
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
    assert rows["bona"]["reason"] == wire.FAILURES["internal"]
    assert PATIENT.encode() not in disk(tmp_path / "out")


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
        return answer(message, bad[Path(str(context.node_config["site"])).parent.name])

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
