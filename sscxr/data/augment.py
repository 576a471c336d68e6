"""Crops and variation of whole batches on the device, as matrix products without a loop over images.

An antialiased crop is linear in rows and in columns: out = A @ image @ B^T, with one pair of resampling matrices
per image. A batch takes two batched matrix products, whatever the sizes of its crops.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def random_crops(
    batch: int,
    *,
    size: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw crop boxes inside a square of `size` px.

    The area is uniform in `scale` (a share of the square), width to height log-uniform in `ratio`, the place
    uniform. A side that would not fit is cut to the square's.

    Returns:
        top and left, height and width: two float [B, 2], px.
    """
    draws = torch.rand(4, batch, generator=generator, device=generator.device)
    area = (scale[0] + (scale[1] - scale[0]) * draws[0]) * size**2
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[1])
    extent = torch.stack([torch.sqrt(area / aspect), torch.sqrt(area * aspect)], dim=1).clamp(max=size)
    start = draws[2:].T * (size - extent)
    return start, extent


def resampling_matrix(start: Tensor, extent: Tensor, *, size: int, out: int, soften: Tensor) -> Tensor:
    """Return triangle-filter weights that resample the interval `start .. start + extent` px to `out` px.

    The filter is as wide as the reduction, for antialiasing; `soften` widens it further, for blur.

    Args:
        start, extent, soften: [B].

    Returns:
        [B, out, size]; rows sum to 1.
    """
    scale = (extent / out).unsqueeze(1)
    centre = start.unsqueeze(1) + (torch.arange(out, device=start.device) + 0.5) * scale - 0.5  # [B, out]
    width = scale.clamp(min=1.0) * soften.unsqueeze(1)
    distance = torch.arange(size, device=start.device).view(1, 1, -1) - centre.unsqueeze(-1)
    weights = distance.abs_().neg_().add_(width.unsqueeze(-1)).clamp_(min=0)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def crop(images: Tensor, start: Tensor, extent: Tensor, *, out: int, soften: Tensor | None = None) -> Tensor:
    """Crop each image by its own box and resample it to `out` px a side, antialiased.

    Args:
        images: [B, S, S], any real dtype.
        start, extent: top and left, height and width in px, [B, 2].

    Returns:
        float32 [B, out, out] in the range of the input.
    """
    size = images.shape[-1]
    soften = torch.ones(len(images), device=images.device) if soften is None else soften
    rows = resampling_matrix(start[:, 0], extent[:, 0], size=size, out=out, soften=soften)
    columns = resampling_matrix(start[:, 1], extent[:, 1], size=size, out=out, soften=soften)
    return rows @ images.float() @ columns.transpose(1, 2)


def whole(images: Tensor, *, out: int, mean: float, std: float) -> Tensor:
    """Return whole images without any variation, as input for the encoder.

    Args:
        images: uint8 [B, S, S].

    Returns:
        float32 [B, 1, out, out], normalised: (grey - mean) / std for grey in 0..1.
    """
    start = torch.zeros(len(images), 2, device=images.device)
    grey = crop(images, start, torch.full_like(start, images.shape[-1]), out=out) / 255
    return ((grey - mean) / std).unsqueeze(1)


def views(
    images: Tensor,
    *,
    out: int,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    flip: float,
    brightness: float,
    contrast: float,
    blur: float,
    mean: float,
    std: float,
    generator: torch.Generator,
) -> Tensor:
    """Return one random view of each image: crop, light blur, brightness, contrast, mirror.

    Args:
        images: uint8 [B, S, S].
        flip, blur: probabilities; the blur at most doubles the resampling filter's width.
        brightness, contrast: the largest change, as a share.
        generator: on the images' device.

    Returns:
        float32 [B, 1, out, out], normalised.
    """
    batch = len(images)
    start, extent = random_crops(
        batch, size=images.shape[-1], scale=crop_scale, ratio=crop_ratio, generator=generator
    )
    draws = torch.rand(5, batch, generator=generator, device=generator.device)
    soften = 1 + draws[0] * (draws[1] < blur)
    grey = crop(images, start, extent, out=out, soften=soften)
    if flip:
        grey = torch.where((draws[4] < flip).view(-1, 1, 1), grey.flip(-1), grey)
    return _lit(grey, brightness, contrast, draws[3], draws[2], mean=mean, std=std).unsqueeze(1)


