"""Dice and Hausdorff distance: what they are of outlines that can be reckoned by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from caches import make_cache
from scipy import ndimage

from sscxr.data.cache.cache import Cache, CacheError, open_cache
from sscxr.evaluation import segmentation
from sscxr.evaluation.segmentation import dice, difference, evaluate, figures, hd95, measure, mm_per_px

SIZE = 32
QUICK: dict[str, Any] = {"resamples": 100}
Bools = npt.NDArray[np.bool_]


def box(top: int, left: int, height: int, width: int) -> Bools:
    found = np.zeros((SIZE, SIZE), dtype=bool)
    found[top : top + height, left : left + width] = True
    return found


def mask(lung: Bools, ignored: Bools | None = None) -> npt.NDArray[np.uint8]:
    found = lung.astype(np.uint8) * np.uint8(255)
    if ignored is not None:
        found[ignored] = 127
    return found


def of(predicted: Bools, truth: npt.NDArray[np.uint8], spacing: float = math.nan) -> pd.Series:
    return measure(predicted[None], truth[None], np.array([spacing])).iloc[0]


NOTHING = box(0, 0, 0, 0)
LUNG = box(8, 6, 16, 10)


def test_an_outline_agrees_with_itself() -> None:
    one = of(LUNG, mask(LUNG), spacing=2.0)
    assert (one["dice"], one["hd95_px"], one["hd95_mm"]) == (1.0, 0.0, 0.0)


def test_figures_of_a_shifted_box_are_as_reckoned() -> None:
    shifted = box(8, 10, 16, 10)
    assert dice(shifted, LUNG) == pytest.approx(2 * 6 / 20)
    assert hd95(shifted, LUNG) == 4.0
    assert of(shifted, mask(LUNG), spacing=0.5)["hd95_mm"] == 2.0
    assert math.isnan(of(shifted, mask(LUNG))["hd95_mm"])


def test_both_figures_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = box(*rng.integers(2, 12, 4)), box(*rng.integers(2, 12, 4))
        assert dice(one, other) == dice(other, one)
        assert hd95(one, other) == hd95(other, one)


def test_the_distance_is_the_larger_of_both_directions(recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = (ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 3) > 0.02 for _ in range(2))
        # An outline: the pixels that touch what is no lung, sideways or up and down.
        places = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) for mask in (one, other)]
        apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
        expected = max(np.percentile(apart.min(axis=way), 95) for way in (0, 1))
        assert hd95(one, other) == pytest.approx(expected, rel=1e-5)
    assert not recwarn.list


def test_a_speck_far_away_is_beyond_the_95th_percentile() -> None:
    speck = LUNG | box(30, 30, 1, 1)
    assert hd95(speck, LUNG) == 0.0
    assert dice(speck, LUNG) < 1


def test_ignored_pixels_change_nothing() -> None:
    ignored = box(0, 20, SIZE, 12)
    truth, shifted = mask(LUNG, ignored), box(10, 6, 16, 10)
    plain = of(shifted, truth)
    for what in (shifted | ignored, shifted | box(3, 22, 7, 5)):
        assert of(what, truth).equals(plain)
    assert plain["dice"] == of(shifted, mask(LUNG))["dice"]


@pytest.mark.parametrize(
    ("predicted", "lung", "expected"),
    [
        (NOTHING, NOTHING, (1.0, 0.0, True, True)),
        (NOTHING, LUNG, (0.0, SIZE * math.sqrt(2), True, False)),
        (LUNG, NOTHING, (0.0, SIZE * math.sqrt(2), False, True)),
    ],
)
def test_empty_outlines_have_figures_of_their_own(
    predicted: Bools, lung: Bools, expected: tuple[float, float, bool, bool]
) -> None:
    one = of(predicted, mask(lung))
    assert tuple(one[["dice", "hd95_px", "empty_predictions", "empty_truths"]]) == pytest.approx(expected)


def test_an_image_that_is_all_ignored_is_left_out() -> None:
    everything = np.ones((SIZE, SIZE), dtype=bool)
    measured = measure(
        np.stack([LUNG, LUNG]), np.stack([mask(LUNG, everything), mask(LUNG)]), np.full(2, np.nan)
    )
    found = figures(measured, ["a", "b"], **QUICK)
    assert found["dice"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert found["n"] == 2
    assert found["hd95_mm"] == {"value": None, "low": None, "high": None, "n": 0}


def test_the_mean_dice_alone_is_that_of_the_figures() -> None:
    rng = np.random.default_rng(0)
    masks = rng.choice(np.array([0, 127, 255], np.uint8), (5, 12, 12))
    masks[3] = 127
    predicted = rng.random((5, 12, 12)) < 0.4
    full = measure(predicted, masks, np.full(5, math.nan))["dice"]
    assert segmentation.mean_dice(predicted, masks) == pytest.approx(full.mean())
    assert 0.1 < full.mean() < 0.9
    assert math.isnan(segmentation.mean_dice(predicted[3:4], masks[3:4]))


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="spacings"):
        measure(LUNG[None], mask(LUNG)[None, :-1], np.array([1.0]))


def test_millimetres_are_of_the_cache_not_of_the_original() -> None:
    index = pd.DataFrame(
        {
            "spacing_mm": [0.2, np.nan],
            "height": [1000, 1000],
            "width": [2000, 2000],
            "content_height": [64, 64],
            "content_width": [128, 128],
        }
    )
    first, second = mm_per_px(index)
    assert first == pytest.approx(0.2 * 2000 / 128)
    assert math.isnan(second)


# ---- many images


def sample(seed: int = 0, count: int = 40) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures and the index of images of two sources, two images a patient."""
    rng = np.random.default_rng(seed)
    measured = pd.DataFrame(
        {
            "dice": rng.uniform(0.8, 1, count),
            "hd95_px": rng.uniform(0, 9, count),
            "hd95_mm": np.where(np.arange(count) < 10, rng.uniform(0, 9, count), np.nan),
            "empty_predictions": np.arange(count) == 3,
            "empty_truths": False,
        }
    )
    index = pd.DataFrame(
        {
            "group": [f"g{number // 2}" for number in range(count)],
            "source": np.where(np.arange(count) < 10, "clinic", "ward"),
            "view": np.where(np.arange(count) % 3, "PA", ""),
            "sex": "F",
            "age_band": "",
        },
        index=np.arange(count) + 100,
    )
    return measured, index


