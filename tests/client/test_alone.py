"""A site that trains by itself: interrupted and continued it is as if never stopped, and its encoder is a run's."""

from pathlib import Path

import federation as fed
import pytest
import torch

from client import alone
from client.settings import SiteError, read_settings
from client.site import Site
from sscxr.release import release
from sscxr.training.site_model import Training

ROUNDS = 3


class StoppedError(Exception):
    """In place of a power cut."""


def trained(place: Path, file: Path, *overrides: str, stop: int = 0) -> Training:
    site = Site(read_settings(place))

    def on_round(done: int, rounds: int, loss: float) -> None:
        assert rounds == ROUNDS
        assert loss > 0
        if done == stop:
            raise StoppedError

    config = fed.settings(f"federation.rounds={ROUNDS}", *overrides)
    return alone.train(site, config, file, on_round=on_round)


def tensors(training: Training) -> dict[str, torch.Tensor]:
    return training.parts.shared() | training.local()


@pytest.mark.parametrize(
    "overrides",
    [(), ("pretrain.objective=dino",), ("federation.moments=both", "federation.share_head=true")],
    ids=["gmml", "dino", "all averaged"],
)
def test_continued_is_as_never_stopped(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "_EVERY", 0.0)
    place = fed.make_site(tmp_path / "anna", "anna")
    whole = tensors(trained(place, tmp_path / "whole.safetensors", *overrides))
    with pytest.raises(StoppedError):
        trained(place, tmp_path / "stopped.safetensors", *overrides, stop=2)
    found = tensors(trained(place, tmp_path / "stopped.safetensors", *overrides))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    again = tensors(
        trained(place, tmp_path / "whole.safetensors", *overrides, stop=1)
    )  # nothing is left to do
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_state_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    place, file = fed.make_site(tmp_path / "anna", "anna"), tmp_path / "state.safetensors"
    trained(place, file)
    with pytest.raises(SiteError, match="other settings or images"):
        trained(place, file, "pretrain.lr=1e-4")
    file.write_bytes(b"damaged")
    with pytest.raises(SiteError, match="damaged; delete it"):
        trained(place, file)


def test_the_encoder_is_released_as_a_run_s(tmp_path: Path) -> None:
    place = fed.make_site(tmp_path / "anna", "anna")
    training = trained(place, tmp_path / "state.safetensors")
    folder = alone.release(Site(read_settings(place)), training.config, training, tmp_path / "encoder")
    found = release.load_encoder(folder).state_dict()
    shared = training.parts.shared()
    assert all(torch.equal(found[name], shared[name]) for name in found)
    assert "at one site, without others, in 3 rounds" in (folder / "README.md").read_text()
