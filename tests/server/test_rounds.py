"""What a round adds up to: the mean by images, in any order, alike after a stop; and its bytes."""

import json
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import torch
from answers import update
from flwr.app import Message
from replies import NAMES, Replay, fields, said, sites, table

from client import app as client
from server import rounds
from server.app import run
from server.ledger import Ledger, State
from sim.engine import InlineGrid
from sscxr.federation import codecs
from sscxr.runs import read_status


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
    config = fed.settings("federation.rounds=1", "federation.max_images=7")
    grid = Replay(sites(tmp_path), replies, {"anna": said(images=5), "bona": said(images=1_000_000)})
    state = fed.federation(grid, config, tmp_path / "out").run()
    weights = {"anna": 5, "bona": 7, "cora": 7}
    before = fed.start(config).encoder["norm.bias"].double()
    mean = sum(
        codecs.decode(update(replies[name]), "fp16", fed.start(config).encoder)["norm.bias"].double() * weight
        for name, weight in weights.items()
    ) / sum(weights.values())
    torch.testing.assert_close(state.encoder["norm.bias"].double(), before + mean, rtol=1e-6, atol=1e-9)
    assert state.images["bona"] == 10, "at most what it joined with"
    assert json.loads((tmp_path / "out" / "rounds.jsonl").read_text())["images"] == sum(weights.values())


def test_a_round_that_is_not_on_the_disk_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fed.settings("federation.rounds=2")
    files, out, commit = fed.make_sites(tmp_path, NAMES[:1], images=10), tmp_path / "out", Ledger.commit

    def full(ledger: Ledger, state: State, *, keep: int) -> None:
        if state.round == 2:
            raise OSError(28, "No space left on device")
        commit(ledger, state, keep=keep)

    monkeypatch.setattr(Ledger, "commit", full)
    with pytest.raises(OSError, match="No space left"):
        run(fed.Grid(client.app, files), config, out, resume=False)
    assert read_status(out).round == 1


def test_a_run_with_momentum_goes_on_alike(tmp_path: Path) -> None:
    """Stopped between two rounds, server optimiser and all."""
    override = ["federation.rounds=3", "federation.server.name=nesterov", "federation.server.momentum=0.9"]
    config = fed.settings(*override)
    whole, cut = (fed.make_sites(tmp_path / name, NAMES[:1], images=10) for name in ("whole", "cut"))
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
    up, down = (codecs.payload_bytes(one, state.encoder) for one in (codec, "fp32"))
    assert [int(float(row["bytes"])) for row in table(tmp_path / "out")] == [up] * 3
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert record["bytes_up"] == 3 * up
    assert record["bytes_down"] == 2 * 3 * down
