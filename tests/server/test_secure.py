"""Rounds whose updates are masked: the sum is that of a run without masks, whoever drops out, or there is none."""

from pathlib import Path

import federation as fed
import pytest
import secure
import torch
from replies import table

from client import app as client
from sscxr import config as configs
from sscxr.config import Config


def plainly(config: Config) -> Config:
    """The same settings, but without masks."""
    made = configs.loads(configs.dumps(config))
    made.federation.secure = False
    return made


@pytest.mark.parametrize("weights", ["images", "equal"])
@pytest.mark.parametrize("overrides", [[], ["federation.uplink=fp32", "federation.moments=both"]])
def test_two_rounds_give_the_bytes_of_rounds_without_masks(
    tmp_path: Path, overrides: list[str], weights: str
) -> None:
    files = secure.sites(tmp_path / "sites")
    config = secure.settings(
        files,
        "federation.rounds=2",
        f"federation.weights={weights}",
        "federation.clip_updates=100",
        *overrides,
    )
    found = {}
    for name, one in (("masked", config), ("plain", plainly(config))):
        one.run.name = name  # each run has its own state at the sites
        found[name] = secure.federation(fed.Grid(client.app, files), one, tmp_path / name).run().encoder
    assert all(torch.equal(found["masked"][name], found["plain"][name]) for name in found["plain"])
    assert {row["outcome"] for row in table(tmp_path / "masked")} == {"folded"}
