"""A released encoder: a folder that timm loads, with a model card.

    model.safetensors   the encoder by timm's parameter names, float32
    config.json         timm's local-dir form: architecture, arguments, how to normalise the input
    README.md           the model card

`timm.create_model("local-dir:FOLDER", pretrained=True)` needs nothing of ours. Called on an image it gives the
mean of the patch tokens after the final norm: the feature that our probes use (GMML does not train the CLS
token). The same encoder and card give the same bytes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from torch import nn

from sscxr.card import Card, render
from sscxr.errors import SscxrError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class ReleaseError(SscxrError):
    """A folder that is no released encoder, or an encoder that cannot be released: one line that says why."""


def write_encoder(
    encoder: nn.Module,
    folder: str | Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    mean: float,
    std: float,
    card: Card,
) -> Path:
    """Write a released encoder, replacing one that is there. It appears whole, and timm has loaded it, or not.

    Args:
        encoder: a timm ViT without a head.
        folder: where to.
        architecture: timm's name of the ViT, such as "vit_small_patch16_224".
        model_args: what else timm needs to build it: img_size (int), patch_size, in_chans, depth ...
        mean, std: grey levels (0..1) that normalise the input, alike for every channel.
        card: what the model card says.

    Returns:
        The folder.

    Raises:
        ReleaseError: weights that are not finite, or that timm cannot load into the named architecture.
    """
    folder = Path(folder)
    state = _state(encoder)
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ReleaseError(f"the encoder is not released: {bad[0]} holds NaN or Inf")
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config = _timm_config(encoder, architecture, dict(model_args), mean=mean, std=std)
    safetensors.torch.save_file(state, fresh / WEIGHTS, metadata={"format": "pt"})
    (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (fresh / CARD).write_text(render(card, config), encoding="utf-8")
    try:
        loaded = load_encoder(fresh)
        same = all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        if not same:
            raise ReleaseError(f"timm loads other weights into {architecture!r} than the encoder has")
    except ReleaseError:
        shutil.rmtree(fresh)
        raise
    _replace(folder, fresh)
    return folder


def load_encoder(folder: str | Path) -> nn.Module:
    """The released encoder in `folder`, through timm, in eval mode. Leaves torch's global generator as it was.

    Raises:
        ReleaseError: no release there, or one whose weights and config do not belong together.
    """
    folder = Path(folder)
    absent = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if absent:
        raise ReleaseError(f"{folder} is no released encoder: it has no {' and no '.join(absent)}")
    try:
        with torch.random.fork_rng(devices=[]):
            encoder = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ReleaseError(f"timm cannot load the encoder in {folder}: {reason}") from None
    return encoder.eval()


def input_norm(folder: str | Path) -> tuple[float, float]:
    """Mean and standard deviation, in grey levels 0..1, that a released encoder's input is normalised by."""
    config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["pretrained_cfg"]
    return float(config["mean"][0]), float(config["std"][0])


def _state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """The weights as float32 on the CPU, each with storage of its own, sorted by name."""
    state = encoder.state_dict()
    return {
        name: state[name].detach().to("cpu", torch.float32, copy=True).contiguous() for name in sorted(state)
    }


def _timm_config(
    encoder: nn.Module, architecture: str, model_args: dict[str, Any], *, mean: float, std: float
) -> dict[str, Any]:
    """config.json, as timm's `save_for_hf` lays it out."""
    channels, size = int(model_args.get("in_chans", 3)), int(model_args.get("img_size", 224))
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": int(cast(Any, encoder).num_features),
        "global_pool": "avg",
        # timm moves the final norm behind average pooling and renames it; ours stays where it was trained.
        "model_args": {**model_args, "global_pool": "avg", "fc_norm": False},
        "pretrained_cfg": {
            "tag": "sscxr",
            "custom_load": False,
            "input_size": [channels, size, size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "border",  # scaled to fit and padded, never squashed or cut
            "mean": [mean] * channels,
            "std": [std] * channels,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _replace(folder: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `folder`; a kill in between leaves the old one beside it, under `.old`."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
