"""The encoder: a timm vision transformer with timm's parameter names."""

from typing import Any, cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sscxr.config.schema import EncoderConfig
from sscxr.errors import SscxrError

POOLINGS = ("avg", "token")  # the mean of the patch tokens, or the class token, after the final norm


def pooling_args(pooling: str) -> dict[str, Any]:
    """Return what has timm pool so; it moves the final norm behind average pooling where `fc_norm` is not set."""
    return {"global_pool": pooling, "fc_norm": False}


class EncoderError(SscxrError):
    """An encoder cannot be built or loaded; one line states why."""


def model_args(*, img_size: int, patch_size: int, in_chans: int, depth: int | None) -> dict[str, Any]:
    """Return the arguments for timm that, beside the name, determine the ViT."""
    args: dict[str, Any] = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
    return args if depth is None else args | {"depth": depth}


def args_of(settings: EncoderConfig, img_size: int = 0) -> dict[str, Any]:
    """Return `model_args` by the section `encoder`, at another input size if one is given."""
    return model_args(
        img_size=img_size or settings.img_size,
        patch_size=settings.patch_size,
        in_chans=settings.in_chans,
        depth=settings.depth,
    )


def build(
    name: str,
    *,
    img_size: int,
    patch_size: int,
    in_chans: int = 1,
    depth: int | None = None,
    drop_path: float = 0.0,
    pooling: str = "avg",
) -> VisionTransformer:
    """Build a ViT without a head. Its initialisation uses torch's global generator.

    Args:
        pooling: one of `POOLINGS`.

    On torch's device `meta` nothing is drawn: it would take as long, and there is nothing to fill.

    Raises:
        EncoderError: timm does not know the name, or it is not a plain ViT whose patch tokens can be pooled.
    """
    if not timm.is_model(name):
        raise EncoderError(f"timm has no model {name!r}; name a ViT such as 'vit_small_patch16_224'")
    if "_distilled_" in name:
        plain = name.replace("_distilled_", "_")
        raise EncoderError(
            f"{name!r} has a distillation token, which a release cannot store; choose {plain!r}"
        )
    args = model_args(img_size=img_size, patch_size=patch_size, in_chans=in_chans, depth=depth)
    if torch.get_default_device().type == "meta":
        args["weight_init"] = "skip"
    try:
        encoder = timm.create_model(
            name, num_classes=0, drop_path_rate=drop_path, **args, **pooling_args(pooling)
        )
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EncoderError(
            f"{name!r} is not a plain vision transformer, or does not take these sizes ({reason}); "
            "name another, such as 'vit_small_patch16_224'"
        ) from None
    if not isinstance(encoder, VisionTransformer):
        raise EncoderError(f"{name!r} is a {type(encoder).__name__}, not a plain vision transformer")
    encoder.patch_embed.proj = PatchProjection(encoder.patch_embed.proj)
    return encoder


class PatchProjection(nn.Conv2d):
    """timm's projection of patches, a convolution with stride = kernel, computed as a matrix product.

    It is used only on a GPU: cuDNN has no fast convolution of one channel.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take over the parameters of timm's convolution."""
        width, channels, *patch = convolution.weight.shape
        super().__init__(channels, width, (patch[0], patch[1]), stride=(patch[0], patch[1]), device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, D, H / P, W / P] for images [B, C, H, W]."""
        return project(images, self.weight, self.bias) if images.is_cuda else super().forward(images)


def project(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `conv2d` with a stride of the kernel's size by a matrix product.

    Args:
        images: [B, C, H, W], H and W multiples of P.
        weight: [D, C, P, P].
    """
    patch = weight.shape[-1]
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, H / P, W / P, P, P]
    pixels = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
    return nn.functional.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)


def patch_tokens(encoder: nn.Module, images: torch.Tensor, blocks: list[int]) -> torch.Tensor:
    """Return the mean of several blocks' outputs, after the final norm.

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
