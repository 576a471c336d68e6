"""What a simulation shows of its images: the rounds that are pictured, what a picture is of, the map."""

import io
import json
from pathlib import Path
from typing import Any, cast

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from caches import make_cache
from PIL import Image

from client.site import StateStore
from server.app import Hooks
from sim import pictures
from sscxr import config as configs
from sscxr import seeds, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.report import pictures as shown
from sscxr.report import record
from sscxr.stages.pretrain import SiteTraining, whole
from sscxr.training.device import set_up

IMAGES = 20


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Twenty images of as many patients, four of them set aside."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32), dtype=np.uint8)
    labels = {"label:edema": [1, 0] * 10, "label:mass": [1, 1, 0, 0] * 5, "label:normal": [0.0] * IMAGES}
    index = {"split": (np.arange(IMAGES) + 0.5) / IMAGES, "group": [f"g{n}" for n in range(IMAGES)], **labels}
    return make_cache(tmp_path / "cache", pixels, index)


def test_the_powers_of_two_and_the_last_round_are_pictured() -> None:
    assert [n for n in range(21) if pictures.is_shown(n, 20)] == [1, 2, 4, 8, 16, 20]
    assert [n for n in range(1, 2) if pictures.is_shown(n, 1)] == [1]


def committed(out: Path, config: Config, cache: Cache, *, shared: bool) -> SiteTraining:
    """A run's folder after round 3: sites north and south; north, the larger, has a head of its own."""
    training = SiteTraining(config, set_up(config), cache, share_head=shared)
    with torch.no_grad():
        for tensor in training.parts.head.parameters():
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    checkpoint = out / "checkpoints" / "round-00003"
    checkpoint.mkdir(parents=True)
    state = {"images": {"north": 40, "south": 30}, "bases": {"north": "r2", "south": "r2"}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    safetensors.torch.save_file(training.parts.shared(), checkpoint / "encoder.safetensors")
    StateStore(out / "sites" / "north" / "state").save(config.run.name, "r2", training.local())
    return training


@pytest.mark.parametrize("shared", [False, True])
def test_a_picture_is_what_the_committed_encoder_and_head_make_of_held_out_images(
    cache: Cache, tmp_path: Path, shared: bool
) -> None:
    config = fed.settings(
        f"federation.share_head={str(shared).lower()}", "data.test_share=0.2", "federation.rounds=3"
    )
    assert stages.of(config).shares_head == shared
    training = committed(tmp_path, config, cache, shared=shared)
    pictures.show(cache, config, tmp_path, 3)
    strips = shown.read(tmp_path / shown.FOLDER)
    head = "the shared head" if shared else "the head of north"
    assert [strip.caption for strip in strips] == [
        "clean", "corrupted, as the encoder gets them", f"reconstructed after round 3, by {head}",
    ]  # fmt: skip
    rows = np.flatnonzero(cache.held_out(0.2))
    clean, corrupted, made = (images(strip.png, len(rows)) for strip in strips)
    assert np.abs(clean.astype(int) - cache.images[rows]).max() <= 1
    changed = (corrupted != clean).mean()
    assert 0.3 < changed < 1
    # The same again by hand.
    objective = training.objective.eval()
    with torch.no_grad():
        inputs = whole(torch.from_numpy(cache.images[rows]), config)
        draw = objective.corrupt(inputs, seeds.generator(training.device, config.run.seed, "report"))
        expected = objective.reconstruct(draw.images)[:, 0] * config.data.std + config.data.mean
    assert np.abs(made - 255 * expected.clamp(0, 1).numpy()).max() <= 0.51
    assert made.std() > 5  # the head that was disturbed, not the start's


def images(png: bytes, count: int) -> np.ndarray:
    """The images of a strip, uint8 [count, H, W]."""
    row = np.asarray(Image.open(io.BytesIO(png)))
    size = row.shape[0]
    cut = [row[:, n * (size + 2) : n * (size + 2) + size] for n in range(count)]
    assert all((part[..., 1] == 255).all() for part in cut)
    return np.stack([part[..., 0] for part in cut])


def test_without_the_site_s_state_nothing_is_pictured(cache: Cache, tmp_path: Path) -> None:
    config = fed.settings("data.test_share=0.2", "federation.rounds=3")
    committed(tmp_path, config, cache, shared=False)
    (next((tmp_path / "sites" / "north" / "state").rglob("*.safetensors"))).unlink()
    pictures.show(cache, config, tmp_path, 3)
    assert shown.read(tmp_path / shown.FOLDER) == []


def test_the_map_is_the_same_for_the_same_features_and_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (60, 12)).astype(np.float32)
    features[30:] += 8
    places = pictures.plane(features, 3)
    np.testing.assert_array_equal(places, pictures.plane(features, 3))
    apart = np.linalg.norm(places[:30].mean(axis=0) - places[30:].mean(axis=0))
    assert apart > 2 * max(places[:30].std(axis=0).max(), places[30:].std(axis=0).max())


def test_every_image_on_the_map_has_its_site_and_one_word(cache: Cache, tmp_path: Path) -> None:
    config = fed.settings("data.test_share=0.2")
    for name, members in (("north", range(12)), ("south", range(12, IMAGES))):
        folder = tmp_path / "sites" / name
        folder.mkdir(parents=True)
        (folder / "groups.txt").write_text("\n".join(f"g{n}" for n in members))
    encoder = SiteTraining(config, set_up(config), cache).objective.encoder
    pictures.place(encoder, cache, tmp_path, config, ["north", "south"])
    table = record._embedding(tmp_path / record.EMBEDDING)
    assert table is not None
    assert list(table.columns) == list(record.EMBEDDING_COLUMNS)
    assert table["site"].value_counts().to_dict() == {"north": 12, "south": 8}
    # An image with both has the rarer word; here both are as common, and the later one in order wins.
    assert set(table["label"]) == {"edema", "mass", "none of these"}


def test_an_image_of_which_nothing_is_known_is_unknown(tmp_path: Path) -> None:
    nothing = [np.nan, 0.0, 1.0, 1.0]
    cache = make_cache(
        tmp_path / "c",
        np.zeros((4, 8, 8), np.uint8),
        {"label:edema": nothing, "label:mass": [np.nan, 0, 0, 1]},
    )
    assert pictures.kinds(cache, np.arange(4)) == ["unknown", "none of these", "edema", "mass"]


def test_of_images_without_a_label_the_map_says_so(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", np.zeros((3, 8, 8), np.uint8), {})
    assert pictures.kinds(cache, np.arange(2)) == ["unknown", "unknown"]


def test_what_goes_wrong_with_a_picture_ends_no_run(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    config = configs.load("smoke")
    pictures.follow(cast(Any, None), config, tmp_path)  # no cache to draw from, no checkpoint
    assert Hooks.listener is not None
    Hooks.listener.committed({"round": 1})
    Hooks.listener = None
    assert "a picture for the report was not drawn (AttributeError" in caplog.text
