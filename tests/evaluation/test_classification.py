"""Figures of classifiers: unknowns left out, means over labels, subgroups with counts, pairs on the same images."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from sscxr.evaluation import classification

COUNT = 240
QUICK: dict[str, Any] = {"resamples": 100}


def sample(seed: int = 0, labels: int = 1) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Probabilities that tell something, truth, and an index of two sources, two images a patient."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((COUNT, labels)) < 0.4).astype(np.float32)
    probabilities = np.clip(0.4 * truth + 0.6 * rng.random((COUNT, labels)), 0, 1)
    index = pd.DataFrame(
        {
            "group": [f"g{number // 2}" for number in range(COUNT)],
            "source": np.where(np.arange(COUNT) < 80, "clinic", "ward"),
            "view": np.where(np.arange(COUNT) % 3, "PA", ""),
            "sex": "F",
            "age_band": "",
        }
    )
    return probabilities, truth, index


def test_figures_are_sklearns_and_json_takes_them() -> None:
    probabilities, truth, index = sample()
    found = classification.evaluate(probabilities, truth, index, ["pneumonia"], **QUICK)
    json.dumps(found, allow_nan=False)
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(truth[:, 0], probabilities[:, 0]))
    assert found["aupr"]["value"] == pytest.approx(average_precision_score(truth[:, 0], probabilities[:, 0]))
    for name in classification.FIGURES:
        figure = found[name]
        assert figure["n"] == COUNT
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    threshold = found["threshold"]["pneumonia"]
    called = probabilities[:, 0] >= threshold
    assert found["sensitivity"]["value"] == pytest.approx(called[truth[:, 0] == 1].mean())
    assert found["specificity"]["value"] == pytest.approx((~called[truth[:, 0] == 0]).mean())
    assert found["specificity"]["value"] >= found["at_specificity"] == 0.9
    assert (found["n"], found["patients"]) == (COUNT, COUNT // 2)
    assert found["positives"] == {"pneumonia": int(truth.sum())}
    assert sum(one["n"] for one in found["reliability"]["pneumonia"]) == COUNT


def test_subgroups_are_those_images_alone() -> None:
    probabilities, truth, index = sample()
    found = classification.evaluate(probabilities, truth, index, ["pneumonia"], **QUICK)
    assert set(found["by"]) == {"source", "view", "sex", "age_band"}
    assert set(found["by"]["view"]) == {"PA", "unknown"}
    ward = index["source"] == "ward"
    expected = classification.figures(
        probabilities[ward], truth[ward], index["group"][ward], ["pneumonia"], **QUICK
    )
    assert found["by"]["source"]["ward"] == expected
    for parts in found["by"].values():
        assert sum(part["n"] for part in parts.values()) == COUNT


def test_unknown_labels_count_nowhere() -> None:
    probabilities, truth, index = sample()
    truth[::3] = np.nan
    known = np.isfinite(truth[:, 0])
    found = classification.evaluate(probabilities, truth, index, ["a"], **QUICK)
    alone = classification.evaluate(probabilities[known], truth[known], index[known], ["a"], **QUICK)
    assert found == alone
    assert found["n"] == found["auroc"]["n"] == known.sum()


def test_several_labels_have_their_mean() -> None:
    probabilities, truth, index = sample(labels=3)
    truth[:100, 1] = np.nan
    found = classification.figures(probabilities, truth, index["group"], ["a", "b", "c"], **QUICK)
    each = [found[f"auroc:{label}"] for label in "abc"]
    assert found["auroc"]["value"] == pytest.approx(np.mean([one["value"] for one in each]))
    assert [one["n"] for one in each] == [COUNT, COUNT - 100, COUNT]
    assert found["auroc"]["n"] == COUNT
    widths = [one["high"] - one["low"] for one in each]
    assert found["auroc"]["high"] - found["auroc"]["low"] < max(widths)


def test_a_label_of_one_class_has_no_figure_and_stays_out_of_the_mean() -> None:
    probabilities, truth, index = sample(labels=2)
    truth[:, 1] = 0
    found = classification.figures(probabilities, truth, index["group"], ["a", "b"], **QUICK)
    assert found["auroc:b"] == {"value": None, "low": None, "high": None, "n": COUNT}
    assert found["auroc"]["value"] == found["auroc:a"]["value"]
    assert found["accuracy:b"]["value"] is not None
    assert found["threshold"]["b"] is None
    assert found["positives"] == {"a": int(truth[:, 0].sum()), "b": 0}


def test_the_salt_of_the_groups_changes_nothing() -> None:
    probabilities, truth, index = sample()
    names = index["group"].map(lambda name: f"{hash((name, 3)):x}")
    first = classification.figures(probabilities, truth, index["group"], ["a"], **QUICK)
    assert classification.figures(probabilities, truth, names, ["a"], **QUICK) == first


def test_difference_is_paired() -> None:
    probabilities, truth, index = sample()
    noise = 0.05 * np.random.default_rng(1).normal(size=probabilities.shape)
    worse = np.clip(probabilities + noise, 0, 1)
    groups = index["group"]
    found = classification.difference(probabilities, worse, truth, groups, ["a"], **QUICK)
    first, second = (classification.figures(p, truth, groups, ["a"], **QUICK) for p in (probabilities, worse))
    for name in classification.FIGURES:
        assert found[name]["value"] == pytest.approx(first[name]["value"] - second[name]["value"])
    width = found["auroc"]["high"] - found["auroc"]["low"]
    assert width < 0.7 * (first["auroc"]["high"] - first["auroc"]["low"])
    guess = np.random.default_rng(2).random(probabilities.shape)
    assert classification.difference(probabilities, guess, truth, groups, ["a"], **QUICK)["auroc"]["p"] < 0.05
    same = classification.difference(probabilities, probabilities, truth, groups, ["a"], **QUICK)
    assert {same[name][end] for name in classification.FIGURES for end in ("value", "low", "high")} == {0}
    assert same["auroc"]["p"] == 1


def test_bad_arrays_are_said() -> None:
    probabilities, truth, index = sample()
    with pytest.raises(ValueError, match="without any known label"):
        classification.figures(probabilities, truth * np.nan, index["group"], ["a"])
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        classification.figures(probabilities, truth, index["group"], ["a", "b"])
    with pytest.raises(ValueError, match="other than 0, 1 and NaN"):
        classification.figures(probabilities, truth * 0.5, index["group"], ["a"])
