"""The encoder: a timm vision transformer, by timm's names for its parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from sscxr.errors import SscxrError
from sscxr.files import check_readable

# Wrappers under which training scripts save a ViT, outermost first (DeiT, DINO, MAE, MoCo, lightning).
_WRAPPERS = ("model", "state_dict", "teacher", "student")
_PREFIXES = ("module.", "backbone.", "encoder.", "model.")


class EncoderError(SscxrError):
    """An encoder that cannot be built or loaded: one line that says why."""


def model_args(*, img_size: int, patch_size: int, in_chans: int, depth: int | None) -> dict[str, Any]:
    """What, beside its name, tells timm which ViT to build."""
    args: dict[str, Any] = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
    return args if depth is None else args | {"depth": depth}


def build(
    name: str,
    *,
    img_size: int,
    patch_size: int,
    in_chans: int = 1,
    depth: int | None = None,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """Build a ViT without a head. Its initialisation draws from torch's global generator.

    On torch's device `meta` nothing is drawn: it would take as long, and there is nothing to fill.

    Raises:
        EncoderError: a name that timm does not know, or that is no plain ViT.
    """
    if not timm.is_model(name):
        raise EncoderError(f"timm has no model {name!r}; name a ViT such as 'vit_small_patch16_224'")
    args = model_args(img_size=img_size, patch_size=patch_size, in_chans=in_chans, depth=depth)
    if torch.get_default_device().type == "meta":
        args["weight_init"] = "skip"
    try:
        encoder = timm.create_model(name, num_classes=0, drop_path_rate=drop_path, **args)
    except TypeError as error:
        raise EncoderError(f"{name!r} does not take a ViT's settings ({error})") from None
    if not isinstance(encoder, VisionTransformer):
        raise EncoderError(f"{name!r} is a {type(encoder).__name__}, not a plain vision transformer")
    encoder.patch_embed.proj = PatchProjection(encoder.patch_embed.proj)
    return encoder


class PatchProjection(nn.Conv2d):
    """timm's projection of patches, a convolution of stride = kernel, as the matrix product that it is.

    On a GPU alone: cuDNN has no fast convolution of one channel.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take over the parameters of timm's."""
        width, channels, *patch = convolution.weight.shape
        super().__init__(channels, width, (patch[0], patch[1]), stride=(patch[0], patch[1]), device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, D, H / P, W / P] of [B, C, H, W]."""
        return project(images, self.weight, self.bias) if images.is_cuda else super().forward(images)


def project(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`conv2d` with a stride of the kernel's size, by a matrix product.

    Args:
        images: [B, C, H, W], H and W multiples of P.
        weight: [D, C, P, P].
    """
    patch = weight.shape[-1]
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, H / P, W / P, P, P]
    pixels = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
    return nn.functional.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


def load_start(encoder: VisionTransformer, file: str | Path) -> list[str]:
    """Load a checkpoint of timm's names (DeiT, DINO, MAE, ours) into `encoder` as its start.

    Position embeddings and the patch projection are resampled to the encoder's sizes, three input channels
    are summed to one, classifier heads and decoders are left out.

    Returns:
        The parameters that the checkpoint does not have; they keep their initialisation.

    Raises:
        EncoderError: no such file, not a checkpoint, another width or fewer blocks than the encoder.
    """
    state = _bare(_read(Path(file)), str(file))
    if encoder.patch_embed.proj.in_channels == 1:
        sum_channels(state)
    try:
        state = checkpoint_filter_fn(state, encoder)
        wanted = encoder.state_dict()
        clash = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise EncoderError(f"checkpoint {file} does not fit the encoder: {error}") from None
    if clash:
        key = sorted(clash)[0]
        raise EncoderError(
            f"checkpoint {file} does not fit the encoder: {key} is {tuple(state[key].shape)}, "
            f"the encoder's is {tuple(wanted[key].shape)}; choose encoder.name to match"
        )
    missing = sorted(wanted.keys() - state.keys())
    if any(name.startswith(("blocks.", "patch_embed.")) for name in missing):
        raise EncoderError(
            f"checkpoint {file} has no {missing[0]}: it is smaller than encoder.name, or names differ from timm's"
        )
    encoder.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    return missing


def sum_channels(state: dict[str, torch.Tensor]) -> None:
    """Make weights for three input channels ones for one, in place.

    A grey image that is copied to three channels meets the sum of the three filters.
    """
    weight = state["patch_embed.proj.weight"]
    if weight.shape[1] == 3:
        state["patch_embed.proj.weight"] = weight.sum(dim=1, keepdim=True)


def _read(file: Path) -> Mapping[str, Any]:
    check_readable(file)
    if not file.is_file():
        raise EncoderError(f"no checkpoint {file}; give the path of a .safetensors or .pth file")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"checkpoint {file} is not readable as plain weights: {reason}") from None
    if not isinstance(state, Mapping):
        raise EncoderError(f"checkpoint {file} holds a {type(state).__name__}, not tensors by name")
    return state


def _bare(state: Mapping[str, Any], file: str) -> dict[str, torch.Tensor]:
    """Strip the wrappers and prefixes under which the ViT's own names lie."""
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for _ in range(3):
        for prefix in _PREFIXES:
            if f"{prefix}patch_embed.proj.weight" in tensors:
                tensors = {
                    key.removeprefix(prefix): value
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
    if "patch_embed.proj.weight" not in tensors:
        raise EncoderError(f"checkpoint {file} holds no ViT of timm's names (no patch_embed.proj.weight)")
    return tensors


def patch_tokens(encoder: nn.Module, images: torch.Tensor, blocks: list[int]) -> torch.Tensor:
    """The mean of several blocks' outputs, after the final norm.

    Args:
        images: [B, C, H, W], normalised.
        blocks: which blocks, counted from 1.

    Returns:
        [B, N, D], patch tokens only.
    """
    outputs = cast(Any, encoder).forward_intermediates(
        images,
        indices=[block - 1 for block in blocks],
        norm=False,
        output_fmt="NLC",
        intermediates_only=True,
        stop_early=True,
    )
    return cast(torch.Tensor, cast(Any, encoder).norm(torch.stack(outputs).mean(dim=0)))
