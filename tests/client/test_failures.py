"""Whatever goes wrong at a site becomes a fixed word; the rest stays in its log."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import federation as fed
import pytest
import torch
from answers import PATIENT, failure, said, states
from flwr.app import Message, RecordDict

from client import app as client
from sim.engine import InlineGrid
from sscxr.stages.pretrain import SiteTraining
from sscxr.training.loop import NonFiniteLossError, OutOfTimeError
from sscxr.training.parts import Parts


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError(f"cannot read {PATIENT}.dcm"), "internal"),
        (ValueError(PATIENT), "internal"),
        (KeyError(PATIENT), "internal"),
        (OSError(2, "no such file", f"/export/{PATIENT}.dcm"), "internal"),
        (MemoryError(PATIENT), "memory"),
        (torch.OutOfMemoryError(PATIENT), "memory"),
        (NonFiniteLossError(f"loss nan; {PATIENT}"), "loss"),
        (OutOfTimeError(PATIENT), "time"),
        (RecursionError(PATIENT), "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_the_text_of_an_exception_stays_in_the_log_of_the_site(
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    word: str,
) -> None:
    def fail(*args: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(SiteTraining, "train_round", fail)
    with caplog.at_level(logging.ERROR, logger="sscxr.site"):
        assert failure(fed.ask(fed.settings(), site)) == word
    assert PATIENT in caplog.text
    assert not states(site), "nothing is kept of training that failed"


@pytest.mark.parametrize(("codec", "value"), [("fp16", 1e6), ("int8", 1e9), ("int8", float("nan"))])
def test_an_update_that_the_codec_cannot_hold_is_told_as_such(
    site: Path, monkeypatch: pytest.MonkeyPatch, codec: str, value: float
) -> None:
    def far(self: Parts) -> dict[str, torch.Tensor]:
        return {name: torch.full_like(tensor, value) for name, tensor in real(self).items()}

    real = Parts.shared
    monkeypatch.setattr(Parts, "shared", far)
    assert failure(fed.ask(fed.settings(f"federation.uplink={codec}"), site)) == "codec"
    assert not states(site)


def test_a_full_disk_is_told_and_the_state_before_is_kept(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fed.settings()
    fed.ask(config, site)
    kept = states(site)

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("client.site.safetensors.torch.save_file", full)
    assert failure(fed.ask(config, site, round=1, base="r00000-a00")) == "disk"
    assert states(site) == kept


def no_cache(site: Path) -> None:
    (site.parent / "cache" / "summary.json").unlink()


def no_settings(site: Path) -> None:
    site.unlink()


def bad_settings(site: Path) -> None:
    site.write_text(f"name: {PATIENT}\ncache: c\nstate: s\n")


@pytest.mark.parametrize(
    ("damage", "word", "name"),
    [
        (no_cache, "cache", "anna"),
        (no_settings, "settings", "unknown"),
        (bad_settings, "settings", "unknown"),
    ],
)
def test_a_site_that_cannot_open_says_so_in_fixed_words(
    site: Path, damage: Callable[[Path], None], word: str, name: str
) -> None:
    damage(site)
    reply = fed.ask(fed.settings(), site, "query", encoder=False)
    assert failure(reply) == word
    assert said(reply)["site"] == name


def test_too_few_images_are_told_without_their_number(site: Path) -> None:
    for kind in ("query", "train", "evaluate"):
        reply = fed.ask(fed.settings("privacy.min_cell=9"), site, kind)
        assert said(reply) == {"site": "anna", "failure": "few images"}


def test_a_node_without_a_site_says_so(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    grid = InlineGrid(client.app, [site])
    grid._contexts[1].node_config.clear()
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "query")])
    assert failure(reply) == "settings"
