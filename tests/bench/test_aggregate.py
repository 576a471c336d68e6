"""The server's memory does not grow with the number of sites."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]


def folded(tmp_path: Path, sites: int, codec: str = "fp16") -> dict[str, Any]:
    file = tmp_path / f"{sites}.json"
    command = [
        sys.executable,
        "bench/aggregate.py",
        "--sites",
        str(sites),
        "--codec",
        codec,
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


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_every_codec_goes_through_the_fold(tmp_path: Path, codec: str) -> None:
    assert folded(tmp_path, 2, codec)["codec"] == codec


@pytest.mark.slow
def test_peak_memory_is_that_of_a_few_models_at_any_number_of_sites(tmp_path: Path) -> None:
    few, many = folded(tmp_path, 4), folded(tmp_path, 32)
    model_mb = few["parameters"] * 4 / 1e6
    # 28 more updates of fp32 would be 28 models; one model's worth of slack is the allocator's.
    assert many["peak_mb"] - few["peak_mb"] < model_mb
    assert many["peak_mb"] - many["start_mb"] < 10 * model_mb
