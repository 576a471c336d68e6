"""A site's own images: the rows that it trains on and holds out, and what it tells of them."""

import json
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from caches import make_cache

from client.settings import SiteError, SiteSettings
from client.site import Site
from sscxr.federation.wire import FAILURES


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
    with pytest.raises(SiteError, match="min_cell=5") as error:
        site.training_rows(fed.settings("privacy.min_cell=5"))
    assert error.value.failure == "few images"


def test_held_out_rows_fewer_than_the_minimum_are_none(tmp_path: Path) -> None:
    site = mixed_site(tmp_path)
    config = fed.settings("data.test_share=0.2", "data.laterals=true")
    assert len(site.held_out_rows(config)) == 12
    config.privacy.min_cell = 13
    assert len(site.held_out_rows(config)) == 0


def test_a_cache_that_changed_is_opened_again(tmp_path: Path) -> None:
    first = mixed_site(tmp_path)
    again = Site(first.settings)
    assert again.cache is first.cache
    (tmp_path / "cache" / "summary.json").write_text((tmp_path / "cache" / "summary.json").read_text() + " ")
    assert Site(first.settings).cache is not first.cache
    make_cache(tmp_path / "cache", np.zeros((7, 8, 8), np.uint8), {"view": "PA"})
    assert len(Site(first.settings).cache) == 7


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
