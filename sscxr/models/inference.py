"""Inference on whole images, in batches: probabilities, features and masks, without augmentation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sscxr.data import augment
from sscxr.data.rows import Rows

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Input:
    """The form of a model's input, and its batch size and device.

    Attributes:
        img_size: px a side at the model's input.
        mean, std: grey levels (0..1) that normalise the input.
        batch_size: images per batch.
        device: the device that computes; a model is moved there and stays.
    """

    img_size: int
    mean: float
    std: float
    batch_size: int = 64
    device: torch.device | str = "cpu"

    def of(self, images: Images) -> Tensor:
        """Return whole images, uint8 [B, S, S], as a model's input: float32 [B, 1, img_size, img_size]."""
        pixels = torch.from_numpy(images).to(self.device)
        return augment.whole(pixels, out=self.img_size, mean=self.mean, std=self.std)


def probabilities(
    model: nn.Module, images: Images, rows: Rows | None = None, *, wants: Input
) -> npt.NDArray[np.float64]:
    """Return the probability that each label is present: float64 [len(rows), L], 0 .. 1.

    Args:
        model: returns logits [B, L] for float32 [B, 1, img_size, img_size]. Its mode is restored.
        images: uint8 [N, S, S], square; memory-mapped or not.
        rows: the images to use, in this order; None: all.
    """
    # float64 before the sigmoid: float32 rounds all nearly certain values to the same 1, which makes ties.
    outputs = batches(model, model, images, rows, wants)
    found = [torch.sigmoid(logits.double()).cpu().numpy() for logits in outputs]
    return np.concatenate(found) if found else np.zeros((0, 0))


def features(
    encoder: nn.Module, images: Images, rows: Rows | None = None, *, wants: Input
) -> npt.NDArray[np.float32]:
    """Return an encoder's features after the final norm, pooled by its `global_pool`: float32 [len(rows), D].

    Args:
        encoder: `encoder.forward_features` returns [B, P + N, D] with P = `encoder.num_prefix_tokens` (CLS) and N
            patches; "token" takes the first token, anything else the mean of the patches. The others as in
            `probabilities`.
    """
    token = getattr(encoder, "global_pool", "avg") == "token"
    prefix = int(getattr(encoder, "num_prefix_tokens", 1))
    forward = cast(Any, encoder).forward_features
    tokens = batches(encoder, forward, images, rows, wants)
    pooled = (part[:, 0] if token else part[:, prefix:].mean(dim=1) for part in tokens)
    found = [part.float().cpu().numpy() for part in pooled]
    if not found:
        return np.zeros((0, int(getattr(encoder, "num_features", 0))), dtype=np.float32)
    return np.concatenate(found)


def batches(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Images,
    rows: Rows | None,
    wants: Input,
) -> Iterator[Tensor]:
    """Yield the output of `forward` for each batch, the model in eval mode; arguments as in `probabilities`."""
    rows = np.arange(len(images)) if rows is None else rows
    training = model.training
    model.to(wants.device).eval()
    try:
        for start in range(0, len(rows), wants.batch_size):
            # Not around the yield, where it would apply to the caller's code as well.
            with torch.inference_mode():
                output = forward(wants.of(images[rows[start : start + wants.batch_size]]))
            yield output
    finally:
        model.train(training)


def lungs(
    model: nn.Module, images: Images, rows: Rows | None = None, *, wants: Input
) -> npt.NDArray[np.bool_]:
    """Return a segmenter's lung masks at the images' own resolution: bool [len(rows), S, S].

    Args:
        model: returns logits [B, 1, img_size, img_size]; they are resized to S px bilinearly, then cut at
            probability 0.5. The others as in `probabilities`.
    """
    size = images.shape[-1]
    outputs = batches(model, model, images, rows, wants)
    found = [(upsampled(logits, size)[:, 0] > 0).cpu().numpy() for logits in outputs]
    return np.concatenate(found) if found else np.zeros((0, size, size), dtype=bool)


def upsampled(logits: Tensor, size: int) -> Tensor:
    """Resize logits [B, 1, H, W] to [B, 1, size, size] bilinearly, with antialiasing if that is smaller."""
    if logits.shape[-1] == size:
        return logits.float()
    return nn.functional.interpolate(
        logits.float(),
        size=(size, size),
        mode="bilinear",
        align_corners=False,
        antialias=logits.shape[-1] > size,
    )
