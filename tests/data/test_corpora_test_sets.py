"""Published test sets stay apart, and a patient's place is the same however the corpus is prepared."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts.base import picture
from marks import slow

from sscxr.data.prepare.prepare import prepare


@pytest.mark.parametrize("name", ["nih", slow("kermany"), slow("covidx")])
def test_no_published_test_image_is_trained_on_unless_asked_for(name: str, corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    assert truth.tests
    cache = prepare([f"{name}:{root}"], tmp_path / "cache", size=48, workers=0, progress=False)
    tests = (cache.index["published"] == "test").to_numpy()
    assert tests.sum() == truth.tests
    for share in (0.0, 0.2, 0.9):
        held_out = cache.held_out(share)
        assert held_out[tests].all()
        # A patient with one image in the test set is set aside whole.
        groups = cache.index["group"].to_numpy()
        assert held_out[np.isin(groups, groups[tests])].all()
    assert not cache.held_out(0.0)[~tests & ~np.isin(groups, groups[tests])].any()
    asked = prepare(
        [f"{name}:{root}"], tmp_path / "asked", size=48, workers=0, progress=False, train_on_test=True
    )
    assert not asked.held_out(0.0).any()
    assert (asked.index["published"] == "test").sum() == truth.tests


def test_an_image_published_as_a_test_image_by_one_of_two_corpora_is_set_aside(tmp_path: Path) -> None:
    for folder in ("a/train/Normal", "a/test/Normal", "b/train/Normal"):
        (tmp_path / folder).mkdir(parents=True)
    picture(tmp_path / "a/train/Normal/1.png")
    picture(tmp_path / "a/test/Normal/2.png")
    shutil.copy(tmp_path / "a/test/Normal/2.png", tmp_path / "b/train/Normal/x.png")
    specs = [f"folders:{tmp_path / name}" for name in "ba"]
    cache = prepare(specs, tmp_path / "cache", size=48, workers=0, progress=False)
    assert len(cache) == 2
    assert cache.held_out(0.0).sum() == 1


def test_a_patient_s_place_is_the_same_at_any_resolution_and_under_any_salt(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("padchest")
    places = []
    for salt, size in ((b"a" * 32, 48), (b"b" * 32, 64)):
        cache = prepare(
            [f"padchest:{root}"], tmp_path / str(size), size=size, salt=salt, workers=0, progress=False
        )
        places.append(dict(zip(cache.index["public_id"], cache.index["split"], strict=True)))
    assert places[0] == places[1]
    half = tmp_path / "half"
    shutil.copytree(root, half)
    for file in sorted(half.rglob("*.png"))[::2]:
        file.unlink()
    cache = prepare([f"padchest:{half}"], tmp_path / "c", size=48, workers=0, progress=False)
    kept = dict(zip(cache.index["public_id"], cache.index["split"], strict=True))
    assert kept.items() <= places[0].items()
