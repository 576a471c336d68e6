"""From data to virtual sites: several caches as one, and what is said of each site's images."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caches import make_cache

from client.settings import read_settings
from server.ledger import Ledger
from sim.data import gather
from sim.outcome import _site_data
from sim.sites import check_labelled, write_config, write_sites
from sscxr import config as configs
from sscxr.config import ConfigError
from sscxr.data.cache.cache import CacheError, open_cache


def images(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def groups(letter: str, count: int = 4) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


def test_joined_caches_keep_masks_and_labels(tmp_path: Path) -> None:
    first = make_cache(tmp_path / "a", images(0), {"group": groups("a"), "label:normal": [0, 1, 0, 1]})
    make_cache(tmp_path / "b", images(1, 3), {"group": groups("b", 3), "has_mask": [0, 1, 1]})
    masks = np.zeros((3, 8, 8), dtype=np.uint8)
    masks[1:, 2:5, 2:5] = 255
    np.save(tmp_path / "b" / "masks.npy", masks)
    second = open_cache(tmp_path / "b")
    joined = gather([first.folder, second.folder], tmp_path / "out", configs.load(), 2)
    assert np.array_equal(joined.images, np.concatenate([first.images, second.images]))
    assert joined.masks is not None
    assert np.array_equal(joined.masks[4:], masks)
    assert not joined.masks[:4].any()
    assert joined.index["has_mask"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert np.isnan(joined.label("normal")[4:]).all()
    assert joined.label("normal")[:4].tolist() == [0, 1, 0, 1]


def test_caches_that_share_an_image_are_not_joined(tmp_path: Path) -> None:
    for name in "ab":
        make_cache(tmp_path / name, images(0), {"group": groups(name)})
    with pytest.raises(CacheError, match=r"4 images of .* are in another"):
        gather([tmp_path / "a", tmp_path / "b"], tmp_path / "out", configs.load(), 2)


def test_a_fine_tuning_counts_the_images_that_it_learned_from(tmp_path: Path) -> None:
    cache = make_cache(
        tmp_path / "cache", images(0), {"group": groups("a"), "label:normal": [0, 1, np.nan, np.nan]}
    )
    folder = tmp_path / "out" / "sites" / "anna"
    folder.mkdir(parents=True)
    (folder / "groups.txt").write_text("a0 a1 a2")
    told = {
        stage: _site_data(
            cache,
            tmp_path / "out",
            "anna",
            configs.load("default", [f"run.stage={stage}", "classify.labels=[normal]"]),
        )
        for stage in ("pretrain", "classify")
    }
    assert (told["pretrain"].images, told["classify"].images) == (3, 2)


def test_a_label_or_mask_that_no_image_has_is_said_before_any_site_waits(tmp_path: Path) -> None:
    labelled = make_cache(
        tmp_path / "a", images(0), {"label:edema": [0, 1, 0, 1], "label:mass": [1, 0, 0, 0]}
    )
    classify = ["run.stage=classify", "classify.labels=[edema,effusion]"]
    with pytest.raises(ConfigError, match="labelled effusion; there are: edema, mass"):
        check_labelled(labelled, configs.load("smoke", classify))
    check_labelled(labelled, configs.load("smoke", ["run.stage=classify", "classify.labels=[edema]"]))
    check_labelled(labelled, configs.load("smoke"))
    with pytest.raises(ConfigError, match="no image of the data has a lung mask"):
        check_labelled(labelled, configs.load("smoke", ["run.stage=segment"]))
    masked = make_cache(tmp_path / "b", images(1), {"has_mask": [0, 0, 1, 0]})
    check_labelled(masked, configs.load("smoke", ["run.stage=segment"]))
    with pytest.raises(ConfigError, match="labelled edema, effusion; no image has a label"):
        check_labelled(masked, configs.load("smoke", classify))


def test_files_with_people_s_words_are_utf_8_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "text_encoding", lambda encoding, level=2: encoding or "ascii")
    cache = make_cache(tmp_path / "Röntgen", images(0), {"group": groups("a"), "source": "Köln"})
    changes = ["privacy.min_cell=1", "data.test_share=0", "classify.labels=[Erguß]"]
    config = configs.load("smoke", changes)
    (name,) = write_sites(cache, tmp_path / "out", config, 1)
    settings = read_settings(tmp_path / "out" / "sites" / name / "site.yaml")
    assert settings.cache == str(cache.folder)
    dealt = pd.read_csv(tmp_path / "out" / "partition.csv")
    assert set(dealt["source"]) == {"Köln"}
    assert configs.load(write_config(config, tmp_path / "out")).classify.labels == ["Erguß"]
    Ledger(tmp_path / "run", config, resume=False)
    Ledger(tmp_path / "run", config, resume=True)
