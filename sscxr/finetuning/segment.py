"""Lung segmentation as a task of fine-tuning: its images, loss and score."""

from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from monai.losses.dice import MaskedDiceLoss
from torch import Tensor, nn

from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.pixels.pictures import MASK_IGNORE, MASK_LUNG
from sscxr.data.rows import Rows
from sscxr.evaluation import segmentation
from sscxr.finetuning.finetune import varied
from sscxr.models import inference
from sscxr.models.inference import Input
from sscxr.models.unetr import UNETR

_DICE = MaskedDiceLoss(sigmoid=True)


class Segmentation:
    """Outlines the lungs.

    Attributes:
        model: the model that learns.
    """

    def __init__(self, model: UNETR, cache: Cache, config: Config, device: torch.device) -> None:
        """Prepare for training and scoring on rows of a cache that have masks (`segmentation.masked`).

        Args:
            model: on `device`.
        """
        assert cache.masks is not None, "the rows have masks"
        self.model: nn.Module = model
        self.cache, self.masks = cache, cache.masks
        self.config, self.device = config, device
        size = config.finetune.img_size or config.encoder.img_size
        self.input = Input(size, config.data.mean, config.data.std, device=device)

    def batch(self, rows: Rows, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return varied views [B, 1, H, W] and their masks, uint8 [B, 1, H, W]."""
        pixels, masks = (
            torch.from_numpy(part[rows]).to(self.device) for part in (self.cache.images, self.masks)
        )
        inputs, moved = varied(pixels, masks, self.config, generator, out=self.input.img_size)
        return inputs, cast(Tensor, moved).unsqueeze(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return `segmentation_loss` of a batch."""
        inputs, masks = batch
        return segmentation_loss(self.model(inputs).float(), masks)

    def score(self, rows: Rows) -> float:
        """Return the mean Dice over whole images, at the cache's resolution."""
        return segmentation.mean_dice(self._outlined(rows), self.masks[rows])

    def measured(self, rows: Rows) -> pd.DataFrame:
        """Return the figures of each row; see `segmentation.measure`."""
        millimetres = segmentation.mm_per_px(self.cache.index.iloc[rows])
        return segmentation.measure(self._outlined(rows), self.masks[rows], millimetres)

    def _outlined(self, rows: Rows) -> npt.NDArray[np.bool_]:
        return inference.lungs(self.model, self.cache.images, rows, wants=self.input)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the sum of the images' Dice loss and the pixels' binary cross-entropy (DiceCE, as in UNETR, 3.3).

    Both leave out ignored pixels.

    Args:
        logits: float32 [B, 1, H, W].
        masks: uint8 [B, 1, H, W]: 255 lung, 127 ignore, 0 background.
    """
    known, lung = (masks != MASK_IGNORE).float(), (masks == MASK_LUNG).float()
    each = nn.functional.binary_cross_entropy_with_logits(logits, lung, reduction="none")
    entropy = (each * known).sum() / known.sum().clamp(min=1)
    return cast(Tensor, _DICE(logits, lung, known)) + entropy
