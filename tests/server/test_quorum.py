"""A round without quorum is tried again, then the run stops; either way it goes on to the same bytes."""

from pathlib import Path

import federation as fed
import pytest
import torch
from flwr.app import Message
from replies import NAMES, fields, said, table

from client import app as client
from server.ledger import Ledger
from server.mail import RunStopped
from server.rounds import Federation
from sim.engine import InlineGrid


def broken_until(attempt: int) -> fed.Damage:
    def damage(reply: Message, request: Message) -> Message:
        return said(images=-1)(reply, request) if fields(reply)["attempt"] < attempt else reply

    return damage


@pytest.mark.slow
def test_a_round_without_quorum_is_tried_again_and_ends_as_if_it_had_been_the_first(tmp_path: Path) -> None:
    config = fed.settings("federation.rounds=2", "federation.retries=2", "federation.quorum=1")
    plain, retried = (fed.make_sites(tmp_path / name, NAMES[:2], images=10) for name in ("plain", "retried"))
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
    plain, stopped = (fed.make_sites(tmp_path / name, NAMES[:2], images=10) for name in ("plain", "stopped"))
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
