"""`sscxr join`: what it tells a site is what the run has."""

from pathlib import Path

import pytest
import typer
from omegaconf import OmegaConf
from typer.testing import CliRunner

from server import commands
from sscxr import config as configs
from sscxr.config import ConfigError
from sscxr.federation import approval, wire
from sscxr.federation.join import Join, JoinError

GIVEN = ["--name", "lungs", "--superlink", "fl.example.org:8443"]


def run(folder: Path, *arguments: str) -> Join:
    app = typer.Typer()
    app.command("other")(lambda: None)  # with one command alone typer leaves out its name
    commands.add(app)
    out = folder / "join.yaml"
    result = CliRunner().invoke(app, ["join", *arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Join.read(out)


def test_payload_of_the_published_recipe(tmp_path: Path) -> None:
    """ViT-S at 224 px: 21.5 million parameters and two moments of each, of two bytes up and four down."""
    join = run(tmp_path, "sscxr", *GIVEN)
    assert join.payload.up_mb == pytest.approx(129, abs=0.5)
    assert join.payload.down_mb == pytest.approx(258, abs=0.5)
    assert join.deadline_s == 7200
    assert 20 < join.memory_gb < 80
    assert (join.host, join.port) == ("fl.example.org", 8443)


def test_overrides_are_the_run_s(tmp_path: Path) -> None:
    given = ["federation.uplink=fp32", "encoder.depth=1", "gmml.blocks=[1]", "federation.deadline=90"]
    join = run(tmp_path, "smoke", *given, *GIVEN)
    config = configs.load("smoke", given)
    assert join.payload.up_mb == join.payload.down_mb
    assert join.deadline_s == 90
    assert join.fingerprint == wire.fingerprint(configs.recipe_hash(config))
    told = OmegaConf.to_container(OmegaConf.create(join.recipe))
    assert told == approval.terms(config)
    assert approval.digest(approval.settings_of(join.recipe)) == approval.digest(config)
    assert {"run", "encoder", "pretrain", "gmml"} <= told.keys()
    assert join.versions["flwr"].startswith("1.41")


@pytest.mark.parametrize("missing", ["--name", "--superlink"])
def test_an_option_that_is_wanted_is_named(missing: str) -> None:
    app = typer.Typer()
    app.command("other")(lambda: None)
    commands.add(app)
    place = GIVEN.index(missing)
    result = CliRunner().invoke(app, ["join", "smoke", *GIVEN[:place], *GIVEN[place + 2 :]])
    assert result.exit_code == 2
    assert missing in result.output


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="not host:port"):
        run(tmp_path, "smoke", "--name", "lungs", "--superlink", "https://fl.example.org")
    with pytest.raises(ConfigError, match=r"did you mean 'pretrain\.lr'"):
        run(tmp_path, "smoke", "pretrain.lrr=1", *GIVEN)
    with pytest.raises(FileNotFoundError):
        run(tmp_path, "smoke", *GIVEN, "--ca", str(tmp_path / "absent.crt"))
