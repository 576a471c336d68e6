"""What a round trains on, and which tensors leave."""

from pathlib import Path

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from caches import make_cache

from client import app as client
from client.settings import read_settings
from client.site import Site
from server.app import run
from sscxr import config as configs
from sscxr import seeds, stages
from sscxr.config import ConfigError
from sscxr.data.cache.cache import open_cache
from sscxr.stages.pretrain import SiteTraining
from sscxr.training.batches import batches_of_round, epoch, steps_of_round, stretch_of_round
from sscxr.training.device import set_up
from sscxr.training.parts import split


@pytest.mark.parametrize("images", [1, 7, 8, 61, 500])
@pytest.mark.parametrize("epochs", [0.1, 0.25, 1 / 3, 0.5, 1, 2, 2.5])
def test_rounds_follow_each_other_without_a_gap(images: int, epochs: float) -> None:
    rounds = [steps_of_round(images, 8, epochs, number) for number in range(12)]
    assert all(rounds), "no round is without a step"
    per_round = epochs * max(1, images // 8)
    if per_round >= 1:
        assert [step for steps in rounds for step in steps] == list(range(rounds[-1].stop))
        assert rounds[-1].stop == int(12 * per_round + 1e-6)


@pytest.mark.parametrize("images", [8, 15, 31, 33, 500])
@pytest.mark.parametrize("size", [4, 8, 10, 64])
def test_no_batch_has_too_few_images(images: int, size: int) -> None:
    """Batches have at most `size` images, unless one would have fewer than eight; each image is in one."""
    batches = epoch(np.arange(images), size, torch.Generator().manual_seed(0))
    counts = [len(batch) for batch in batches]
    assert sorted(np.concatenate(batches)) == list(range(images))
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= size or images // (len(batches) + 1) < 8
    assert min(counts) >= 8 or size < 8


def test_sources_one_after_another() -> None:
    """Each image once, the sources in turn, and within each another order every epoch."""
    rows, sources = np.array([5, 0, 3, 1, 7, 6, 2, 8]), np.array(list("aababbbaa"))
    order = torch.Generator().manual_seed(0)
    first, second = (np.concatenate(epoch(rows, 3, order, sources)) for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(rows)
    assert sources[first].tolist() == sources[second].tolist() == sorted(sources[rows])
    assert first.tolist() != second.tolist()


@pytest.mark.slow
def test_four_quarters_of_an_epoch_see_each_image_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sscxr.stages import pretrain

    config = fed.settings("federation.local_epochs=0.25", "pretrain.batch_size=8", "federation.rounds=8")
    site = fed.make_site(tmp_path, "anna", images=80)
    seen: list[int] = []

    def note(self: pretrain.SiteTraining, *given: object):  # type: ignore[no-untyped-def]
        for views, batch in real(self, *given):
            seen.extend(batch)
            yield views, batch

    real = pretrain.SiteTraining.batches
    monkeypatch.setattr(pretrain.SiteTraining, "batches", note)
    for number in range(8):
        fed.ask(config, site, round=number)
    rows = sorted(set(seen))
    assert len(rows) == 64
    assert sorted(seen) == sorted(rows * 2), "two epochs in eight rounds"
    assert seen[:64] != seen[64:], "each epoch in an order of its own"
    orders = [
        np.concatenate(epoch(np.array(rows), 8, seeds.generator("cpu", 0, "order", "anna", number)))
        for number in (0, 1)
    ]
    assert seen == [int(row) for order in orders for row in order]


def test_a_shared_head_is_averaged_kept_nowhere_else_and_never_released(tmp_path: Path) -> None:
    sites, out = fed.make_sites(tmp_path / "sites", ["anna", "bona"], images=10), tmp_path / "out"
    config = fed.settings("federation.share_head=true", "federation.rounds=2")
    run(fed.Grid(client.app, sites), config, out, resume=False)
    set_up(config)
    start = split(stages.of(config).start())[1]
    kept = safetensors.torch.load_file(out / "checkpoints" / "round-00002" / "encoder.safetensors")
    head = split(kept)[1]
    assert head.keys() == start.keys()
    assert all(not torch.equal(head[name], start[name]) for name in head)
    for site in sites:
        for state in (site.parent / "state").rglob("*.safetensors"):
            assert not split(safetensors.torch.load_file(state))[1]
    released = safetensors.torch.load_file(out / "encoder" / "model.safetensors")
    assert not split(released)[1]
    assert all(torch.equal(released[name], tensor) for name, tensor in split(kept)[0].items())


def test_a_blank_objective_is_filled_by_what_is_loaded_and_trains_to_the_same_bytes(tmp_path: Path) -> None:
    config = fed.settings("encoder.drop_path=0.1", "federation.rounds=2")
    site = Site(read_settings(fed.make_site(tmp_path, "a")))
    rows = site.training_rows(config)
    device = set_up(config)
    first = SiteTraining(config, device, site.cache)
    first.train_round(rows, site="a", round_number=0, budget=600)
    shared, kept = first.parts.shared(), first.local()
    ends = []
    for blank in (False, True):
        second = SiteTraining(config, device, site.cache, blank=blank)
        if blank:  # whatever the memory held
            for parameter in second.objective.parameters():
                parameter.data.fill_(torch.nan)
        second.parts.load_shared(shared)
        second.load_local(kept)
        second.train_round(rows, site="a", round_number=1, budget=600)
        ends.append(second.parts.shared() | second.local())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not any(torch.equal(ends[1][name], shared[name]) for name in ("blocks.0.attn.qkv.weight",))


@pytest.mark.parametrize("method", ["gmml", "dino"])
def test_positives_of_a_patient(tmp_path: Path, method: str) -> None:
    """Each second view is of another image of the patient, or of the same one where there is no other."""
    pixels = np.stack([np.full((32, 32), 10 * row, np.uint8) for row in range(1, 9)])
    make_cache(tmp_path, pixels, {"group": ["a", "a", "b", "c", "c", "c", "d", "e"]})
    cache, rows = open_cache(tmp_path), np.arange(8)
    groups = cache.index["group"].to_numpy()
    changes = [f"pretrain.objective={method}", "pretrain.positives=patient", "encoder.img_size=32"]
    plain = [
        "augment.brightness=0",
        "augment.contrast=0",
        "data.mean=0",
        "data.std=1",
        "pretrain.batch_size=8",
    ]
    config = configs.load("smoke", [*changes, *plain])
    if method == "gmml":
        with pytest.raises(ConfigError, match=r"pretrain.positives"):
            stages.of(config)
        return
    training = SiteTraining(config, torch.device("cpu"), cache)
    stretch, source = stretch_of_round(range(1), 0, 1), torch.Generator()
    order = batches_of_round(rows, 8, range(1), seed=config.run.seed, site="anna")
    [((views, progress), batch)] = training.batches(order, rows, "anna", range(1), stretch, source)
    assert progress == 1.0
    assert sorted(batch) == list(range(8))
    shown = [group.mean(dim=(1, 2, 3)).view(-1, 8).mul(25.5).round().sub(1).int().tolist() for group in views]
    for first, second in ((shown[0][0], shown[0][1]), (shown[1][0], shown[1][1])):
        assert first == batch
        assert all(groups[a] == groups[b] for a, b in zip(first, second, strict=True))
        assert all((a == b) == (sum(groups == groups[a]) == 1) for a, b in zip(first, second, strict=True))
