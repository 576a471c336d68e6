"""The encoder: timm's ViTs by name, of every family, through training and a release."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from marks import slow
from torch import nn

from sscxr.models.encoder import EncoderError, build, model_args, patch_tokens, project
from sscxr.release import release
from sscxr.release.card import Card

NAME = "vit_tiny_patch16_224"


def made(**settings: Any) -> Any:
    """A fresh encoder, unlike any checkpoint here."""
    torch.manual_seed(1)
    return build(NAME, **{"img_size": 64, "patch_size": 8, "depth": 2, **settings}).eval()


@pytest.mark.parametrize(
    ("name", "width"), [(NAME, 192), ("vit_small_patch16_224", 384), ("deit_tiny_patch16_224", 192)]
)
def test_encoders_are_built_by_name_at_any_size(name: str, width: int) -> None:
    encoder = build(name, img_size=48, patch_size=12, depth=1)
    assert encoder.forward_features(torch.zeros(2, 1, 48, 48)).shape == (2, 16 + 1, width)
    assert isinstance(encoder.head, nn.Identity)
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.bias"} <= encoder.state_dict().keys()


def test_the_depth_is_as_named_unless_given() -> None:
    assert len(build(NAME, img_size=32, patch_size=16).blocks) == 12


@pytest.mark.parametrize("name", ["vit_of_nowhere", "resnet18", "swin_tiny_patch4_window7_224"])
def test_what_is_no_plain_vit_is_one_line(name: str) -> None:
    with pytest.raises(EncoderError, match=name) as error:
        build(name, img_size=224, patch_size=16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_projected_by_a_matrix_product_are_those_of_the_convolution(channels: int) -> None:
    source = torch.Generator().manual_seed(0)
    images, weight = (
        torch.randn(shape, generator=source) for shape in ((2, channels, 24, 40), (5, channels, 8, 8))
    )
    bias = torch.randn(5, generator=source)
    expected = torch.nn.functional.conv2d(images, weight, bias, stride=8)
    assert torch.allclose(project(images, weight, bias), expected, atol=1e-4)
    assert torch.allclose(project(images, weight, None), expected - bias.view(1, 5, 1, 1), atol=1e-4)


def test_patch_tokens_are_the_mean_of_the_blocks_after_the_norm() -> None:
    encoder, images = made(), torch.randn(2, 1, 64, 64)
    last = encoder.forward_features(images)[:, 1:]
    torch.testing.assert_close(patch_tokens(encoder, images, [2]), last)
    both = patch_tokens(encoder, images, [1, 2])
    outputs = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output[:, 1:]))
    encoder.forward_features(images)
    torch.testing.assert_close(both, encoder.norm((outputs[0] + outputs[1]) / 2))


# ---- every family of timm's


# The narrowest name of each kind: how tokens are normalised, pooled and scaled, and what stands in a block.
FAMILIES = {
    "class token": "vit_tiny_patch16_224",
    "class token, norm after pooling": "vit_base_patch32_clip_224",
    "layer scale": "deit3_small_patch16_224",
    "class token, layer scale": "vit_small_patch14_dinov2",
    "registers, layer scale": "vit_small_patch14_reg4_dinov2",
    "registers, pooled mean": "vit_wee_patch16_reg1_gap_256",
    "registers, pooled mean, parallel blocks": "vit_pwee_patch16_reg1_gap_256",
    "registers, differential attention": "vit_dpwee_patch16_reg1_gap_256",
    "registers, norms in the attention": "vit_dlittle_patch16_reg1_gap_256",
    "registers, mean, another shape": "vit_so150m2_patch16_reg1_gap_256",
    "pooled mean": "vit_base_patch16_gap_224",
    "pooled mean, no class token": "vit_betwixt_patch16_gap_256",
    "attention pooling": "vit_base_patch16_siglip_224",
    "attention pooling, small": "test_vit2",
    "RMS norms": "test_vit4",
    "SwiGLU": "vit_giant_patch14_dinov2",
    "SwiGLU, RMS norms": "aimv2_large_patch14_224",
    "no final norm": "vit_base_patch16_radio_v3",
    "norm after the block": "vit_base_patch16_rpn_224",
    "parallel blocks, RMS norms": "vit_base_patch16_xp_224",
    "two branches": "vit_small_patch16_18x2_224",
    "no bias of q, k and v": "vit_base_patch16_224_miil",
    "sub-norms": "beit3_base_patch16_224",
    "odd width": "vit_so400m_patch14_siglip_224",
}


_SMALL = ("class token", "registers, pooled mean", "attention pooling, small", "RMS norms")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=kind) if kind in _SMALL else slow(name, id=kind)
        for kind, name in FAMILIES.items()
    ],
)
def test_a_vit_of_every_family_trains_and_is_released_with_its_own_features(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    sizes = model_args(img_size=32, patch_size=16, in_chans=1, depth=1)
    encoder, images = build(name, **sizes), torch.randn(2, 1, 32, 32)
    tokens = patch_tokens(encoder, images, [1])
    (tokens * torch.randn(tokens.shape)).mean().backward()
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    torch.optim.SGD(encoder.parameters(), lr=1.0).step()
    assert any(not torch.equal(*pair) for pair in zip(before, encoder.parameters(), strict=True))
    folder = tmp_path / "encoder"
    card = Card(name="a", data=[], rounds=1, settings="", code_version="0")
    release.write_encoder(encoder, folder, architecture=name, model_args=sizes, mean=0.5, std=0.25, card=card)
    with torch.no_grad():
        found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
        tokens = patch_tokens(encoder.eval(), images, [1])
        torch.testing.assert_close(found, tokens.mean(dim=1))
        torch.testing.assert_close(release.load_encoder(folder)(images), found)


@pytest.mark.slow
def test_every_vit_that_timm_names_is_built_as_a_release_describes_it_or_refused_at_once() -> None:
    refused = {}
    for name in timm.list_models(["vit_*", "deit*", "beit3*", "aimv2*", "test_vit*", "eva*", "samvit*"]):
        with torch.device("meta"):
            try:
                encoder = build(name, img_size=32, patch_size=16, depth=1)
            except EncoderError as error:
                refused[name] = str(error)
                continue
            assert encoder.global_pool == "avg"
            assert isinstance(encoder.fc_norm, nn.Identity), name
    assert all(name in text and "\n" not in text for name, text in refused.items())
    assert {"deit_tiny_distilled_patch16_224", "vit_relpos_small_patch16_224"} <= refused.keys()
    assert not refused.keys() & set(FAMILIES.values())
