"""AUROC equals sklearn's; its bootstrap over patients is reproducible, honest and no narrower than it should be."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sscxr.evaluation import metrics


def sample(seed: int, patients: int = 60, copies: int = 1, shift: float = 1.0) -> tuple[np.ndarray, ...]:
    """Scores of positives and negatives `shift` standard deviations apart, each patient `copies` times."""
    rng = np.random.default_rng(seed)
    positive = np.arange(patients) % 2 == 0
    scores = rng.normal(size=patients) + shift * positive
    return tuple(np.repeat(values, copies) for values in (scores, positive, np.arange(patients)))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_sklearns_ties_included(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 200) / levels
    positive = rng.random(200) < 0.3
    assert metrics.auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 20, 80).astype(float), rng.random(80) < 0.4
    weights = rng.integers(0, 4, (5, 80))
    expected = [roc_auc_score(np.repeat(positive, row), np.repeat(scores, row)) for row in weights]
    assert metrics.weighted_auroc(scores, positive, weights) == pytest.approx(expected, abs=1e-12)


def test_one_class_has_no_auroc() -> None:
    assert np.isnan(metrics.auroc([0.1, 0.2], [True, True]))
    alone = metrics.bootstrap([0.1, 0.2], [True, True], ["a", "b"], resamples=10)
    assert np.isnan([alone.value, alone.low, alone.high]).all()


def test_resamples_of_one_class_are_left_out() -> None:
    # One positive patient of two: half the resamples lack a class, the others have a perfect AUROC.
    found = metrics.bootstrap([1.0, 0.0], [True, False], ["a", "b"], resamples=200)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_same_seed_same_interval_whatever_the_groups_are_called() -> None:
    scores, positive, groups = sample(0, copies=2)
    first = metrics.bootstrap(scores, positive, groups, resamples=200, seed=3)
    salted = np.array([f"{hash((7, int(group))) & 0xFFFF:04x}-{group}" for group in groups])
    assert metrics.bootstrap(scores, positive, salted, resamples=200, seed=3) == first
    assert metrics.bootstrap(scores, positive, groups, resamples=200, seed=4) != first


def test_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positive, groups = sample(1)
    whole = metrics.bootstrap(scores, positive, groups, resamples=100)
    monkeypatch.setattr(metrics, "CHUNK", 7 * len(scores))
    assert metrics.bootstrap(scores, positive, groups, resamples=100) == whole


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = 0.7602  # of two unit normals one apart: Phi(1 / sqrt 2)
    draws = 200
    intervals = [
        metrics.bootstrap(*sample(seed, patients=120), resamples=200, seed=seed) for seed in range(draws)
    ]
    covered = sum(found.low <= truth <= found.high for found in intervals)
    assert 0.90 <= covered / draws <= 0.99


def test_copies_of_a_patient_add_no_certainty() -> None:
    scores, positive, groups = sample(2, copies=4)
    single = metrics.bootstrap(*sample(2), resamples=500)
    by_group = metrics.bootstrap(scores, positive, groups, resamples=500)
    by_image = metrics.bootstrap(scores, positive, np.arange(len(scores)), resamples=500)
    assert (by_group.low, by_group.high) == pytest.approx((single.low, single.high), abs=1e-12)
    width, too_narrow = by_group.high - by_group.low, by_image.high - by_image.low
    assert width / too_narrow == pytest.approx(2, rel=0.15)  # four copies: the square root of 4


def test_paired_difference_is_narrower_than_the_two_intervals() -> None:
    scores, positive, groups = sample(3, patients=200)
    rng = np.random.default_rng(0)
    worse = scores + 0.3 * rng.normal(size=len(scores))
    found = metrics.bootstrap_difference(scores, worse, positive, groups, resamples=500)
    single = metrics.bootstrap(scores, positive, groups, resamples=500)
    assert found.value == pytest.approx(metrics.auroc(scores, positive) - metrics.auroc(worse, positive))
    assert found.high - found.low < 0.7 * (single.high - single.low)
    same = metrics.bootstrap_difference(scores, scores, positive, groups, resamples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "positive", "says"),
    [([0.1, np.nan], [True, False], "1 of 2 scores"), ([0.1], [True, False], "equal"), ([], [], "non-empty")],
)
def test_bad_input_is_said(scores: list[float], positive: list[bool], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        metrics.auroc(scores, positive)
