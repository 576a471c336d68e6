"""Two encoders on one cache: an encoder equals itself, and one that shows the finding beats one that does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import releases
import torch
from caches import make_cache
from typer.testing import CliRunner

from sscxr.commands import cli
from sscxr.data.cache.cache import Cache

COUNT = 240


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    rng = np.random.default_rng(0)
    ill = rng.random(COUNT) < 0.5
    images = np.clip(rng.normal(100, 40, (COUNT, 32, 32)) + 10 * ill[:, None, None], 0, 255).astype(np.uint8)
    index = {
        "split": (rng.permutation(COUNT) + 0.5) / COUNT,
        "label:opacity": ill.astype(float),
        "label:noise": (rng.random(COUNT) < 0.5).astype(float),
    }
    return make_cache(tmp_path_factory.mktemp("data") / "cache", images, index)


def compared(first: Path, second: Path, cache: Cache) -> dict[str, object]:
    ended = CliRunner().invoke(
        cli.app, ["compare", str(first), str(second), "--data", str(cache.folder), "--json"]
    )
    assert ended.exit_code == 0, ended.output
    return dict(json.loads(ended.stdout))


def test_encoders_are_compared_by_probes(cache: Cache, tmp_path: Path) -> None:
    seeing = releases.write(tmp_path / "a")
    blind = releases.encoder()
    with torch.no_grad():
        for parameter in blind.parameters():
            parameter.zero_()
    unseeing = releases.write(tmp_path / "b", blind)
    found = compared(seeing, unseeing, cache)
    assert (found["n"], found["patients"]) == (48, 48)
    rows = {(row["label"], row["probe"]): row for row in found["tasks"]}  # type: ignore[attr-defined]
    assert rows["opacity", "linear"]["b"]["value"] == 0.5
    assert rows["opacity", "linear"]["low"] > 0.2
    assert rows["noise", "linear"]["low"] < 0 < rows["noise", "linear"]["high"]
    mean = found["mean"]["linear"]  # type: ignore[index]
    assert mean["value"] == pytest.approx(
        np.mean([rows[name, "linear"]["value"] for name in ("opacity", "noise")])
    )
    same = compared(seeing, seeing, cache)["mean"]["linear"]  # type: ignore[index]
    assert (same["low"], same["value"], same["high"]) == (0.0, 0.0, 0.0)


def test_without_labels_there_is_one_line(tmp_path: Path) -> None:
    images = np.zeros((8, 32, 32), dtype=np.uint8)
    bare = make_cache(tmp_path / "cache", images, {"split": np.arange(8) / 8})
    encoder = releases.write(tmp_path / "a")
    ended = CliRunner().invoke(cli.app, ["compare", str(encoder), str(encoder), "--data", str(bare.folder)])
    assert "no label has 20 images with and without it" in str(ended.exception)
