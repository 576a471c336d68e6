"""Sites in a pool of processes: the bytes of sites in turn, also when processes are killed in a round."""

import multiprocessing
from pathlib import Path

import federation as fed
import pytest
import torch
from replies import NAMES, table

from client import app as client
from sim.engine import IMPORTS, InlineGrid, PoolGrid
from sim.pool import Pool

pytestmark = pytest.mark.slow


def test_killed_processes_cost_an_attempt_and_nothing_else(tmp_path: Path) -> None:
    config = fed.settings("federation.rounds=2", "federation.retries=1", "federation.quorum=1")
    plain, killed = (fed.make_sites(tmp_path / name, NAMES[:2], images=10) for name in ("plain", "killed"))
    expected = fed.federation(InlineGrid(client.app, plain), config, tmp_path / "a").run()
    seen: list[str] = []

    def heard(site: str, *_: object) -> None:
        if not seen:
            for process in multiprocessing.active_children():
                process.kill()
        seen.append(site)

    with Pool(2, IMPORTS, 1) as pool:
        pool.heard = heard
        found = fed.federation(PoolGrid(pool, killed), config, tmp_path / "b").run()
    assert not multiprocessing.active_children()
    rows = [(row["round"], row["outcome"]) for row in table(tmp_path / "b")]
    assert rows[:1] == [("1", "failed")] or rows[1:2] == [("1", "failed")]
    assert rows[2:] == [("1", "folded"), ("1", "folded"), ("2", "folded"), ("2", "folded")]
    assert all(torch.equal(found.encoder[name], expected.encoder[name]) for name in expected.encoder)
