"""A round goes on from the attempt that was folded: a retry is as good as a first try."""

from pathlib import Path

import federation as fed
import pytest
import safetensors.torch
import torch
from answers import said, states, update

from sscxr.federation import codecs, wire


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_a_retry_equals_a_first_try_bit_for_bit(tmp_path: Path, codec: str) -> None:
    """Round 0 folded; round 1 tried, killed or dropped twice, then tried again: as if it had been the first."""
    config = fed.settings("federation.rounds=3", "encoder.drop_path=0.3", f"federation.uplink={codec}")
    plain, retried = (fed.make_site(tmp_path / name / "anna", "anna", images=10) for name in ("p", "r"))
    for site in (plain, retried):
        fed.ask(config, site)
    base = wire.generation(0, 0)
    expected = fed.ask(config, plain, round=1, base=base)
    for attempt in (0, 1):
        fed.ask(config, retried, round=1, attempt=attempt, base=base)
    found = fed.ask(config, retried, round=1, attempt=2, base=base)
    assert said(found)["state"] == said(expected)["state"] == "kept"
    assert update(found) == update(expected)
    assert said(found)["loss"] == said(expected)["loss"]
    assert states(plain).keys() == {"r00000-a00.safetensors", "r00001-a00.safetensors"}
    assert states(retried).keys() == {"r00000-a00.safetensors", "r00001-a02.safetensors"}
    assert states(retried)["r00001-a02.safetensors"] == states(plain)["r00001-a00.safetensors"]


def test_what_int8_left_out_of_a_folded_update_is_sent_with_the_next(tmp_path: Path) -> None:
    """Beside a site that trains alike and sends fp32: what arrived and what is carried make up what was sent."""
    config, whole = (
        fed.settings("federation.rounds=3", f"federation.uplink={codec}") for codec in ("int8", "fp32")
    )
    site, other = (fed.make_site(tmp_path / name / "anna", "anna", images=10) for name in ("i", "f"))
    like = fed.start(config).encoder

    def trained(
        number: int, attempt: int, base: str
    ) -> tuple[codecs.Tensors, codecs.Tensors, codecs.Tensors]:
        asked = {"round": number, "attempt": attempt, "base": base}
        short, full = fed.ask(config, site, **asked), fed.ask(whole, other, **asked)
        kept = safetensors.torch.load(states(site)[f"{wire.generation(number, attempt)}.safetensors"])
        carried = {name: kept[f"residual.{name}"] for name in like}
        arrived, sent = codecs.decode(update(short), "int8", like), codecs.decode(update(full), "fp32", like)
        return arrived, carried, sent

    arrived, left, sent = trained(0, 0, "")
    assert codecs.norm(left) > 0
    for name in like:
        torch.testing.assert_close(arrived[name] + left[name], sent[name], rtol=1e-6, atol=1e-9)
    trained(1, 0, wire.generation(0, 0))  # refused or dropped: what it left out is not carried
    arrived, now, sent = trained(1, 1, wire.generation(0, 0))
    for name in like:
        torch.testing.assert_close(arrived[name] + now[name], sent[name] + left[name], rtol=1e-6, atol=1e-9)


def test_training_goes_on_from_what_was_kept(site: Path) -> None:
    config = fed.settings()
    fed.ask(config, site)
    kept = fed.ask(config, site, round=1, base=wire.generation(0, 0))
    anew = fed.ask(config, site, round=1)
    assert (said(kept)["state"], said(anew)["state"]) == ("kept", "new")
    assert update(kept) != update(anew)


def test_lost_state_is_said_and_is_a_start_anew(site: Path) -> None:
    config = fed.settings()
    fed.ask(config, site)
    file = next((site.parent / "state").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    lost = fed.ask(config, site, round=1, base=wire.generation(0, 0))
    assert said(lost)["state"] == "lost"
    assert update(lost) == update(fed.ask(config, site, round=1))


def test_rounds_and_sites_draw_other_numbers(tmp_path: Path) -> None:
    config = fed.settings()
    one, other = (fed.make_site(tmp_path / name, name, images=10) for name in ("one", "other"))
    updates = [update(fed.ask(config, site, round=number)) for site in (one, other) for number in (0, 1)]
    assert len(set(updates)) == 4