def test_figures_are_means_with_intervals_and_json_takes_them() -> None:
    measured, index = sample()
    found = evaluate(measured, index, **QUICK)
    json.dumps(found, allow_nan=False)
    for name, n in (("dice", 40), ("hd95_px", 40), ("hd95_mm", 10)):
        assert found[name]["value"] == pytest.approx(measured[name].mean())
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["n"] == n
    counts = {name: found[name] for name in ("n", "patients", "empty_predictions", "empty_truths")}
    assert counts == {"n": 40, "patients": 20, "empty_predictions": 1, "empty_truths": 0}


def test_subgroups_are_those_images_alone() -> None:
    measured, index = sample()
    by = evaluate(measured, index, **QUICK)["by"]
    assert {name: list(part) for name, part in by.items()} == {
        "source": ["clinic", "ward"],
        "view": ["PA", "unknown"],
        "sex": ["F"],
        "age_band": ["unknown"],
    }
    ward = (index["source"] == "ward").to_numpy()
    assert by["source"]["ward"] == figures(measured[ward], index["group"][ward], **QUICK)
    assert by["source"]["ward"]["hd95_mm"] == {"value": None, "low": None, "high": None, "n": 0}


def test_the_interval_is_over_patients_not_images() -> None:
    """Ten copies of each patient's image tell no more than one."""
    measured, _ = sample(count=20)
    names = [f"p{number}" for number in range(20)]
    once = figures(measured, names, **QUICK)["dice"]
    tenfold = figures(pd.concat([measured] * 10), names * 10, **QUICK)["dice"]
    assert tenfold["high"] - tenfold["low"] == pytest.approx(once["high"] - once["low"])


def test_a_model_differs_from_itself_by_nothing_and_from_a_worse_one_clearly() -> None:
    measured, index = sample()
    same = difference(measured, measured, index["group"], **QUICK)["dice"]
    assert (same["value"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)
    worse = measured.assign(dice=measured["dice"] - 0.01)
    gain = difference(measured, worse.set_axis(index.index), index["group"], **QUICK)["dice"]
    assert [gain[name] for name in ("value", "low", "high")] == pytest.approx([0.01] * 3)
    assert gain["p"] < 0.05


# ---- which images


def masked_cache(folder: Path, masks: npt.NDArray[np.uint8] | None) -> Cache:
    images = np.zeros((3, SIZE, SIZE), dtype=np.uint8)
    make_cache(folder, images, {"has_mask": [1, 0, 1], "source": ["a", "b", "a"]})
    if masks is not None:
        np.save(folder / "masks.npy", masks)
    return open_cache(folder)


def test_images_with_masks_are_found_among_the_rows(tmp_path: Path) -> None:
    cache = masked_cache(tmp_path, np.zeros((3, SIZE, SIZE), dtype=np.uint8))
    assert segmentation.masked(cache, np.array([2, 1])).tolist() == [2]


def test_what_cannot_be_segmented_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="has no masks"):
        segmentation.masked(masked_cache(tmp_path / "none", None), np.arange(3))
    smaller = masked_cache(tmp_path / "smaller", np.zeros((3, 16, 16), dtype=np.uint8))
    with pytest.raises(CacheError, match=r"masks of \(16, 16\) px for images of \(32, 32\)"):
        segmentation.masked(smaller, np.arange(3))
    whole = masked_cache(tmp_path / "whole", np.zeros((3, SIZE, SIZE), dtype=np.uint8))
    with pytest.raises(CacheError, match="images of a do"):
        segmentation.masked(whole, np.array([1]))
