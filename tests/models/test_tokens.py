"""The encoder's steps one by one are timm's forward pass; views of another size have interpolated positions."""

from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from sscxr.models import encoder as encoders
from sscxr.models.tokens import embed, encode

# With a class token; with registers that have no position; with a norm before the blocks; with neither token.
NAMES = [
    "vit_tiny_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_gap_224",
]


def build(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return encoders.build(name, img_size=64, patch_size=8, depth=2).eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_are_the_forward_pass_of_timm(name: str) -> None:
    encoder = build(name)
    assert torch.equal(encode(encoder, embed(encoder, images())), encoder.forward_features(images()))


@pytest.mark.parametrize("name", NAMES)
def test_positions_of_another_size_are_those_of_timm(name: str) -> None:
    encoder = build(name)
    small = images(40)
    placed = encoder.pos_embed.shape[1] - 64
    moved = resample_abs_pos_embed(encoder.pos_embed, new_size=(5, 5), num_prefix_tokens=placed)
    patches = embed(encoder, small)[:, encoder.num_prefix_tokens :]
    plain = encoder.patch_embed.proj(small).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, plain + moved[:, placed:], atol=1e-6, rtol=1e-5)
    assert encode(encoder, embed(encoder, small)).shape == (
        3,
        encoder.num_prefix_tokens + 25,
        encoder.embed_dim,
    )


def test_positions_learn_from_views_of_another_size() -> None:
    encoder = build(NAMES[0])
    embed(encoder, images(40)).sum().backward()
    assert encoder.pos_embed.grad.abs().min() > 0


def test_blocks_that_are_computed_again_give_the_same_gradients() -> None:
    encoder = build(NAMES[0]).train()
    found = []
    for again in (False, True):
        encoder.set_grad_checkpointing(again)
        encoder.zero_grad()
        encode(encoder, embed(encoder, images())).square().mean().backward()
        found.append(encoder.pos_embed.grad.clone())
    torch.testing.assert_close(found[0], found[1])