def affine(
    images: Tensor,
    masks: Tensor | None,
    *,
    out: int,
    rotate: float,
    shift: float,
    scale: Sequence[float],
    flip: float,
    brightness: float,
    contrast: float,
    mean: float,
    std: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """Return one random view of each image and of its mask: rotated, scaled and shifted, then varied in grey.

    The whole chest stays in view, as a label is about all of it. Without any variation, the view equals
    `whole`'s.

    Args:
        images: uint8 [B, S, S].
        masks: uint8 [B, S, S], moved exactly as the images are, without mixing values; or None.
        out: px a side of the result.
        rotate: largest angle either way, degrees.
        shift: largest shift along each axis, as a share of the side.
        scale: range of the chest's scale in the view; uniform.
        flip: probability of a mirror image.
        brightness, contrast: the largest change, as a share.
        generator: on the images' device.

    Returns:
        float32 [B, 1, out, out], normalised, and the masks, uint8 [B, out, out]. Pixels from beyond the image are
        black and not in the mask.
    """
    batch, size = len(images), images.shape[-1]
    draws = torch.rand(7, batch, generator=generator, device=generator.device)
    way = 2 * draws - 1
    grow = scale[0] + (scale[1] - scale[0]) * draws[1]
    mirror = 1 - 2 * (draws[4] < flip).float()
    where = _back(math.radians(rotate) * way[0], grow, 2 * shift * way[2:4], mirror)
    grid = nn.functional.affine_grid(where, [batch, 1, size, size], align_corners=False)
    turned = nn.functional.grid_sample(images.float().unsqueeze(1), grid, align_corners=False).squeeze(1)
    start = torch.zeros(batch, 2, device=images.device)
    grey = crop(turned, start, torch.full_like(start, size), out=out)
    inputs = _lit(grey, brightness, contrast, draws[5], draws[6], mean=mean, std=std).unsqueeze(1)
    if masks is None:
        return inputs, None
    grid = nn.functional.affine_grid(where, [batch, 1, out, out], align_corners=False)
    moved = nn.functional.grid_sample(
        masks.float().unsqueeze(1), grid, mode="nearest", align_corners=False
    ).squeeze(1)
    return inputs, moved.round().to(torch.uint8)


def _back(angle: Tensor, grow: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Return the map from a view to the image, [B, 2, 3] for coordinates in -1..1; `shift` [2, B], others [B]."""
    # The chest is mirrored, scaled, rotated and then shifted; the map undoes these in reverse order.
    cosine, sine = torch.cos(angle) / grow, torch.sin(angle) / grow
    across = torch.stack([mirror * cosine, mirror * sine, -mirror * (cosine * shift[0] + sine * shift[1])], 1)
    down = torch.stack([-sine, cosine, sine * shift[0] - cosine * shift[1]], 1)
    return torch.stack([across, down], dim=1)


def _lit(
    pixels: Tensor,
    brightness: float,
    contrast: float,
    bright: Tensor,
    steep: Tensor,
    *,
    mean: float,
    std: float,
) -> Tensor:
    """Vary images [B, H, W] of 0..255 about each one's mean, by random 0..1 [B]; clip and normalise them."""
    level = pixels.mean(dim=(1, 2)) / 255
    gain = 1 + contrast * (2 * steep - 1)
    shift = level * (1 + brightness * (2 * bright - 1)) - level * gain
    slope, offset = (part.view(-1, 1, 1) for part in (gain / (255 * std), (shift - mean) / std))
    return torch.addcmul(offset, pixels, slope).clamp_(-mean / std, (1 - mean) / std)
