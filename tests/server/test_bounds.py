"""How far one site may move the average: weights, images and norms that lie are held to those of the others."""

import json
import math
from dataclasses import replace
from pathlib import Path

import federation as fed
import pytest
import torch
from answers import update as sent_update
from flwr.app import Message
from replies import NAMES, Replay, answer, fields, sites, table

from server.bounds import Bounds, capped, usual_of_moments
from server.ledger import Ledger, State
from server.optimisers import server_optimiser
from server.rounds import Federation
from sim.engine import InlineGrid
from sscxr import stages
from sscxr.config import Config
from sscxr.federation import codecs
from sscxr.federation.limits import clip
from sscxr.training.parts import MOMENT, apart

JOINED = {"anna": 100, "bona": 120, "cora": 400}
OPEN = ("federation.rounds=20", "federation.local_epochs=1")


def state(config: Config, norms: list[float] | None = None, round_number: int = 5) -> State:
    encoder = {"w": torch.zeros(30, 30), "b": torch.zeros(100)}
    roster, joined = sorted(JOINED), dict(JOINED)
    return State(round_number, encoder, {}, roster=roster, joined=joined, norms=norms or [])


def test_no_site_weighs_more_than_twice_the_median_nor_than_it_joined_with() -> None:
    config = fed.settings(*OPEN)
    bounds = Bounds(config, state(config))
    assert [bounds.weight("anna", n) for n in (1, 99, 100, 10**6)] == [1, 99, 100, 100]
    assert bounds.weight("cora", 400) == 240, "the median is bona's 120"
    assert bounds.images("cora", 10**9) == 400
    assert bounds.images("dora", 50) == 50, "whose joining no checkpoint holds"


def test_without_a_cap_the_images_count() -> None:
    config = fed.settings(*OPEN, "federation.weight_cap=0", "federation.max_images=300")
    bounds = Bounds(config, state(config))
    assert [bounds.weight(site, 10**6) for site in JOINED] == [100, 120, 300]


@pytest.mark.parametrize(("rule", "weights"), [("root", [160, 175, 320]), ("equal", [1, 1, 1])])
def test_a_large_site_may_weigh_less_than_its_images(rule: str, weights: list[int]) -> None:
    config = fed.settings(*OPEN, "federation.weight_cap=0", f"federation.weights={rule}")
    bounds = Bounds(config, state(config))
    assert [bounds.weight(site, 10**6) for site in JOINED] == weights, "roots in sixteenths"
    assert [bounds.counted(site, 10**6) for site in JOINED] == list(JOINED.values())


def test_one_site_that_claims_to_be_huge_does_not_raise_the_cap() -> None:
    config = fed.settings(*OPEN, "federation.max_images=100000")
    honest = state(config)
    lying = state(config)
    lying.joined["cora"] = 10**9
    assert Bounds(config, lying).most == Bounds(config, honest).most == 240


def test_the_usual_norm_is_the_median_of_the_last_rounds() -> None:
    config = fed.settings(*OPEN)
    norms = [99.0] * 5 + [3.0] * 4 + [2.0] * 3 + [50.0] * 3
    bounds = Bounds(config, state(config, norms))
    unit = 1 / bounds.relative("anna", 100, 1.0)
    assert bounds.norm("anna", 100) == pytest.approx(2 * 3.0 * unit)


