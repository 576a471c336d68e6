"""The encoder: timm's ViTs by name, and public three-channel checkpoints as a start."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from sscxr.models.encoder import EncoderError, build, load_start, patch_tokens, project

NAME = "vit_tiny_patch16_224"
State = dict[str, Tensor]


def made(**settings: Any) -> Any:
    """A fresh encoder, unlike any checkpoint here."""
    torch.manual_seed(1)
    return build(NAME, **{"img_size": 64, "patch_size": 8, "depth": 2, **settings}).eval()


@pytest.fixture(scope="module")
def public() -> Any:
    """A three-channel ViT with a classifier as timm makes it, two blocks deep; biases and norms not at zero."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, depth=2, num_classes=7).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


# ---- build


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


# ---- checkpoints as a start


def deit(state: State, file: Path) -> None:
    torch.save({"model": state}, file)


def bare(state: State, file: Path) -> None:
    torch.save(state, file)


def dino(state: State, file: Path) -> None:
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("head.")}
    torch.save(
        {"teacher": {**teacher, "head.mlp.0.weight": torch.zeros(3)}, "student": {}, "epoch": 99}, file
    )


def parallel(state: State, file: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)


def safe(state: State, file: Path) -> None:
    safetensors.torch.save_file(state, file)


SAVED: dict[str, Callable[[State, Path], None]] = {
    "deit.pth": deit,
    "bare.pth": bare,
    "dino.pth": dino,
    "parallel.pth": parallel,
    "plain.safetensors": safe,
}


@pytest.mark.parametrize("name", SAVED)
def test_a_public_checkpoint_gives_a_grey_image_the_features_of_its_three_channels(
    tmp_path: Path, public: Any, name: str
) -> None:
    SAVED[name](public.state_dict(), tmp_path / name)
    encoder = made(img_size=224, patch_size=16)
    assert load_start(encoder, tmp_path / name) == []
    grey = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = public.forward_features(grey.expand(1, 3, 224, 224))
        torch.testing.assert_close(encoder.forward_features(grey), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAVED)
def test_a_public_checkpoint_loads_into_other_sizes(tmp_path: Path, public: Any, name: str) -> None:
    SAVED[name](public.state_dict(), tmp_path / name)
    encoder = made()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    assert load_start(encoder, tmp_path / name) == []
    after, given = encoder.state_dict(), public.state_dict()
    resampled = {"pos_embed", "patch_embed.proj.weight"}
    assert all(torch.equal(after[key], given[key]) for key in after.keys() - resampled)
    assert not any(torch.equal(after[key], before[key]) for key in resampled)
    assert torch.isfinite(encoder.forward_features(torch.zeros(1, 1, 64, 64))).all()


def test_a_uniform_patch_meets_the_same_filters_at_another_patch_size(tmp_path: Path, public: Any) -> None:
    """Resampling a filter keeps what it answers to an image of one grey."""
    deit(public.state_dict(), tmp_path / "a.pth")
    encoder = made()
    load_start(encoder, tmp_path / "a.pth")
    with torch.no_grad():
        small = encoder.patch_embed.proj(torch.ones(1, 1, 8, 8)).flatten()
        large = public.patch_embed.proj(torch.ones(1, 3, 16, 16)).flatten()
    assert torch.corrcoef(torch.stack([small, large]))[0, 1] > 0.9


def test_three_channels_stay_three_where_the_encoder_has_them(tmp_path: Path, public: Any) -> None:
    deit(public.state_dict(), tmp_path / "a.pth")
    encoder = made(img_size=224, patch_size=16, in_chans=3)
    load_start(encoder, tmp_path / "a.pth")
    kept = encoder.state_dict()["patch_embed.proj.weight"]
    assert torch.equal(kept, public.state_dict()["patch_embed.proj.weight"])


def test_our_own_encoder_loads_as_it_was(tmp_path: Path) -> None:
    one, other = made(), made()
    with torch.no_grad():
        one.norm.bias.add_(1)
    safe(one.state_dict(), tmp_path / "a.safetensors")
    assert load_start(other, tmp_path / "a.safetensors") == []
    assert all(torch.equal(other.state_dict()[key], value) for key, value in one.state_dict().items())


def test_a_deeper_checkpoint_gives_its_first_blocks(tmp_path: Path, public: Any) -> None:
    deit(public.state_dict(), tmp_path / "a.pth")
    encoder = made(depth=1)
    assert load_start(encoder, tmp_path / "a.pth") == []


def test_what_the_checkpoint_lacks_is_told_and_keeps_its_initialisation(tmp_path: Path, public: Any) -> None:
    state = {key: tensor for key, tensor in public.state_dict().items() if not key.startswith("norm.")}
    deit(state, tmp_path / "a.pth")
    assert load_start(made(), tmp_path / "a.pth") == ["norm.bias", "norm.weight"]


# ---- what cannot be a start


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def refused(encoder: Any, file: Path) -> str:
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    with pytest.raises(EncoderError) as error:
        load_start(encoder, file)
    assert all(torch.equal(encoder.state_dict()[key], tensor) for key, tensor in before.items())
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    return str(error.value)


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no checkpoint" in refused(made(), tmp_path / "none.pth")
    assert "no checkpoint" in refused(made(), tmp_path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02garbage"])
def test_garbage_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "not readable as plain weights" in refused(made(), tmp_path / name)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Evil(target), protocol=2))
    torch.save({"model": Evil(target)}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        assert "not readable as plain weights" in refused(made(), tmp_path / name)
    assert not target.exists()


def test_a_checkpoint_of_another_width_names_the_tensor(tmp_path: Path) -> None:
    deit(build("vit_small_patch16_224", img_size=64, patch_size=8, depth=2).state_dict(), tmp_path / "a.pth")
    assert "choose encoder.name to match" in refused(made(), tmp_path / "a.pth")


def test_a_checkpoint_of_fewer_blocks_is_refused(tmp_path: Path, public: Any) -> None:
    deit(public.state_dict(), tmp_path / "a.pth")
    assert "has no blocks.2." in refused(made(depth=3), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "saved",
    [
        {"fc.weight": torch.zeros(2)},
        {},
        {"model": {}},
        [torch.zeros(2)],
        torch.zeros(2),
    ],
    ids=["other model", "empty", "empty model", "list", "tensor"],
)
def test_what_is_no_vit_is_one_line(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "a.pth")
    line = refused(made(), tmp_path / "a.pth")
    assert "no ViT of timm's names" in line or "not tensors by name" in line
