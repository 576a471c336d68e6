"""Sites alone beside a pretraining: trained as the run trains them, measured by whose patients, and reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from caches import make_cache
from simulations import arguments, typed

from sim import alone
from sim.choice import Choice
from sscxr import config as configs
from sscxr.data.cache.cache import Cache
from sscxr.runs import EVERYBODY, OWN

COUNT = 80
MEASURED = ("probe.min_cases=4", "probe.resamples=50")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two hospitals of noise, whose images with the finding are brighter."""
    rng = np.random.default_rng(0)
    ill = rng.random(COUNT) < 0.5
    images = np.clip(rng.normal(100, 40, (COUNT, 40, 40)) + 40 * ill[:, None, None], 0, 255).astype(np.uint8)
    index = {
        "source": np.where(np.arange(COUNT) % 4 == 0, "a", "b"),
        "split": rng.permutation((np.arange(COUNT) + 0.5) / COUNT),
        "label:opacity": ill.astype(float),
    }
    return make_cache(tmp_path_factory.mktemp("data") / "cache", images, index)


def test_a_federation_of_one_site_is_that_site_alone(cache: Cache, tmp_path: Path) -> None:
    """And its probes with few labels stand beside those of another encoder, here the one that comes with sscxr."""
    out = tmp_path / "out"
    exact = ("federation.uplink=fp32", "federation.moments=local", "probe.cohorts={both: [a, b]}")
    few = ("probe.few_labels=5", "probe.beside=[cxr-tiny-64]")
    more = ("--clients", "1", "--alone", "all", "sim.partition=iid", *exact, *MEASURED, *few)
    assert typed(arguments(out, *more, data=cache.folder)) == 0
    encoder = safetensors.torch.load_file(out / "encoder" / "model.safetensors")
    (file,) = (out / "alone").glob("*.safetensors")
    own = safetensors.torch.load_file(file)
    for name, tensor in encoder.items():
        if not name.endswith(
            "qkv.bias"
        ):  # that of the keys has no gradient but rounding, which AdamW enlarges
            assert torch.allclose(own["shared." + name], tensor, atol=2e-4), name
    scores = json.loads((out / "alone.json").read_text())
    assert [(score["where"], score["figure"]) for score in scores] == [
        (where, kind) for where in (OWN, EVERYBODY) for kind in ("linear", "k-NN")
    ]
    for score in scores:
        assert abs(score["gap"]["value"]) < 0.02
        assert score["gap"]["low"] <= score["gap"]["value"] <= score["gap"]["high"]
    page = (out / "report.html").read_text()
    assert "by linear probes on" in page
    rows = json.loads((out / "few.json").read_text())
    assert [row["encoder"] for row in rows] == ["this encoder", "untrained", "cxr-tiny-64"]
    assert [row["gain"] is None for row in rows] == [False, True, False]
    for row in rows:
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
        assert f"{row['auroc']['value']:.3f} ({row['auroc']['low']:.3f}" in page


def test_which_sites_are_trained_alone(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load("smoke", MEASURED)
    config.probe.cohorts = {"both": ["a", "b"]}
    sizes = {"h1": 5, "h2": 9, "h3": 7, "h4": 30, "h5": 8}

    class OfSize:
        def __init__(self, name: str) -> None:
            self.own_rows = lambda config: (range(sizes[name]), range(0))

    monkeypatch.setattr(alone, "_site", lambda out, name: OfSize(name))

    def chosen(which: str, *names: str) -> list[str]:
        return alone.chosen(which, config, cache, tmp_path, names or list(sizes))[0]

    assert chosen("all") == ["h4", "h2", "h5", "h3", "h1"]
    assert chosen("some") == chosen("auto") == ["h4", "h5", "h1"]
    assert chosen("some", "h1", "h4") == ["h4", "h1"]
    assert chosen("none") == []
    config.federation.rounds = 99_999
    config.federation.local_epochs = 100.0
    assert chosen("auto") == []
    config.probe.min_cases = COUNT
    assert alone.chosen("all", config, cache, tmp_path, list(sizes)) == (
        [],
        "no site is trained alone: no label has enough cases to probe",
    )


def test_a_site_that_has_been_trained_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def trained(out: Path, name: str, on_round: object) -> tuple[float, str]:
        asked.append(name)
        return 0.0, ""

    monkeypatch.setattr(alone, "_trained", trained)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "h1.csv").touch()
    alone.train(tmp_path, configs.load("smoke"), ["h1", "h2"], Choice("inline", 1))
    assert asked == ["h2"]
