"""The ServerApp from run config to released encoder, with the real ClientApp."""

import logging
from pathlib import Path

import federation as fed
import pytest
import safetensors.torch
from flwr.supercore.exit.exit_handler import trigger_exit_handlers

from client import app as client
from server import app as server
from server.mail import RunStopped
from server.rounds import Listener
from sim.engine import run_inline
from sscxr import config as configs
from sscxr.config import ConfigError
from sscxr.runs import STATUS, Status, read_status


def run(out: Path, sites: list[Path], *overrides: str, **settings: object) -> None:
    asked = [*fed.SMALL, "federation.rounds=1", *overrides]
    text = " ".join(asked)
    if sites:
        fed.approve(configs.load("smoke", asked), *sites)
    run_inline(
        server.app, client.app, sites, {"config": "smoke", "overrides": text, "out": str(out), **settings}
    )


def test_a_run_ends_in_a_released_encoder_and_a_second_resume_does_nothing(tmp_path: Path) -> None:
    sites, out = fed.make_sites(tmp_path / "sites", ["anna", "bona"], images=10), tmp_path / "out"
    run(out, sites, resume=str(out))
    released = safetensors.torch.load_file(out / "encoder" / "model.safetensors")
    kept = safetensors.torch.load_file(out / "checkpoints" / "round-00001" / "encoder.safetensors")
    assert kept.keys() <= released.keys()
    assert all((released[name] == kept[name]).all() for name in kept)
    before = {file: file.stat().st_mtime_ns for file in (out / "checkpoints").rglob("*.*")}
    run(out, sites, resume=str(out))
    assert {file: file.stat().st_mtime_ns for file in (out / "checkpoints").rglob("*.*")} == before


def test_a_simulation_is_left_its_release(tmp_path: Path) -> None:
    sites, out = fed.make_sites(tmp_path / "sites", ["anna"], images=10), tmp_path / "out"
    run(out, sites, releases=False)
    assert read_status(out).state == "finished"
    (out / STATUS).unlink()  # as of one killed before it was written
    run(out, sites, releases=False, resume=str(out))
    assert read_status(out).state == "finished"
    assert not (out / "encoder").exists()


def test_a_run_that_stops_says_why_in_one_line_and_keeps_its_folder(tmp_path: Path) -> None:
    sites, out = fed.make_sites(tmp_path / "sites", ["anna"], images=10), tmp_path / "out"
    with pytest.raises(RunStopped, match="bona") as error:
        run(out, sites, "federation.sites=[anna,bona]", "federation.quorum=1")
    assert "\n" not in str(error.value)
    assert (out / "config.yaml").exists()
    assert not (out / "encoder").exists()


@pytest.mark.parametrize("override", ["federation.server.name=adam", "pretrain.lrr=1", "gmml.blocks=[9]"])
def test_a_mistake_in_the_settings_leaves_no_folder_behind(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        run(tmp_path / "out", [], override)
    assert not (tmp_path / "out").exists(), "it would be taken for a run with other settings"


@pytest.mark.parametrize("way", ["handler", "exit"])
def test_a_run_that_flower_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Flower's handlers run first, and may not live to raise SystemExit in the rounds."""
    sites, out = fed.make_sites(tmp_path / "sites", ["anna"], images=10), tmp_path / "out"

    def ended(record: object) -> None:
        if way == "handler":
            trigger_exit_handlers(run_before_force_exit=True)
            found.append(read_status(out))
        raise SystemExit(0)

    found: list[Status] = []
    monkeypatch.setattr(server.Hooks, "listener", Listener(committed=ended))
    with pytest.raises(SystemExit):
        run(out, sites, "federation.rounds=2")
    for status in [*found, read_status(out)]:
        assert (status.state, status.round) == ("stopped", 1)
        assert "flwr stop" in status.reason


def test_the_log_has_a_line_for_each_round_and_for_each_site_that_is_not_folded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = fed.make_sites(tmp_path / "sites", ["anna"], images=10)
    caplog.set_level(logging.INFO, "sscxr.server")
    run(tmp_path / "out", sites, "federation.sites=[anna,bona]", "federation.quorum=0.5")
    lines = [record.getMessage() for record in caplog.records if record.name == "sscxr.server"]
    assert any(line.startswith("round 1 of 1: 1 of 2 sites, loss ") for line in lines)
    assert "round 1: bona absent: not connected" in lines
