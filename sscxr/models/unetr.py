"""UNETR in two dimensions on the encoder's own hidden states (Hatamizadeh et al., arXiv 2103.10504).

MONAI's UNETR has its own transformer, with other parameter names and patches of 16 px. This one is a decoder of
MONAI's blocks around a timm ViT, whose parameters keep timm's names under `encoder.`.

With f = `feature_size` and patches of 16 px, from the deepest step to the image's resolution:

    after block     resized to     channels
    d (normed)      1/16
    3d/4            1/8            8f
    d/2             1/4            4f
    d/4             1/2            2f
    the image       1              f
"""

from typing import Any, cast

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sscxr.models.encoder import EncoderError

_STEPS = 4  # upsamplings, each with a skip
# The norm has a scale and shift, as in nnU-Net and MONAI's DynUNet.
_BLOCK: Any = {"kernel_size": 3, "norm_name": ("instance", {"affine": True}), "res_block": True}


class UNETR(nn.Module):
    """Segmentation of one class, at the input's resolution.

    Attributes:
        encoder: the given timm ViT.
        decoder: everything on top of it.
    """

    def __init__(self, encoder: VisionTransformer, patch_size: int, feature_size: int = 16) -> None:
        """Build the decoder; its initialisation uses torch's global generator.

        Args:
            encoder: without a head.
            patch_size: px a side, a power of two.
            feature_size: channels at full resolution; the deeper steps have 2, 4 and 8 times as many.

        Raises:
            EncoderError: a patch size that is not a power of two, or fewer than four blocks.
        """
        super().__init__()
        self.encoder = encoder
        self.patch_size = patch_size
        self.taps = tap_blocks(len(encoder.blocks))
        channels = int(encoder.patch_embed.proj.in_channels)
        self.decoder = Decoder(channels, int(encoder.embed_dim), patch_size, feature_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 1, H, W] of normalised images [B, C, H, W] of the encoder's input size."""
        return cast(Tensor, self.decoder(images, self.hidden_states(images)))

    def hidden_states(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens after the tapped blocks, the last of them after the final norm.

        Returns:
            Four [B, D, H / patch_size, W / patch_size].
        """
        encoder = cast(Any, self.encoder)
        tokens = encoder.forward_intermediates(
            images,
            indices=[block - 1 for block in self.taps],
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = [*tokens[:-1], encoder.norm(tokens[-1])]
        grid = [side // self.patch_size for side in images.shape[-2:]]
        return [state.transpose(1, 2).unflatten(2, grid) for state in tokens]


class Decoder(nn.Module):
    """Decodes four hidden states and the image to logits."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int, feature_size: int) -> None:
        super().__init__()
        strides = step_strides(patch_size)
        widths = [feature_size * 2 ** (_STEPS - 1 - step) for step in range(_STEPS)]  # 8f, 4f, 2f, f
        self.skips = nn.ModuleList(
            _projected(embed_dim, width, strides[: step + 1]) for step, width in enumerate(widths[:-1])
        )
        self.skips.append(UnetrBasicBlock(2, in_channels, feature_size, stride=1, **_BLOCK))
        self.ups = nn.ModuleList(
            UnetrUpBlock(2, below, width, upsample_kernel_size=stride, **_BLOCK)
            for below, width, stride in zip([embed_dim, *widths[:-1]], widths, strides, strict=True)
        )
        self.out = UnetOutBlock(2, feature_size, 1)

    def forward(self, images: Tensor, states: list[Tensor]) -> Tensor:
        """Return logits [B, 1, H, W] from images [B, C, H, W] and states [B, D, H / P, W / P], shallow to deep."""
        *shallow, features = states
        for up, skip, source in zip(self.ups, self.skips, [*reversed(shallow), images], strict=True):
            features = up(features, skip(source))
        return cast(Tensor, self.out(features))


def tap_blocks(depth: int) -> list[int]:
    """Return the blocks, from 1, whose outputs the decoder uses: at a quarter, half, three quarters, and the last.

    Raises:
        EncoderError: fewer than four blocks.
    """
    if depth < _STEPS:
        raise EncoderError(f"UNETR taps four blocks of the encoder, and this one has {depth}; give another")
    return [(depth * step + _STEPS // 2) // _STEPS for step in range(1, _STEPS + 1)]  # rounded, half up


def step_strides(patch_size: int) -> list[int]:
    """Return each decoder step's upsampling factor, the deepest first; their product is the patch size.

    Patches of 16 px: 2, 2, 2, 2, as published. Of 8 px: 1, 2, 2, 2, so that the deepest skip is merged at its own
    resolution; of 32 px: 2, 2, 2, 4.

    Raises:
        EncoderError: not a power of two.
    """
    halvings = patch_size.bit_length() - 1
    if patch_size != 2**halvings:
        raise EncoderError(
            f"UNETR needs patches of 4, 8, 16 or 32 px (a power of two); this encoder's have {patch_size}"
        )
    return [2 ** ((halvings + step) // _STEPS) for step in range(_STEPS)]


def _projected(embed_dim: int, width: int, strides: list[int]) -> nn.Module:
    """Return layers to `width` channels that upsample by the product of `strides`, by two at a time."""
    halvings = sum(stride.bit_length() - 1 for stride in strides)
    return UnetrPrUpBlock(
        2,
        embed_dim,
        width,
        num_layer=max(0, halvings - 1),
        stride=1,
        upsample_kernel_size=2 if halvings else 1,
        conv_block=True,
        **_BLOCK,
    )
