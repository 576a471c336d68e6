"""What a site sends beside its weights, what it keeps, and rounds in which the server steps."""

import math
from pathlib import Path

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from caches import make_cache

import client.app as client
from client.settings import read_settings
from client.site import Site
from server.app import run
from sscxr import stages
from sscxr.config import Config
from sscxr.data.cache.cache import open_cache
from sscxr.stages.pretrain import SiteTraining
from sscxr.training import optim
from sscxr.training.parts import MOMENT, apart

CPU = torch.device("cpu")
EXACT = [
    "pretrain.amp=fp32",
    "federation.uplink=fp32",
    "federation.share_head=true",
    "run.deterministic=true",
]
GRADIENTS = ["federation.sends=gradients", "federation.server.name=adamw"]


def training(folder: Path, config: Config) -> SiteTraining:
    make_cache(folder, np.random.default_rng(0).integers(0, 256, (16, 32, 32), dtype=np.uint8), {})
    return SiteTraining(config, CPU, open_cache(folder), share_head=stages.of(config).shares_head)


def losses(out: Path) -> list[float]:
    import json

    return [json.loads(line)["loss"] for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_rounds_of_gradients_are_one_place_with_the_joint_batch(tmp_path: Path) -> None:
    """Three sites of unequal size; each takes a quarter of its images a round."""
    sizes, rounds = {"anna": 40, "bona": 80, "cora": 120}, 6
    sites = [fed.make_site(tmp_path / n, n, images=size, seed=size) for n, size in sizes.items()]
    lengths = [f"federation.rounds={rounds}", "federation.local_epochs=0.25"]
    config = fed.settings(*EXACT, *GRADIENTS, *lengths, "pretrain.warmup=0.1", "federation.weight_cap=0")
    run(fed.Grid(client.app, sites), config, tmp_path / "out", resume=False)

    opened = [Site(read_settings(file)) for file in sites]
    rows = [site.training_rows(config) for site in opened]
    weights = np.array([len(own) for own in rows]) / sum(map(len, rows))
    place = SiteTraining(config, CPU, opened[0].cache, share_head=True)
    place.load_shared(stages.of(config).start())
    settings = config.pretrain
    adamw = optim.adamw(place.objective, lr=settings.lr, betas=(0.9, 0.999))
    found = []
    for number in range(rounds):
        gradients: dict[str, torch.Tensor] = {}
        total = 0.0
        for weight, site, own in zip(weights, opened, rows, strict=True):
            one = SiteTraining(config, CPU, site.cache, share_head=True)
            one.load_shared(place.shared())
            total += weight * one.train_round(own, site=site.name, round_number=number, budget=600).loss
            for name, tensor in one.update(place.shared()).items():
                gradients[name] = gradients.get(name, 0) + weight * tensor
        found.append(total)
        for name, parameter in place.parts.parameters():
            parameter.grad = gradients[name] if gradients[name].any() else None
        optim.set_rates(adamw, *stages.of(config).schedule().at((number + 1) / rounds))
        optim.clip(place.objective.parameters(), settings.clip, per_tensor=settings.clip_per_tensor)
        adamw.step()
        adamw.zero_grad()
    assert losses(tmp_path / "out") == pytest.approx(found, rel=1e-5)
    assert found[-1] < found[0]
    last = safetensors.torch.load_file(tmp_path / f"out/checkpoints/round-{rounds:05d}/encoder.safetensors")
    for name, tensor in place.shared().items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_gradient_is_that_of_the_loss(tmp_path: Path) -> None:
    config = fed.settings(*EXACT, *GRADIENTS, "federation.local_epochs=1", "federation.rounds=2")
    one = training(tmp_path, config)
    before = {name: tensor.clone() for name, tensor in one.shared().items()}
    one.train_round(np.arange(16), site="a", round_number=0, budget=600)
    gradient, unchanged = one.update(before), one.shared()
    assert all(torch.equal(before[name], unchanged[name]) for name in before), "the server steps"
    name = "blocks.0.attn.qkv.weight"
    step = 0.05 * gradient[name] / gradient[name].norm()
    found = []
    for sign in (-1, 1):
        other = training(tmp_path, config)
        other.load_shared({**before, name: before[name] + sign * step})
        found.append(other.train_round(np.arange(16), site="a", round_number=0, budget=600).loss)
    rise = (found[1] - found[0]) / 0.1
    assert rise == pytest.approx(float(gradient[name].norm()), rel=0.02)


@pytest.mark.parametrize("kind", ["adamw", "mt-adamw", "muon"])
@pytest.mark.parametrize("which", ["first", "second", "second-means", "both"])
def test_moments_of_equal_sites_average_to_their_own(tmp_path: Path, which: str, kind: str) -> None:
    """What a site sends, loaded again, gives the optimiser's next step the moments that it had."""
    chosen = [f"federation.moments={which}", f"pretrain.optimiser={kind}"]
    config = fed.settings(*EXACT, *chosen, "federation.rounds=3")
    one = training(tmp_path, config)
    start = one.shared()
    moments = apart(start)[1]
    assert moments
    assert not any(tensor.any() for tensor in moments.values())
    one.train_round(np.arange(16), site="a", round_number=0, budget=600)
    sent = {name: start[name] + change for name, change in one.update(start).items()}
    states = dict(one.optimiser.state)
    other = training(tmp_path, config)
    other.load_local(one.local())
    other.load_shared(sent)
    for (name, weight), (_, twin) in zip(other.parts.parameters(), one.parts.parameters(), strict=True):
        if twin not in states:
            continue
        now, was = other.optimiser.state[weight], states[twin]
        assert now.keys() == was.keys()
        for moment in was:
            expected = was[moment]
            if which == "second-means" and moment == "exp_avg_sq":
                assert sent[f"{MOMENT}exp_avg_sq.{name}"].shape == (1,)
                expected = expected.mean().expand_as(expected)
            torch.testing.assert_close(now[moment], expected, rtol=1e-5, atol=1e-12)


def test_a_site_that_lost_its_state_takes_the_runs_step_count_with_the_averages_moments(
    tmp_path: Path,
) -> None:
    config = fed.settings(
        *EXACT, "federation.moments=both", "federation.rounds=3", "federation.local_epochs=1"
    )
    one = training(tmp_path, config)
    one.train_round(np.arange(16), site="a", round_number=0, budget=600)
    other = training(tmp_path, config)
    other.load_shared(one.shared())
    ends = []
    for each in (one, other):
        each.train_round(np.arange(16), site="a", round_number=1, budget=600)
        ends.append(each.shared())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)


