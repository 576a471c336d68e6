"""The server's memory does not grow with the number of sites."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sscxr import config as configs

REPO = Path(__file__).resolve().parents[2]


def folded(tmp_path: Path, sites: int) -> dict[str, Any]:
    file = tmp_path / f"{sites}.json"
    command = [
        sys.executable,
        "bench/aggregate.py",
        "--sites",
        str(sites),
        "--codec",
        "fp16",
        "--json",
        str(file),
    ]
    subprocess.run(
        [*command, "encoder.depth=4", "gmml.blocks=[4]"],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
        capture_output=True,
    )
    [found] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_every_codec_goes_through_the_fold(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPO / "bench")
    config = configs.load("smoke", ["encoder.depth=1", "gmml.blocks=[1]"])
    found = importlib.import_module("aggregate").measure(2, codec, config, flower=False, threads=1)
    assert (found["codec"], found["sites"]) == (codec, 2)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_few_models_at_any_number_of_sites(tmp_path: Path) -> None:
    few, many = folded(tmp_path, 4), folded(tmp_path, 20)
    model_mb = few["parameters"] * 4 / 1e6
    # 16 more updates of fp32 would be 16 models; one model's worth of slack is the allocator's.
    assert many["peak_mb"] - few["peak_mb"] < model_mb
    assert many["peak_mb"] - many["start_mb"] < 10 * model_mb
