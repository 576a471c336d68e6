"""An encoder's steps, one by one, for methods that show it views of another size, or some of an image's patches."""

from typing import Any, cast

import torch
from timm.models import checkpoint_seq
from torch import Tensor, nn


def embed(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return patches and prefix tokens (class, registers) with their positions, as the first block gets them.

    Where a view has fewer or more patches than the encoder was built for, the positions of the patches are
    interpolated, by a matrix product: its backward pass is deterministic on a GPU, an interpolation's is not.

    Args:
        encoder: a timm ViT with P prefix tokens.
        images: [B, C, H, W], normalised; H and W in whole patches.

    Returns:
        [B, P + N, D].
    """
    vit = cast(Any, encoder)
    patches = vit.patch_embed.proj(images)
    grid = tuple(patches.shape[-2:])
    patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
    batch = len(images)
    prefix = [token.expand(batch, -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        return cast(Tensor, vit.pos_drop(torch.cat([*prefix, patches], dim=1)))
    placed = vit.pos_embed.shape[1] - vit.patch_embed.num_patches  # prefix tokens that have a position
    positions = _of_grid(vit.pos_embed[:, placed:], vit.patch_embed.grid_size, grid)
    if placed:
        tokens = torch.cat([*prefix, patches], dim=1) + torch.cat(
            [vit.pos_embed[:, :placed], positions], dim=1
        )
    else:
        tokens = torch.cat([*prefix, patches + positions], dim=1)
    return cast(Tensor, vit.pos_drop(tokens))


def encode(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """Return what the blocks and the final norm give for embedded tokens: [B, T, D] of [B, T, D]."""
    vit = cast(Any, encoder)
    tokens = vit.norm_pre(tokens)
    tokens = checkpoint_seq(vit.blocks, tokens) if vit.grad_checkpointing else vit.blocks(tokens)
    return cast(Tensor, vit.norm(tokens))


def _of_grid(positions: Tensor, old: tuple[int, int], new: tuple[int, ...]) -> Tensor:
    """Positions [1, h * w, D] of a grid brought to another, bicubically."""
    if tuple(old) == tuple(new):
        return positions
    with torch.no_grad():
        places = torch.eye(old[0] * old[1], device=positions.device).view(-1, 1, *old)
        moved = nn.functional.interpolate(
            places, size=new, mode="bicubic", antialias=True, align_corners=False
        )
    with torch.autocast(positions.device.type, enabled=False):
        return moved.flatten(1).T @ positions