def test_alignment_adds_gamma_of_the_last_change_over_a_round(tmp_path: Path) -> None:
    ends = []
    for gamma in (0.0, 0.5):
        config = fed.settings(
            *EXACT,
            f"federation.align={gamma}",
            "federation.rounds=4",
            "pretrain.lr=1e-7",
            "pretrain.min_lr=0",
        )
        one = training(tmp_path, config)
        start = {name: tensor.clone() for name, tensor in one.shared().items()}
        one.train_round(np.arange(16), site="a", round_number=0, budget=600)
        kept = one.local()
        moved = {name: tensor + 0.01 for name, tensor in start.items()}
        other = training(tmp_path, config)
        other.load_local(kept)
        other.load_shared(moved)
        other.train_round(np.arange(16), site="a", round_number=1, budget=600)
        ends.append(other.update(moved))
    for name in ends[0]:
        assert ends[1][name] - ends[0][name] == pytest.approx(0.5 * 0.01, abs=1e-5)


def test_moments_are_no_part_of_a_release_and_bounded_apart(tmp_path: Path) -> None:
    sites, out = fed.make_sites(tmp_path / "sites", ["anna", "bona"], images=20), tmp_path / "out"
    config = fed.settings("federation.moments=both", "federation.rounds=2")
    run(fed.Grid(client.app, sites), config, out, resume=False)
    released = safetensors.torch.load_file(out / "encoder" / "model.safetensors")
    assert not apart(released)[1]
    state = safetensors.torch.load_file(out / "checkpoints" / "round-00002" / "encoder.safetensors")
    assert any(tensor.any() for tensor in apart(state)[1].values())


def test_a_site_cannot_poison_the_moments(tmp_path: Path) -> None:
    from server.bounds import Bounds
    from server.ledger import State

    config = fed.settings("federation.moments=both", "pretrain.clip=3.0")
    begun = State(round=0, encoder=stages.of(config).start(), optimiser={})
    moments = apart(begun.encoder)[1]
    assert Bounds(config, begun).moment_norm() == pytest.approx(6 * math.sqrt(len(moments)))
    begun.moment_norms = [9.0, 0.1, 0.2, 0.15]
    assert Bounds(config, begun).moment_norm() == pytest.approx(0.4), (
        "twice the most of the last three rounds"
    )
