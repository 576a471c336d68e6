"""Models on caches: which images count, what is said of the rest, and two models on the same images."""

import json
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache
from tuned import make_model

from sscxr import config as configs
from sscxr.data.cache.cache import Cache, CacheError
from sscxr.errors import SscxrError
from sscxr.evaluation import classification
from sscxr.finetuning import finetuned, judge
from sscxr.models import inference
from sscxr.models.inference import Input

COUNT = 40


def images(count: int = COUNT, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two images a patient, two sources, the last four lateral; covid19 is known of one source, in one class."""
    number = np.arange(COUNT)
    index = {
        "group": [f"g{one // 2}" for one in number],
        "source": np.where(number < 20, "clinic", "ward"),
        "view": np.where(number < COUNT - 4, "PA", "L"),
        "split": number // 2 / 20,
        "label:pneumonia": number % 3 == 0,
        "label:covid19": np.where(number < 20, 1.0, np.nan),
    }
    index["label:pneumonia"] = index["label:pneumonia"].astype(float)
    return make_cache(tmp_path_factory.mktemp("cache") / "cache", images(), index)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


def test_figures_are_those_of_the_models_probabilities(cache: Cache, model: Path) -> None:
    judged = judge.evaluate(model, cache.folder)
    rows = cache.rows()
    opened, spec = finetuned.load(model)
    said = inference.probabilities(opened, cache.images, rows, wants=Input(spec.img_size, 0.5, 0.25))
    truth = cache.label("pneumonia")[rows][:, None]
    index = cache.index.iloc[rows]
    expected = classification.evaluate(said, truth, index, ["pneumonia"], resamples=50)
    assert {name: judged.figures[name] for name in expected} == expected
    assert judged.figures["n"] == COUNT - 4
    assert judged.figures["task"] == "classify"
    assert judged.notes == []
    json.dumps(judged.figures, allow_nan=False)


def test_sources_and_patients_set_aside(cache: Cache, model: Path) -> None:
    found = judge.evaluate(model, cache.folder, sources=["ward"]).figures
    assert (found["n"], set(found["by"]["source"])) == (16, {"ward"})
    assert judge.evaluate(model, cache.folder, held_out=True).figures["n"] == 8  # a fifth of the patients
    with pytest.raises(SscxrError, match="no source 'war'; its sources: clinic, ward"):
        judge.evaluate(model, cache.folder, sources=["war"])


def test_patients_it_was_trained_on_are_left_out(cache: Cache, tmp_path: Path) -> None:
    listed = "group,part\ng0,train\ng1,val\nelsewhere,train\n"
    model = make_model(tmp_path / "model", **{finetuned.TRAINED_ON: listed})
    judged = judge.evaluate(model, cache.folder)
    assert judged.figures["n"] == COUNT - 4 - 4
    assert judged.notes == ["left out: 4 images of 2 patients that it was trained on"]
    everybody = "group,part\n" + "".join(f"g{number},train\n" for number in range(20))
    model = make_model(tmp_path / "other", **{finetuned.TRAINED_ON: everybody})
    with pytest.raises(SscxrError, match="all of their patients were trained on"):
        judge.evaluate(model, cache.folder)


def test_a_model_that_does_not_say_whom_it_learned_from(cache: Cache, tmp_path: Path) -> None:
    """As the server of a federation writes it."""
    model = make_model(tmp_path / "model")
    (model / finetuned.TRAINED_ON).unlink()
    judged = judge.evaluate(model, cache.folder)
    assert judged.figures["n"] == COUNT - 4
    assert len(judged.notes) == 1
    assert "give --held-out" in judged.notes[0]
    assert judge.evaluate(model, cache.folder, held_out=True).notes == []


def test_settings_of_an_earlier_sscxr_are_enough(cache: Cache, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", **{finetuned.SETTINGS: "probe:\n  resamples: 50\n"})
    assert judge.evaluate(model, cache.folder).figures["n"] > 0


@pytest.mark.slow
def test_poor_labels_are_noted(cache: Cache, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", labels=["pneumonia", "covid19", "oedema"])
    judged = judge.evaluate(model, cache.folder)
    assert judged.figures["auroc:covid19"] == {"value": None, "low": None, "high": None, "n": 20}
    assert judged.figures["known"] == {"pneumonia": COUNT - 4, "covid19": 20, "oedema": 0}
    assert judged.figures["auroc"]["value"] == judged.figures["auroc:pneumonia"]["value"]
    assert "no label 'oedema'" in judged.notes[0]
    assert "'covid19': 20 images have it and 0 do not" in judged.notes[1]


def test_labels_that_are_not_there_or_known_of_nobody(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no label 'oedema'; its labels: pneumonia, covid19"):
        judge.evaluate(make_model(tmp_path / "one", labels=["oedema"]), cache.folder)
    model = make_model(tmp_path / "two", labels=["covid19"])
    with pytest.raises(SscxrError, match="covid19 for none of 16 images"):
        judge.evaluate(model, cache.folder, sources=["ward"])


def test_two_models_are_compared_where_both_can_be(cache: Cache, model: Path, tmp_path: Path) -> None:
    listed = "group,part\ng0,train\n"
    other = make_model(
        tmp_path / "other", labels=["covid19", "pneumonia"], seed=1, **{finetuned.TRAINED_ON: listed}
    )
    judged = judge.compare(model, other, cache.folder)
    found = judged.figures
    assert (found["n"], found["labels"]) == (COUNT - 4 - 2, ["pneumonia"])
    assert found["auroc"]["value"] == pytest.approx(
        found["a"]["auroc"]["value"] - found["b"]["auroc"]["value"]
    )
    json.dumps(found, allow_nan=False)
    assert judge.compare(model, model, cache.folder).figures["auroc"]["value"] == 0
    with pytest.raises(SscxrError, match="no label in common"):
        judge.compare(model, make_model(tmp_path / "third", labels=["covid19"]), cache.folder)


def test_two_models_are_compared_without_laterals_unless_both_are_made_for_them(
    cache: Cache, model: Path, tmp_path: Path
) -> None:
    settings = configs.load("default", ["data.laterals=true", "run.threads=1", "probe.resamples=50"])
    other = make_model(tmp_path / "other", **{finetuned.SETTINGS: configs.dumps(settings)})
    for pair in ((model, other), (other, model)):
        assert judge.compare(*pair, cache.folder).figures["n"] == COUNT - 4
    assert judge.compare(other, other, cache.folder).figures["n"] == COUNT


@pytest.mark.slow
def test_two_models_are_compared_on_patients_set_aside_from_both(
    cache: Cache, model: Path, tmp_path: Path
) -> None:
    """The other was trained on more patients, and does not say whom."""
    settings = configs.load("default", ["data.test_share=0.1", "run.threads=1", "probe.resamples=50"])
    other = make_model(tmp_path / "other", seed=1, **{finetuned.SETTINGS: configs.dumps(settings)})
    (other / finetuned.TRAINED_ON).unlink()
    for pair in ((model, other), (other, model)):
        assert judge.compare(*pair, cache.folder, held_out=True).figures["n"] == 4


@pytest.mark.slow
def test_segmenters(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "cache"
    make_cache(folder, images(8), {"has_mask": [1, 1, 1, 1, 1, 1, 0, 0], "group": [*"aabbccdd"]})
    masks = np.zeros((8, 32, 32), dtype=np.uint8)
    masks[:6, 4:20, 6:14] = 255
    np.save(folder / "masks.npy", masks)
    first, second = (
        make_model(tmp_path / str(seed), task="segment", labels=["lung"], seed=seed) for seed in (0, 1)
    )
    found = judge.evaluate(first, folder).figures
    assert (found["n"], found["patients"], found["task"]) == (6, 3, "segment")
    assert 0 <= found["dice"]["low"] <= found["dice"]["value"] <= found["dice"]["high"] <= 1
    assert found["hd95_mm"]["value"] is None or found["hd95_mm"]["n"] == 6
    json.dumps(found, allow_nan=False)
    both = judge.compare(first, second, folder).figures
    assert both["dice"]["value"] == pytest.approx(both["a"]["dice"]["value"] - both["b"]["dice"]["value"])
    with pytest.raises(SscxrError, match="cannot be compared"):
        judge.compare(first, model, folder)
