"""A site: its settings, its rows, and the state that survives between messages or says that it did not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import safetensors.torch
import torch
from caches import make_cache

from client.settings import SiteError, SiteSettings, read_settings
from client.site import Site, StateStore, writes
from sscxr.wire import FAILURES, WireError

# ---- site.yaml


def write(folder: Path, text: str) -> Path:
    file = folder / "site.yaml"
    file.write_text(text)
    return file


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "name: a\ncache: c\nstate: /s\ngroups: g.txt\n"))
    assert settings == SiteSettings("a", str(tmp_path / "c"), "/s", str(tmp_path / "g.txt"))
    assert read_settings(write(tmp_path, "name: a\ncache: c\nstate: s\n")).groups == ""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: a\nstate: s\n", "no value for cache"),
        ("", "no value for cache, name, state"),
        ("name: a\ncache: c\nstate: s\ncash: d\n", "cash"),
        ("name: a b\ncache: c\nstate: s\n", "1 to 64 letters"),
        ("name: ../a\ncache: c\nstate: s\n", "1 to 64 letters"),
        ("name: [a]\ncache: c\nstate: s\n", "site.yaml"),
        ("- a\n", "site.yaml"),
        ("name: [a\n", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SiteError, match=word) as error:
        read_settings(write(tmp_path, text))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert error.value.failure == "settings"


def test_settings_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"none\.yaml") as error:
        read_settings(tmp_path / "none.yaml")
    assert "\n" not in str(error.value)


def test_a_cache_or_list_of_groups_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="not a finished cache") as error:
        Site(SiteSettings("a", str(tmp_path), "s"))
    assert error.value.failure == "cache"
    fed.make_site(tmp_path, "a")
    with pytest.raises(SiteError, match="list of groups") as error:
        Site(SiteSettings("a", str(tmp_path / "cache"), "s", str(tmp_path / "none.txt")))
    assert error.value.failure == "settings"


def test_every_failure_of_a_site_has_its_fixed_words() -> None:
    assert {"settings", "cache", "few images", "fingerprint"} <= FAILURES.keys()


# ---- rows


def mixed_site(folder: Path, groups: list[str] | None = None, **index: Any) -> Site:
    """Thirty patients of two images each, one in six of them a lateral."""
    patients = np.repeat(np.arange(30), 2)
    columns = {
        "group": [f"g{patient}" for patient in patients],
        "split": (patients + 0.5) / 30,
        "view": np.where(np.arange(60) % 6 == 1, "L", "PA"),
    }
    make_cache(folder / "cache", np.zeros((60, 8, 8), np.uint8), {**columns, **index})
    listed = ""
    if groups is not None:
        listed = str(folder / "groups.txt")
        Path(listed).write_text("\n".join(groups))
    return Site(SiteSettings("a", str(folder / "cache"), str(folder / "state"), listed, min_cell=1))


@pytest.mark.parametrize("share", ["0.0", "0.1", "0.5"])
def test_held_out_and_training_rows_share_no_group_and_are_all(tmp_path: Path, share: str) -> None:
    site, config = mixed_site(tmp_path), fed.settings(f"data.test_share={share}")
    training, held_out = site.training_rows(config), site.held_out_rows(config)
    group = site.cache.index["group"]
    assert set(group.iloc[training]).isdisjoint(group.iloc[held_out])
    assert sorted([*training, *held_out]) == sorted(site.usable_rows(config))
    assert len(set(group.iloc[held_out])) == round(float(share) * 30)


def test_laterals_are_left_out_unless_wanted(tmp_path: Path) -> None:
    site = mixed_site(tmp_path)
    assert len(site.usable_rows(fed.settings())) == 50
    assert len(site.usable_rows(fed.settings("data.laterals=true"))) == 60


def test_a_virtual_site_sees_its_groups_alone(tmp_path: Path) -> None:
    site = mixed_site(tmp_path, groups=["g9", "g20", "g28", "of another cache"])
    rows = site.usable_rows(fed.settings("data.laterals=true"))
    assert set(site.cache.index["group"].iloc[rows]) == {"g9", "g20", "g28"}


def test_too_few_images_to_train_on_are_said(tmp_path: Path) -> None:
    site = mixed_site(tmp_path, groups=["g9", "g20"])
    with pytest.raises(SiteError, match=r"privacy\.min_cell=5") as error:
        site.training_rows(fed.settings("privacy.min_cell=5"))
    assert error.value.failure == "few images"


def grey_site(
    folder: Path, pixels: np.ndarray, metrics: list[str], **index: Any
) -> dict[str, dict[str, int]]:
    """What a site of these images tells of itself."""
    make_cache(folder / "cache", pixels, {"split": (np.arange(len(pixels)) + 0.5) / len(pixels), **index})
    settings = SiteSettings("a", str(folder / "cache"), str(folder / "state"), metrics=metrics, min_cell=1)
    told = Site(settings).told_counts(fed.settings("privacy.min_cell=5", "data.test_share=0.0"))
    return dict(json.loads(told))


def test_grey_levels_are_told_where_the_site_says_so_alone(tmp_path: Path) -> None:
    pixels = np.full((20, 8, 8), 40, np.uint8)
    assert "grey" not in grey_site(tmp_path / "a", pixels, ["counts"])
    assert "images" in grey_site(tmp_path / "a", pixels, ["counts"])
    assert set(grey_site(tmp_path / "b", pixels, ["grey"])) == {"grey"}
    assert "grey" not in SiteSettings("a", "c", "s").metrics


def test_grey_levels_are_those_of_the_images_without_their_padding(tmp_path: Path) -> None:
    """Of half of the images all pixels are 40, of the others half are 200; beside them there is black padding."""
    pixels = np.zeros((20, 8, 8), np.uint8)
    pixels[:, 2:6, :] = 40
    pixels[10:, 2:4, :] = 200
    content = {"top": 2, "left": 0, "content_height": 4, "content_width": 8}
    told = grey_site(tmp_path, pixels, ["grey"], **content)["grey"]
    # Levels that no patient has are not told; the two that are there are in at least five patients.
    assert told == {"32-47": 75, "192-207": 25}


def test_grey_levels_of_fewer_patients_than_the_minimum_are_not_told(tmp_path: Path) -> None:
    pixels = np.full((20, 8, 8), 40, np.uint8)
    pixels[:, 0] = 120
    pixels[:, 1] = 250
    pixels[:6, 2:4] = 200  # twelve images, but of four patients
    pixels[6:12, 2:4] = 200
    groups = [f"g{number % 4}" if number < 12 else f"h{number}" for number in range(20)]
    told = grey_site(tmp_path, pixels, ["grey"], group=groups)["grey"]
    assert "192-207" not in told
    assert "32-47" in told


def test_held_out_rows_fewer_than_the_minimum_are_none(tmp_path: Path) -> None:
    site = mixed_site(tmp_path)
    config = fed.settings("data.test_share=0.2", "data.laterals=true")
    assert len(site.held_out_rows(config)) == 12
    config.privacy.min_cell = 13
    assert len(site.held_out_rows(config)) == 0


# ---- what it tells


def test_counts_come_from_fixed_lists_without_small_cells(tmp_path: Path) -> None:
    index = {
        "sex": np.repeat(["F", "M", "DOE^JANE"], 20),
        "age_band": np.repeat(["40-59", "60-79"], 30),
        "label:edema": np.repeat([1.0, 0.0, np.nan], [28, 30, 2]),
        "label:DOE^JANE": 1.0,
    }
    site = mixed_site(tmp_path, **index)
    config = fed.settings("data.laterals=true", "privacy.min_cell=10")
    told = json.loads(site.counts(config))
    assert told == {
        "view": {"PA": 50},  # the ten laterals hide that nobody is in the other cells
        "sex": {"F": 20, "M": 20, "unknown": 20},
        "age": {},
        "images": {"first of a patient": 30, "further of a patient": 30},
        "label:edema": {},
    }
    assert "DOE" not in site.counts(config)


def test_the_total_of_the_counts_gives_no_small_number_of_held_out_images_away(tmp_path: Path) -> None:
    """The server knows how many images are trained on; tables over more would tell the rest."""
    site = mixed_site(tmp_path, sex=np.repeat(["F", "M", "unknown"], 20))
    config = fed.settings("data.test_share=0.1", "data.laterals=true", "privacy.min_cell=7")
    assert len(site.held_out_rows(config)) == 0
    assert sum(json.loads(site.counts(config))["sex"].values()) == len(site.training_rows(config)) == 54
    config.privacy.min_cell = 5
    assert sum(json.loads(site.counts(config))["sex"].values()) == 60


# ---- state

TENSORS = {"head.weight": torch.arange(6.0).reshape(2, 3), "exp_avg.encoder.norm.bias": torch.ones(4)}


def stored(folder: Path, *generations: str) -> StateStore:
    store = StateStore(folder)
    for number, name in enumerate(generations):
        store.save("run", name, {key: tensor + number for key, tensor in TENSORS.items()})
    return store


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    tensors, state = stored(tmp_path, "r00000-a00").load("run", "r00000-a00")
    assert state == "kept"
    assert tensors is not None
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_where_no_generation_is_named_there_is_none(tmp_path: Path) -> None:
    assert stored(tmp_path, "r00000-a00").load("run", "") == (None, "new")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def flipped_last(file: Path) -> None:
    flip(file, -1)


def flipped_first_value(file: Path) -> None:
    flip(file, -40)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def without_digest(file: Path) -> None:
    safetensors.torch.save_file(TENSORS, file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, truncated, emptied, flipped_last, flipped_first_value, without_digest, a_folder],
)
def test_what_is_missing_or_damaged_is_lost(tmp_path: Path, damage: Any) -> None:
    store = stored(tmp_path, "r00000-a00")
    damage(tmp_path / "run" / "r00000-a00.safetensors")
    assert store.load("run", "r00000-a00") == (None, "lost")


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00")
    file = tmp_path / "run" / "r00000-a00.safetensors"
    good = file.read_bytes()
    for place in range(0, len(good), 3):
        flip(file, place)
        tensors, state = store.load("run", "r00000-a00")
        # A bit of white space or of the header's own layout may change nothing of what is read.
        assert state == "lost" or all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)  # type: ignore[index]
        file.write_bytes(good)


@pytest.mark.parametrize(
    "names", [("../run", "a"), ("run", "../a"), ("run", "/a"), ("", "a"), ("run", "a b")]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    store = stored(tmp_path / "store", "r00000-a00")
    with pytest.raises(WireError):
        store.save(*names, TENSORS)
    assert store.load(*names) == (None, "lost")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_only_what_is_named_is_kept(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00", "r00001-a00", "r00001-a01")
    stored(tmp_path / "other", "r00000-a00")
    (tmp_path / "run" / "r00001-a02.tmp").write_bytes(b"half")
    (tmp_path / "run" / "r00001-a00.tmp").write_bytes(b"half")
    store.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["r00001-a00.safetensors"]
    assert (tmp_path / "other" / "run" / "r00000-a00.safetensors").exists()
    store.keep_only("run", "")
    assert not list((tmp_path / "run").iterdir())
    store.keep_only("a-run-that-never-was", "")


def test_another_run_of_the_same_site_is_left_alone(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00")
    store.save("second", "r00000-a00", TENSORS)
    store.keep_only("second", "")
    assert store.load("run", "r00000-a00")[1] == "kept"


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_save_that_is_killed_leaves_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = stored(tmp_path, "r00000-a00")

    def killed(*args: Any, **named: Any) -> None:
        if where == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    target = {"save_file": safetensors.torch, "fsync": os, "replace": Path}[where]
    with monkeypatch.context() as patch:
        patch.setattr(target, where, killed)
        with pytest.raises(KeyboardInterrupt):
            store.save("run", "r00000-a00", {"head.weight": torch.zeros(1)})
    tensors, state = store.load("run", "r00000-a00")
    assert state == "kept"
    assert tensors is not None
    assert torch.equal(tensors["head.weight"], TENSORS["head.weight"])
    store.save("run", "r00001-a00", TENSORS)
    store.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["r00001-a00.safetensors"]


# ---- states that are written while another site trains


@pytest.fixture
def behind() -> Iterator[None]:
    writes.behind = True
    yield
    writes.behind = False


def test_a_state_written_behind_is_there_for_its_own_site(tmp_path: Path, behind: None) -> None:
    a, b = stored(tmp_path / "a", "r00000-a00"), stored(tmp_path / "b", "r00000-a00", "r00001-a00")
    for store, name in ((b, "r00001-a00"), (a, "r00000-a00")):
        assert store.load("run", name)[1] == "kept"
    b.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "b" / "run").iterdir()] == ["r00001-a00.safetensors"]


def test_the_same_bytes_behind_or_not(tmp_path: Path, behind: None) -> None:
    stored(tmp_path / "behind", "r00000-a00")
    writes.settle()
    writes.behind = False
    stored(tmp_path / "at-once", "r00000-a00")
    one, other = (
        (tmp_path / n / "run" / "r00000-a00.safetensors").read_bytes() for n in ("behind", "at-once")
    )
    assert one == other


def test_what_could_not_be_written_is_told_before_a_round_is_committed(tmp_path: Path, behind: None) -> None:
    (tmp_path / "a").write_text("no folder")
    stored(tmp_path / "a", "r00000-a00")
    stored(tmp_path / "b", "r00000-a00", "r00001-a00")  # the next ones do not hide it
    with pytest.raises(SiteError, match="could not be written") as error:
        writes.settle()
    assert error.value.failure == "disk"
    assert (tmp_path / "b" / "run" / "r00001-a00.safetensors").exists()
    writes.settle()  # told once


# ---- what is kept between messages of one process


def test_a_cache_that_changed_is_opened_again(tmp_path: Path) -> None:
    first = mixed_site(tmp_path)
    again = Site(first.settings)
    assert again.cache is first.cache
    (tmp_path / "cache" / "summary.json").write_text((tmp_path / "cache" / "summary.json").read_text() + " ")
    assert Site(first.settings).cache is not first.cache
    make_cache(tmp_path / "cache", np.zeros((7, 8, 8), np.uint8), {"view": "PA"})
    assert len(Site(first.settings).cache) == 7


def test_settings_that_changed_are_read_again_and_are_nobody_elses(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\ncache: c\nstate: s\n")
    first = read_settings(file)
    first.stages.append("classify")
    first.name = "b"
    assert read_settings(file) == SiteSettings("a", str(tmp_path / "c"), str(tmp_path / "s"))
    write(tmp_path, "name: a\ncache: d\nstate: s\n")
    assert read_settings(file).cache == str(tmp_path / "d")
