"""UNETR: its shapes for every patch size, and an encoder that stays what it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from releases import write

from sscxr.models.encoder import EncoderError, build, model_args
from sscxr.models.unetr import UNETR, step_strides, tap_blocks
from sscxr.release import release

NAME = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "in_chans": 1, "depth": 4}


def made(patch_size: int = 8, img_size: int = 32, **settings: Any) -> UNETR:
    torch.manual_seed(0)
    encoder = build(NAME, **(SIZES | {"img_size": img_size, "patch_size": patch_size} | settings))
    return UNETR(encoder, patch_size, 4).eval()


def images(size: int, count: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("patch_size", "img_size"), [(4, 12), (8, 32), (8, 40), (8, 24), (16, 48), (16, 64), (32, 64)]
)
def test_logits_have_the_inputs_resolution(patch_size: int, img_size: int) -> None:
    model = made(patch_size, img_size)
    states = model.hidden_states(images(img_size))
    grid = img_size // patch_size
    assert [tuple(state.shape) for state in states] == [(2, 192, grid, grid)] * 4
    assert model(images(img_size)).shape == (2, 1, img_size, img_size)


def test_three_channels_reach_the_image_branch() -> None:
    assert made(in_chans=3)(images(32, channels=3)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 6, 9, 12]), (24, [6, 12, 18, 24]), (6, [2, 3, 5, 6]), (4, [1, 2, 3, 4])]
)
def test_the_taps_are_at_the_quarters(depth: int, blocks: list[int]) -> None:
    assert tap_blocks(depth) == blocks


@pytest.mark.parametrize("depth", range(4, 49))
def test_the_taps_are_different_blocks_and_end_with_the_last(depth: int) -> None:
    blocks = tap_blocks(depth)
    assert blocks == sorted(set(blocks))
    assert (len(blocks), blocks[0] >= 1, blocks[-1]) == (4, True, depth)


@pytest.mark.parametrize(
    ("patch_size", "strides"), [(16, [2, 2, 2, 2]), (8, [1, 2, 2, 2]), (4, [1, 1, 2, 2])]
)
def test_the_steps_upsample_by_the_patch_size(patch_size: int, strides: list[int]) -> None:
    assert step_strides(patch_size) == strides


def test_what_no_decoder_can_be_built_for_is_one_line() -> None:
    with pytest.raises(EncoderError, match=r"power of two.*14$"):
        made(14, 56)
    with pytest.raises(EncoderError, match=r"four blocks.*has 3; give another$"):
        made(depth=3)


def test_the_last_state_is_the_encoders_own_output() -> None:
    model = made()
    tokens = model.encoder.forward_features(images(32))[:, 1:]
    assert torch.equal(model.hidden_states(images(32))[-1].flatten(2).transpose(1, 2), tokens)


def test_a_token_stays_where_its_patch_is() -> None:
    """Without attention a token sees its own patch alone: a change at the top right changes that cell alone."""
    model = made()
    for block in model.encoder.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    before, after = images(32), images(32)
    after[:, :, :8, 24:] += 1
    for state, changed in zip(model.hidden_states(before), model.hidden_states(after), strict=True):
        cells = (state != changed).any(dim=1)
        assert cells[:, 0, 3].all()
        assert cells.sum() == len(cells)


def test_a_released_encoder_loads_with_no_key_missing_or_unexpected(tmp_path: Path) -> None:
    torch.manual_seed(3)
    write(tmp_path / "release", build(NAME, **SIZES), model_args=model_args(**SIZES))
    encoder = release.load_encoder(tmp_path / "release")
    before = encoder.forward_features(images(32))
    model = made()
    found = model.encoder.load_state_dict(encoder.state_dict(), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(model.encoder.forward_features(images(32)), before)
    names = {name.removeprefix("encoder.") for name in model.state_dict() if name.startswith("encoder.")}
    assert names == set(encoder.state_dict())
    assert all(name.startswith(("encoder.", "decoder.")) for name in model.state_dict())


def test_every_parameter_learns() -> None:
    model = made().train()
    model(images(32)).square().mean().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_the_same_seed_gives_the_same_logits() -> None:
    assert torch.equal(made()(images(32)), made()(images(32)))
