"""Figures equal sklearn's and torchmetrics'; the bootstrap over patients is reproducible and as wide as it says."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import (
    binary_calibration_error,
    binary_sensitivity_at_specificity,
)

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
    assert metrics.area(metrics.steps(scores, positive, weights)) == pytest.approx(expected, abs=1e-12)


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
    found = metrics.bootstrap(scores, positive, groups, baseline=worse, resamples=500)
    single = metrics.bootstrap(scores, positive, groups, resamples=500)
    assert found.value == pytest.approx(metrics.auroc(scores, positive) - metrics.auroc(worse, positive))
    assert found.high - found.low < 0.7 * (single.high - single.low)
    same = metrics.bootstrap(scores, positive, groups, baseline=scores, resamples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("scores", "positive", "says"),
    [([0.1, np.nan], [True, False], "1 of 2 scores"), ([0.1], [True, False], "equal"), ([], [], "non-empty")],
)
def test_bad_input_is_said(scores: list[float], positive: list[bool], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        metrics.auroc(scores, positive)


def tied(seed: int, levels: int, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with ties that tell something of the class; weights of five resamples."""
    rng = np.random.default_rng(seed)
    positive = rng.random(count) < 0.3
    probabilities = np.clip(rng.integers(0, levels + 1, count) / levels * 0.7 + 0.3 * positive, 0, 1)
    return probabilities, positive, rng.integers(0, 4, (5, count))


def repeated(seed: int, levels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same resamples written out: each case as often as its weight says."""
    probabilities, positive, weights = tied(seed, levels)
    return [(np.repeat(probabilities, row), np.repeat(positive, row)) for row in weights]


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_average_precision_is_sklearns(levels: int) -> None:
    found = metrics.average_precision(metrics.steps(*tied(0, levels)))
    expected = [average_precision_score(truth, scores) for scores, truth in repeated(0, levels)]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_accuracy_is_the_share_called_rightly(levels: int) -> None:
    found = metrics.accuracy(metrics.steps(*tied(1, levels)))
    expected = [((scores >= 0.5) == truth).mean() for scores, truth in repeated(1, levels)]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("specificity", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_sensitivity_at_a_specificity_is_torchmetrics(levels: int, specificity: float) -> None:
    sensitivity, achieved, threshold = metrics.operating_point(metrics.steps(*tied(2, levels)), specificity)
    assert (achieved >= specificity).all()
    for number, (scores, truth) in enumerate(repeated(2, levels)):
        expected, _ = binary_sensitivity_at_specificity(
            torch.tensor(scores), torch.tensor(truth).long(), min_specificity=specificity
        )
        assert sensitivity[number] == pytest.approx(float(expected), abs=1e-6)
        called = scores >= threshold[number]
        assert called[truth].mean() == pytest.approx(sensitivity[number], abs=1e-12)
        assert (~called[~truth]).mean() == pytest.approx(achieved[number], abs=1e-12)


def test_no_threshold_may_reach_a_specificity() -> None:
    point = metrics.operating_point(metrics.steps([0.2, 0.9, 0.9], [True, False, True], np.ones((1, 3))), 1.0)
    assert [float(one[0]) for one in point] == [0.0, 1.0, np.inf]


@pytest.mark.parametrize("levels", [7, 1000])
def test_calibration_error_is_torchmetrics(levels: int) -> None:
    found = metrics.calibration_error(metrics.steps(*tied(3, levels)))
    for number, (scores, truth) in enumerate(repeated(3, levels)):
        # torchmetrics gives a probability of exactly 1 a bin of its own.
        inside = np.minimum(scores, 1 - 1e-6)
        expected = binary_calibration_error(torch.tensor(inside), torch.tensor(truth).long(), n_bins=15)
        assert found[number] == pytest.approx(float(expected), abs=1e-5)


def test_calibration_error_of_known_samples() -> None:
    def error(probabilities: list[float], positive: list[bool]) -> float:
        return float(metrics.calibration_error(metrics.steps(probabilities, positive, np.ones((1, 4))))[0])

    assert error([0.0, 0.0, 1.0, 1.0], [False, False, True, True]) == 0
    assert error([1.0, 1.0, 0.0, 0.0], [False, False, True, True]) == 1
    assert error([0.5] * 4, [False, False, True, True]) == 0
    assert error([0.9] * 4, [False, False, True, True]) == pytest.approx(0.4)


def test_reliability_adds_up_to_the_calibration_error() -> None:
    probabilities, positive, _ = tied(4, 1000)
    bins = metrics.reliability(probabilities, positive)
    assert (len(bins), sum(one["n"] for one in bins)) == (15, len(positive))
    filled = [one for one in bins if one["n"]]
    assert all(one["low"] <= one["mean"] <= one["high"] for one in filled)
    assert all(np.isnan([one["mean"], one["observed"]]).all() for one in bins if not one["n"])
    error = sum(one["n"] * abs(one["mean"] - one["observed"]) for one in filled) / len(positive)
    sample = metrics.steps(probabilities, positive, np.ones((1, len(positive))))
    assert metrics.calibration_error(sample)[0] == pytest.approx(error)


def test_an_absent_class_has_no_figure_but_those_of_all_cases() -> None:
    sample = metrics.steps([0.2, 0.7, 0.9], [True, True, True], np.ones((1, 3)))
    assert np.isnan(metrics.area(sample)).all()
    assert np.isnan(metrics.average_precision(sample)).all()
    assert np.isnan(metrics.operating_point(sample, 0.9)).all()
    assert metrics.accuracy(sample)[0] == pytest.approx(2 / 3)
    assert metrics.calibration_error(sample)[0] == pytest.approx((0.8 + 0.3 + 0.1) / 3)
    nobody = metrics.steps([0.2, 0.7], [True, False], np.zeros((1, 2)))
    assert np.isnan([metrics.accuracy(nobody), metrics.calibration_error(nobody)]).all()


def test_p_value_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    # The mean of a normal sample, resampled: the test of a mean of 0.
    samples = rng.normal(size=(400, 100))
    weights = rng.multinomial(100, np.full(100, 0.01), size=500) / 100
    found = np.array([metrics.p_value(weights @ one) for one in samples])
    assert 0.02 <= (found < 0.05).mean() <= 0.09
    assert 0.4 <= (found < 0.5).mean() <= 0.6
    assert metrics.p_value(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert metrics.p_value(np.zeros(999)) == 1
    assert np.isnan(metrics.p_value(np.array([np.nan])))
