"""Public checkpoints as a start: their forms, other sizes, and what is refused."""

import argparse
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from sscxr import stages
from sscxr.models.checkpoint import is_from_a_hub, load_start
from sscxr.models.encoder import EncoderError, build

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


def compiled(state: State, file: Path) -> None:
    torch.save(
        {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}, "arch": "a"},
        file,
    )


def compiled_blocks(state: State, file: Path) -> None:
    renamed = {
        f"module._orig_mod.{name.replace('attn.', 'attn._orig_mod.')}": value for name, value in state.items()
    }
    torch.save({"model": renamed}, file)


def lightning(state: State, file: Path) -> None:
    weights = {f"model.backbone.{name}": value for name, value in state.items()}
    torch.save({"state_dict": weights | {"criterion.w": torch.zeros(2)}, "hyper_parameters": {"lr": 1}}, file)


def mocov3(state: State, file: Path) -> None:
    own = {f"module.base_encoder.{name}": value for name, value in state.items()}
    other = {f"module.momentum_encoder.{name}": value + 1 for name, value in state.items()}
    torch.save({"state_dict": other | own}, file)


def averaged(state: State, file: Path) -> None:
    torch.save({"model": {name: value + 1 for name, value in state.items()}, "model_ema": state}, file)


class OfSomeProject:
    """A class that is not there where a checkpoint is read."""

    def __init__(self) -> None:
        self.lr = 1


def with_settings(state: State, file: Path) -> None:
    args = argparse.Namespace(lr=1e-3, output_dir=Path("out"), project=OfSomeProject())
    torch.save({"model": state, "args": args, "best": np.float64(0.3), "scaler": {"scale": 2.0}}, file)


def mae(state: State, file: Path) -> None:
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 3, 8)}
    torch.save({"model": state | decoder | {"decoder_blocks.0.norm1.weight": torch.ones(8)}}, file)


SAVED: dict[str, Callable[[State, Path], None]] = {
    "deit.pth": deit,
    "bare.pth": bare,
    "dino.pth": dino,
    "parallel.pth": parallel,
    "compiled.pth": compiled,
    "compiled_blocks.pth": compiled_blocks,
    "lightning.ckpt": lightning,
    "mocov3.pth": mocov3,
    "averaged.pth": averaged,
    "settings.pth": with_settings,
    "mae.pth": mae,
    "plain.safetensors": safe,
}


TOLD = {
    "mocov3.pth": ["the start has several encoders: 'state_dict.module.base_encoder.'"],
    "averaged.pth": ["the start has several encoders: 'model_ema.'"],
}


@pytest.mark.parametrize("name", SAVED)
def test_a_public_checkpoint_gives_a_grey_image_the_features_of_its_three_channels(
    tmp_path: Path, public: Any, name: str
) -> None:
    SAVED[name](public.state_dict(), tmp_path / name)
    encoder = made(img_size=224, patch_size=16)
    notes = load_start(encoder, tmp_path / name)
    assert [note.split(" is taken")[0] for note in notes] == TOLD.get(name, [])
    grey = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = public.forward_features(grey.expand(1, 3, 224, 224))
        torch.testing.assert_close(encoder.forward_features(grey), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["deit.pth", "mae.pth", "plain.safetensors"])
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


def test_a_deeper_checkpoint_gives_its_first_blocks_and_it_is_said(tmp_path: Path, public: Any) -> None:
    deit(public.state_dict(), tmp_path / "a.pth")
    encoder = made(depth=1)
    assert load_start(encoder, tmp_path / "a.pth") == ["the start has 2 blocks: the encoder has its first 1"]


def test_what_the_checkpoint_lacks_is_told_and_keeps_its_initialisation(tmp_path: Path, public: Any) -> None:
    state = {key: tensor for key, tensor in public.state_dict().items() if not key.startswith("norm.")}
    deit(state, tmp_path / "a.pth")
    assert load_start(made(), tmp_path / "a.pth") == [
        "the start has no norm.bias, norm.weight; they start at random"
    ]


