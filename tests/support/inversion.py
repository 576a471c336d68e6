"""The analytic inversion of an update: what its sums of gradients show of the images that made it.

The first layer is linear in the pixels, so its weight's gradient is a sum over images and patches of delta x^T, its
bias's the sum of delta, and the position embedding's, where it has one, the sum of delta over the images alone. Of
one image and few patches that is the image itself (arXiv 2008.11364, 2112.14087).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import FastICA
from torch import Tensor

Array = npt.NDArray[np.float64]
_EPS = 1e-8  # AdamW's
WEIGHT, BIAS, PLACES = "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"


def gradients(
    before: Mapping[str, Tensor], update: Mapping[str, Tensor], lr: float, decay: float
) -> dict[str, Tensor]:
    """The gradients of AdamW's first step, as far as fp32 keeps them: it moves a weight by lr g / (|g| + eps)."""
    found = {}
    for name in (WEIGHT, BIAS, PLACES):
        if name not in update:
            continue
        decays = decay if before[name].ndim >= 2 else 0.0
        moved = -(update[name].double() / lr + decays * before[name].double())
        found[name] = _EPS * moved / (1 - moved.abs()).clamp(min=1e-6)
    return found


def sums(update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An update of many steps, taken for one of gradient descent."""
    return {name: -update[name].double() for name in (WEIGHT, BIAS, PLACES) if name in update}


def patches(gradient: Mapping[str, Tensor]) -> Array:
    """Every patch that the gradients suggest, one a row: [candidates, P * P]."""
    weight, bias = gradient[WEIGHT].flatten(1), gradient[BIAS]
    found = [bias @ weight / (bias @ bias).clamp(min=1e-300)[None], weight]
    _, _, axes = torch.linalg.svd(weight, full_matrices=False)
    found += [axes, places(gradient), _independent(weight)]
    return torch.cat([part.reshape(-1, weight.shape[1]) for part in found]).numpy()


def _independent(weight: Tensor) -> Tensor:
    """The weight's rows taken for blends of independent patches, and separated (arXiv 2209.05578)."""
    values = torch.linalg.svdvals(weight)
    rank = min(int((values > 1e-6 * values[0]).sum()), 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: what it has is as good an attack
        ica = FastICA(rank, whiten="unit-variance", max_iter=100, random_state=0)
        return torch.from_numpy(ica.fit_transform(weight.T.numpy()).T.copy())


def places(gradient: Mapping[str, Tensor]) -> Tensor:
    """A patch at each place [N, P * P]: exact for one image, a blend for several (APRIL, arXiv 2112.14087)."""
    delta = gradient[PLACES][0]
    delta = delta[delta.shape[0] - int(delta.shape[0] ** 0.5) ** 2 :]  # the class token's comes first
    return torch.linalg.pinv(delta.T, rtol=1e-6) @ gradient[WEIGHT].flatten(1)


def assembled(rows: Array) -> Array:
    """Patches [N, P * P] as the picture [H, W] that they are cut from."""
    grid, patch = int(len(rows) ** 0.5), int(rows.shape[1] ** 0.5)
    return rows.reshape(grid, grid, patch, patch).transpose(0, 2, 1, 3).reshape(grid * patch, grid * patch)


def cut(pictures: Array, patch: int) -> Array:
    """Pictures [B, H, W] as patches [B * N, P * P]."""
    batch, height, _ = pictures.shape
    grid = height // patch
    tiles = pictures.reshape(batch, grid, patch, grid, patch).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(batch * grid * grid, patch * patch)


def closest(found: Array, truth: Array) -> Array:
    """For each of the true rows, the largest absolute correlation that anything found reaches."""
    first, second = _standard(found), _standard(truth)
    return np.abs(second @ first.T).max(axis=1)


def _standard(rows: Array) -> Array:
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-300)


@dataclass(frozen=True)
class Leak:
    """Correlations of what was recovered, with the images that were trained on and with others of the same kind.

    Attributes:
        image, image_other: the largest of a whole picture, the mean of all pictures taken off.
        patch, patch_other: the mean over all patches that are not plain, of each one's largest.
    """

    image: float
    image_other: float
    patch: float
    patch_other: float


def leak(gradient: Mapping[str, Tensor], trained: Array, others: Array) -> Leak:
    """Hold what the gradients suggest against pictures [B, H, W] that were trained on, and others like them."""
    patch, mean = int(gradient[WEIGHT].shape[-1]), np.concatenate([trained, others]).mean(axis=0)
    tiles = patches(gradient)
    pictures = [assembled(places(gradient).numpy()).reshape(1, -1)]
    if patch == len(mean):
        pictures.append(tiles)
    found = np.concatenate(pictures)
    found = np.concatenate([found, found - mean.reshape(1, -1)])
    image = [closest(found, (part - mean).reshape(len(part), -1)).max() for part in (trained, others)]
    cuts = [cut(part, patch) for part in (trained, others)]
    single = [closest(tiles, part[part.std(axis=1) > 0.02]).mean() for part in cuts]
    return Leak(*(float(value) for value in (*image, *single)))