def test_an_honest_update_of_more_steps_or_a_higher_rate_may_be_longer() -> None:
    """As AdamW's grow: with sqrt(steps) x rate."""
    config = fed.settings(*OPEN, "pretrain.batch_size=8", "pretrain.warmup=0.1", "federation.weight_cap=0")
    early, late = (Bounds(config, state(config, [1.0], number)) for number in (0, 2))
    assert late.norm("anna", 100) > 1.9 * early.norm("anna", 100), "the rate rises over rounds 0 and 1"
    steps = {site: count // 8 for site, count in JOINED.items()}
    ratio = late.norm("cora", 400) / late.norm("anna", 100)
    assert ratio == pytest.approx(math.sqrt(steps["cora"] / steps["anna"]), rel=0.01)


def test_the_first_round_allows_what_adamw_can_do() -> None:
    config = fed.settings(*OPEN, "pretrain.batch_size=8", "pretrain.warmup=0", "pretrain.lr=0.001")
    bound = Bounds(config, state(config, round_number=0)).norm("anna", 100)
    assert bound == pytest.approx(math.sqrt(1000) * 12 * 0.001, rel=0.01)


def test_clipping_keeps_the_direction_and_short_updates_as_they_are() -> None:
    given = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    assert clip(given, 5.0, 6.0) == 5.0
    assert given["b"].item() == 4.0
    assert clip(given, 5.0, 1.0) == 1.0
    torch.testing.assert_close(given["w"], torch.tensor([0.6, 0.0]))
    assert codecs.norm(given) == pytest.approx(1.0)


def test_two_of_eight_sites_do_not_set_the_usual_norm_of_moments() -> None:
    assert usual_of_moments([0.3, 0.1, 0.2, 0.4, 0.6, 0.5, 1e9, 1e9]) == 0.6
    assert usual_of_moments([5.0]) == 5.0
    assert usual_of_moments([1e9, 0.1]) == 0.1


def test_a_headline_figure_is_not_one_sites_to_set() -> None:
    assert capped({"a": 10, "b": 20, "c": 10**12}, 2.0) == {"a": 10, "b": 20, "c": 40}
    assert capped({"a": 10, "b": 10**6}, 0.0) == {"a": 10, "b": 10**6}
    assert capped({}, 2.0) == {}


def test_a_poisoned_reply_moves_the_average_like_an_honest_one(
    tmp_path: Path, replies: dict[str, Message]
) -> None:
    """Whatever it claims to weigh: an encoder reversed, of 100,000 images, which the absolute bound accepts."""

    def poison(reply: Message, request: Message) -> Message:
        reversed_ = {name: -1.0 * tensor for name, tensor in fed.start(config).encoder.items()}
        told = {**fields(reply), "images": 100_000, "loss": 900.0}
        return answer(request, told, codecs.encode(reversed_, "fp16"))

    config = fed.settings("federation.rounds=1", "run.seed=0")
    before = fed.start(config).encoder
    moved = {}
    for name, damage in (("honest", {}), ("poisoned", {"bona": poison})):
        out = tmp_path / name
        grid = Replay(sites(tmp_path / f"{name}-sites"), replies, damage)
        end = fed.federation(grid, config, out).run()
        moved[name] = codecs.norm({key: end.encoder[key] - before[key] for key in before})
        assert len(end.norms) == 1
        assert set(end.joined) == set(NAMES)
    row = next(row for row in table(tmp_path / "poisoned") if row["site"] == "bona")
    assert row["outcome"] == "folded"
    assert "clipped to" in row["reason"]
    assert "it counts as 10 images" in row["reason"], "what it joined with"
    assert moved["poisoned"] < 3 * moved["honest"], moved
    assert codecs.norm(before) > 50 * moved["honest"], "without the bounds, most of this"
    loss = json.loads((tmp_path / "poisoned" / "rounds.jsonl").read_text())["loss"]
    assert loss < 450, "a third of the weight, not all of it"


def test_hostile_moments_move_the_average_no_further_than_usual_ones(tmp_path: Path) -> None:
    config = fed.settings("federation.moments=both", "federation.rounds=2", "federation.uplink=fp32")
    places = fed.make_sites(tmp_path / "sites", NAMES, images=20)
    begun: list[State] = []

    def poison(reply: Message, request: Message) -> Message:
        if run.state.round == 0:
            return reply
        update_ = codecs.decode(sent_update(reply), "fp32", run.state.encoder)
        hostile = {name: t + 50.0 if name.startswith(MOMENT) else t for name, t in update_.items()}
        return answer(request, fields(reply), codecs.encode(hostile, "fp32"))

    start = State(round=0, encoder=stages.of(config).start(), optimiser={})
    grid = InlineGrid(fed.damaging({"bona": poison}), places)
    fed.approve(config, *places)
    ledger = Ledger(tmp_path / "out", config, resume=False)
    run = Federation(grid, config, ledger, start, server_optimiser(config))
    run.roster.gather()
    for _ in range(2):
        begun.append(replace(run.state))
        run._round()
    row = next(row for row in table(tmp_path / "out") if row["site"] == "bona" and row["round"] == "2")
    assert row["outcome"] == "folded"
    assert "its moments' change of norm" in row["reason"]
    before, after = (apart(one.encoder)[1] for one in (begun[1], run.state))
    moved = codecs.norm({name: after[name] - before[name] for name in before})
    assert moved <= 2 * begun[1].moment_norms[-1] * 1.001
    assert moved < 0.01 * 50.0 * math.sqrt(sum(t.numel() for t in before.values())) / 3, "without the bound"


def test_an_honest_round_is_not_clipped(tmp_path: Path, replies: dict[str, Message]) -> None:
    config = fed.settings("federation.rounds=1")
    grid = Replay(sites(tmp_path / "a"), replies, {})
    fed.federation(grid, config, tmp_path / "out").run()
    assert {row["reason"] for row in table(tmp_path / "out")} == {""}
    open_ = fed.settings("federation.rounds=1", "federation.weight_cap=0", "federation.clip_updates=0")
    grid = Replay(sites(tmp_path / "b"), replies, {})
    fed.federation(grid, open_, tmp_path / "open").run()
    ends = [
        (tmp_path / out / "checkpoints" / "round-00001" / "encoder.safetensors").read_bytes()
        for out in ("out", "open")
    ]
    assert ends[0] == ends[1]


def test_what_was_usual_and_who_joined_outlive_a_restart(tmp_path: Path) -> None:
    config = fed.settings()
    ledger = Ledger(tmp_path / "out", config, resume=False)
    ledger.commit(state(config, [1.5, 2.5]), keep=3)
    found = Ledger(tmp_path / "out", config, resume=True).last()
    assert found is not None
    assert (found.norms, found.joined) == ([1.5, 2.5], JOINED)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    config = fed.settings()
    ledger = Ledger(tmp_path / "out", config, resume=False)
    ledger.commit(state(config, [1.5]), keep=3)
    (file,) = (tmp_path / "out" / "checkpoints").glob("round-*/state.json")
    saved = json.loads(file.read_text())
    del saved["norms"], saved["joined"]
    file.write_text(json.dumps(saved))
    found = Ledger(tmp_path / "out", config, resume=True).last()
    assert found is not None
    assert (found.norms, found.joined) == ([], {})