def test_a_norm_behind_pooling_is_taken_for_that_of_each_token(tmp_path: Path, public: Any) -> None:
    bare({name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
          for name, value in public.state_dict().items()}, tmp_path / "a.pth")  # fmt: skip
    encoder = made()
    (note,) = load_start(encoder, tmp_path / "a.pth")
    assert "fc_norm" in note
    assert torch.equal(encoder.norm.weight, public.norm.weight)


def test_what_is_said_of_a_start_is_seen_where_the_server_is_silent(
    tmp_path: Path, public: Any, caplog: pytest.LogCaptureFixture
) -> None:
    deit(
        {name: value for name, value in public.state_dict().items() if name != "pos_embed"},
        tmp_path / "a.pth",
    )
    logging.getLogger("sscxr.server").setLevel(logging.CRITICAL)
    try:
        stages.of(
            stages.load_config("smoke", [f"encoder.start={tmp_path / 'a.pth'}", "encoder.name=" + NAME])
        ).start()
    finally:
        logging.getLogger("sscxr.server").setLevel(logging.NOTSET)
    assert "the start has no pos_embed; they start at random" in caplog.text


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_as_timms_hub_lays_it_out_is_a_start(tmp_path: Path, public: Any, weights: str) -> None:
    (safe if weights.endswith("safetensors") else bare)(public.state_dict(), tmp_path / weights)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": NAME, "pretrained_cfg": {"tag": "in1k"}})
    )
    assert is_from_a_hub(tmp_path)
    start = stages.of(
        stages.load_config("smoke", [f"encoder.start={tmp_path}", "encoder.name=" + NAME])
    ).start()
    key = next(name for name in start if name.endswith("blocks.1.mlp.fc1.weight"))
    assert torch.equal(start[key], public.state_dict()["blocks.1.mlp.fc1.weight"])


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
    assert "not readable as plain weights" in refused(made(), tmp_path / "a.pth")
    refused(made(), tmp_path / "b.pth")
    assert not target.exists()


def test_a_checkpoint_of_another_width_names_the_tensor(tmp_path: Path) -> None:
    deit(build("vit_small_patch16_224", img_size=64, patch_size=8, depth=2).state_dict(), tmp_path / "a.pth")
    assert "choose encoder.name to match" in refused(made(), tmp_path / "a.pth")


KINDS = {
    "layer scale": ("vit_small_patch14_dinov2", {}, "vit_small_patch14_dinov2 has these"),
    "registers": ("vit_small_patch14_reg4_dinov2", {}, "vit_small_patch14_reg4_dinov2 has these"),
    "norm before the blocks": (NAME, {"pre_norm": True}, "has norm_pre.bias, for which"),
    "norms of q and k": (NAME, {"qk_norm": True}, "has blocks.0.attn.k_norm.bias, for which"),
    "no class token": (NAME, {"class_token": False, "global_pool": "avg"}, "has no cls_token"),
    "distillation token": ("deit_tiny_distilled_patch16_224", {}, "has a distillation token"),
    "shallower": (NAME, {"depth": 1}, "has no blocks.1."),
}


@pytest.mark.parametrize(("name", "settings", "says"), KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_another_kind_is_refused_and_timms_model_of_that_kind_named(
    tmp_path: Path, name: str, settings: Any, says: str
) -> None:
    model = timm.create_model(name, **{"img_size": 56, "depth": 2, **settings})
    deit(model.state_dict(), tmp_path / "a.pth")
    width = "vit_small_patch16_224" if model.embed_dim == 384 else NAME
    line = refused(build(width, img_size=64, patch_size=8, depth=2), tmp_path / "a.pth")
    assert says in line
    assert "\x1b" not in line


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
    assert "no ViT with timm's names" in line or "not tensors by name" in line
