"""Stores a release's weights as float16, which halves its bytes, and measures by how much its features change.

It loads as any release does: timm and `release.load_encoder` copy the weights into float32 parameters.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from sscxr.data.phantoms import phantom
from sscxr.files import save_tensors, whole_folder
from sscxr.release import card, config_file, release
from sscxr.release.config_file import ReleaseError

PHANTOMS = 32  # on which features are compared


@dataclass(frozen=True)
class Difference:
    """How far the features of an encoder are from another's, image by image, relative to their norm.

    Attributes:
        mean, largest: |a - b| / |b| in the Euclidean norm, over `images` phantoms.
        images: their number.
    """

    mean: float
    largest: float
    images: int

    def __str__(self) -> str:
        return f"by {self.mean:.1e} on average and {self.largest:.1e} at most, on {self.images} phantoms"


def shrink(
    folder: str | Path, out: str | Path, *, version: str = "", key: Ed25519PrivateKey | None = None
) -> Difference:
    """Write a release anew with float16 weights; its card states the difference of its features.

    Args:
        folder: a release, with sums. It stays as it is.
        out: the folder to write; see `release.publish`.
        version: of the new release; empty: the release's own and "-fp16".
        key: signs it; the release's own signature is for its own bytes alone.

    Returns:
        The difference of the features from those of the release.

    Raises:
        ReleaseError, SigningError: `folder` is not a whole release, or has float16 weights already, or some that
            float16 cannot hold; or `out` holds something else.
    """
    folder, out = Path(folder), Path(out).resolve()
    release.verify(folder)
    encoder, config = release.load_encoder(folder), config_file.read(folder)
    ours = config.get("sscxr", {})
    if release.stored_as(folder / release.WEIGHTS) == "float16":
        raise ReleaseError(f"{folder} has float16 weights already")
    version = release.checked_version(version or f"{ours.get('version')}-fp16")
    weights = _halved(safetensors.torch.load_file(folder / release.WEIGHTS), folder)
    config["sscxr"] = ours | {"version": version}
    with whole_folder(out) as fresh:
        save_tensors(weights, fresh / release.WEIGHTS, {"format": "pt"})
        (fresh / config_file.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        difference = compare(release.load_encoder(fresh), encoder)
        text = card.released(
            release.read_card(folder),
            version=version,
            licence=str(ours.get("licence", "not stated")),
            note="The weights are stored as float16 and load as float32. The features differ from those of version "
            f"{ours.get('version')}, in float32, {difference} (norm of the difference over that of the features).",
        )
        (fresh / release.CARD).write_text(text, encoding="utf-8")
        release.seal(fresh, out, key)
    return difference


def compare(encoder: nn.Module, other: nn.Module, images: int = PHANTOMS) -> Difference:
    """Return the difference of an encoder's features from another's, on phantoms of a fixed seed.

    Args:
        encoder, other: as `release.load_encoder` returns them, of the same input.
        images: how many phantoms.
    """
    patches, about = cast(Any, encoder).patch_embed, cast(Any, encoder).pretrained_cfg
    grey = _phantoms(images, patches.img_size[0]).expand(-1, patches.proj.in_channels, -1, -1)
    pixels = (grey - about["mean"][0]) / about["std"][0]
    with torch.inference_mode():
        first, second = encoder(pixels).double(), other(pixels).double()
    relative = (first - second).norm(dim=1) / second.norm(dim=1)
    return Difference(float(relative.mean()), float(relative.max()), images)


def _phantoms(number: int, size: int) -> Tensor:
    """Return phantoms in grey levels 0..1, padded to a square: float32 [number, 1, size, size]."""
    rng = np.random.default_rng(0)
    squares = np.zeros((number, 1, size, size), dtype=np.float32)
    for square in squares:
        image, _, _ = phantom.draw(rng, size=size)
        height, width = image.shape
        top, left = (size - height) // 2, (size - width) // 2
        square[0, top : top + height, left : left + width] = image
    return torch.from_numpy(squares)


def _halved(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return weights as float16.

    Raises:
        ReleaseError: a weight is beyond float16's largest number, 65504.
    """
    halved = {name: weights[name].half() for name in sorted(weights)}
    if bad := release.not_finite(halved):
        raise ReleaseError(f"{folder} cannot be stored as float16: {bad} has weights beyond 65504")
    return halved
