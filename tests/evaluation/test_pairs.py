"""Two encoders on the same patients: paired, over patients, the mean over labels."""

import numpy as np
import pytest

from sscxr.evaluation import metrics, pairs
from sscxr.evaluation.pairs import Scored


def made(images: int, seed: int, *, better: float, per_patient: int = 1) -> Scored:
    """Scores that tell the classes apart, the first encoder's by `better` more."""
    rng = np.random.default_rng(seed)
    positive = rng.random(images) < 0.5
    noise = rng.normal(size=images)
    first, second = (gain * positive + noise for gain in (0.5 + better, 0.5))
    return Scored(positive, np.arange(images) // per_patient, first, second)


def test_one_label_is_the_paired_bootstrap_of_the_metrics() -> None:
    one = made(80, 0, better=0.5, per_patient=2)
    found = pairs.compare([one], resamples=200, seed=3)
    assert found is not None
    options = {"resamples": 200, "seed": 3}
    expected = metrics.bootstrap(one.first, one.positive, one.groups, baseline=one.second, **options)
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert found.first == metrics.bootstrap(one.first, one.positive, one.groups, **options)
    assert (found.tasks, found.images, found.patients) == (1, 80, 40)


def test_the_mean_is_over_labels_and_patients_are_drawn_once_for_all() -> None:
    one, other = made(60, 0, better=0.4), made(60, 1, better=0.0)
    both = pairs.compare([one, other], resamples=100)
    alike = pairs.compare([one, one], resamples=100)
    alone = pairs.compare([one], resamples=100)
    assert both is not None
    assert alike is not None
    assert alone is not None
    values = [metrics.auroc(each.first, each.positive) for each in (one, other)]
    assert both.first.value == pytest.approx(np.mean(values))
    assert (alike.gap.low, alike.gap.high) == pytest.approx((alone.gap.low, alone.gap.high))


def test_an_encoder_equals_itself_and_rare_labels_are_left_out() -> None:
    one = made(60, 0, better=0.0)
    same = pairs.compare([one], resamples=50)
    assert same is not None
    assert (same.gap.value, same.gap.low, same.gap.high) == (0.0, 0.0, 0.0)
    rare = Scored(np.arange(60) < 4, np.arange(60), one.first, one.second)
    assert pairs.compare([rare], min_cases=5) is None
    assert pairs.compare([rare, one], resamples=50) == same
