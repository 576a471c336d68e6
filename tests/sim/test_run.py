"""`python -m sim.run` as typed, in this process: to an encoder and a report; and what a second command may ask."""

import json
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache
from simulations import arguments, everything, typed

import sscxr
from sscxr.runs import read_sites, read_status

COUNT = 48


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 80, 80), dtype=np.uint8)
    index = {"split": (np.arange(COUNT) + 0.5) / COUNT}  # and no label: pretraining wants none
    return make_cache(tmp_path_factory.mktemp("data") / "cache", images, index).folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of two sites and one round."""
    out = tmp_path_factory.mktemp("runs") / "out"
    assert typed(arguments(out, "--rounds", "1", data=cache)) == 0
    return out


def test_it_ends_in_an_encoder_and_a_report(out: Path) -> None:
    assert (read_status(out).state, read_status(out).round) == ("finished", 1)
    assert read_sites(out / "sites.csv")["outcome"].tolist() == ["folded", "folded"]
    (record,) = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert 0 < record["loss"] < 2
    assert len(sscxr.load_encoder(out / "encoder").blocks) == 1  # type: ignore[arg-type]
    assert "2 sites trained" in (out / "report.html").read_text()


def test_a_shared_head_ends_in_pictures(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    assert typed(arguments(out, "--rounds", "1", "federation.share_head=true", data=cache)) == 0
    assert "the shared head" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "give --resume"),
        (["--resume", "pretrain.lr=0.5", "federation.uplink=fp32"], "(federation.uplink, pretrain.lr)"),
        (["--resume", "--clients", "3"], "(--clients)"),
        (["--resume", "--data", "."], "(--data)"),
    ],
)
def test_a_run_is_gone_on_with_as_it_was_asked_for(
    more: list[str], says: str, cache: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(out)
    assert typed([*arguments(out, "--rounds", "1", data=cache), *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said
    assert everything(out) == before


def test_labels_are_not_passed_over_in_pretraining(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(arguments(tmp_path / "new", "--label", "pneumonia", data=cache)) == 1
    assert "--stage classify" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_left_as_it_is(cache: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(out)
    assert typed([*arguments(out, "--rounds", "1", data=cache), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert everything(out) == before
