"""Each benchmark runs, at a size that tells nothing of speed, and its figures are of the right kind."""

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from sscxr import config as configs
from sscxr.data.pixels import dicom

BENCH = Path(__file__).resolve().parents[2] / "bench"
SMALL = ("encoder.depth=1", "gmml.blocks=[1]", "run.threads=1", "run.device=cpu", "pretrain.batch_size=8")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a script of `bench/` as a module."""
    monkeypatch.syspath_prepend(BENCH)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_step(bench: Any) -> None:
    found = bench("step").measure(configs.load("smoke", SMALL), None, seconds=0.01, repetitions=1)
    assert set(found["views_per_s"]) == {"bare", "full", "pipeline"}
    assert all(rate > 0 for rate in found["views_per_s"].values())
    assert found["gflop_per_image"] > 0


@pytest.mark.slow
def test_views(bench: Any) -> None:
    found = bench("views").measure(configs.load("smoke", SMALL), 1, originals=0)
    assert found["times as fast"]["cpu_min"] > 0
    assert found["views_per_s"]["ours"] > 0


@pytest.mark.slow
def test_ingest(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = bench("ingest")
    monkeypatch.setattr(ingest, "SIDE", 256)
    found = ingest.measure(files=2, repetitions=1, workers=1)
    syntaxes = (ExplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless)
    taken = [dicom._plugin(syntax, 12, bytes(24)) for syntax in syntaxes]
    assert [plugin for _, plugin in ingest.SYNTAXES.values()] == taken
    for syntax in ingest.SYNTAXES:
        assert 0 < found[syntax]["cpu: decoder / worker"] < 1.5
        assert found[syntax]["share of pydicom x cores"] > 0
        assert found[syntax]["decoder_pool_files_per_s"] > 0
    assert found["peak MB of a worker"]["2 files"] > 10


def test_a_cache_is_opened_with_its_columns_and_without(bench: Any, tmp_path: Path) -> None:
    from sscxr.data.cache import columns
    from sscxr.data.cache.cache import read_index

    folder = bench("noise").make(tmp_path / "cache", 400, 64, sparse=True)
    parsed = bench("scale").opened(folder)
    columns.write(folder, read_index(folder))
    assert (parsed["columns"], bench("scale").opened(folder)["columns"]) == (False, True)


@pytest.mark.slow
def test_a_simulation_of_many_sites(bench: Any) -> None:
    found = bench("scale").simulated(3)
    assert found["sites"] == 3
    assert 0 < found["training_s"] < found["cpu_s"]


def of_rounds(**given: Any) -> Namespace:
    return Namespace(config="smoke", overrides=[*SMALL, "data.cache_size=80"], **given)


@pytest.mark.slow
def test_parts_of_a_round_are_within_it(bench: Any, tmp_path: Path) -> None:
    from sscxr.stages.pretrain import SiteTraining

    rounds, real = bench("rounds"), SiteTraining.train_round
    run = rounds.in_process("inline", tmp_path, of_rounds(sites=2, rounds=1, steps=4))
    first, second = run["seen"]
    spent = {part: second.get(part, 0) - first.get(part, 0) for part in rounds.PARTS}
    assert all(seconds > 0 for part, seconds in spent.items() if part != "report"), spent
    # One thread cannot work for longer than the clock runs, so no part was counted twice.
    assert sum(spent.values()) <= second["clock"] - first["clock"]
    assert SiteTraining.train_round is real
