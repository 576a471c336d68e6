"""Lung segmentation as a task of fine-tuning: its images, loss and score."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.pixels.pictures import MASK_IGNORE, MASK_LUNG
from sscxr.data.rows import Rows
from sscxr.evaluation import segmentation
from sscxr.finetuning import finetune
from sscxr.finetuning.finetune import Split, varied
from sscxr.finetuning.kind import Figures, Kind
from sscxr.models import inference
from sscxr.models.inference import Input

if TYPE_CHECKING:
    from sscxr.finetuning.finetuned import Spec
    from sscxr.models.unetr import UNETR


class Segmentation(finetune.Task):
    """Outlines the lungs."""

    def __init__(self, model: "UNETR", cache: Cache, config: Config, device: torch.device) -> None:
        """Prepare for training and scoring on rows of a cache that have masks (`segmentation.masked`).

        Args:
            model: on `device`.
        """
        assert cache.masks is not None, "the rows have masks"
        super().__init__(model, cache, config, device)
        self.masks = cache.masks

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
        lungs = inference.lungs(self.model, self.cache.images, rows, wants=self.input)
        return segmentation.mean_dice(lungs, self.masks[rows])


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the sum of the images' Dice loss and the pixels' binary cross-entropy (DiceCE, as in UNETR, 3.3).

    Both leave out ignored pixels.

    Args:
        logits: float32 [B, 1, H, W].
        masks: uint8 [B, 1, H, W]: 255 lung, 127 ignore, 0 background.
    """
    from monai.losses.dice import MaskedDiceLoss  # takes seconds to import

    known, lung = (masks != MASK_IGNORE).float(), (masks == MASK_LUNG).float()
    each = nn.functional.binary_cross_entropy_with_logits(logits, lung, reduction="none")
    entropy = (each * known).sum() / known.sum().clamp(min=1)
    return cast(Tensor, MaskedDiceLoss(sigmoid=True)(logits, lung, known)) + entropy


def build(encoder: VisionTransformer, spec: "Spec") -> "UNETR":
    """See `Kind`."""
    from sscxr.models.unetr import UNETR  # MONAI takes seconds to import

    return UNETR(encoder, patch_size=spec.model_args["patch_size"], feature_size=spec.feature_size)


def _split(cache: Cache, config: Config, sources: Sequence[str], note: Callable[[str], None]) -> Split:
    rows = finetune.usable(cache, laterals=config.data.laterals, sources=sources)
    shares = {"test_share": config.data.test_share, "val_share": config.finetune.val_share}
    return finetune.split(cache, segmentation.masked(cache, rows), **shares)


def _predict(
    model: nn.Module, wants: Input, cache: Cache, rows: Rows, known: Sequence[str], labels: Sequence[str]
) -> pd.DataFrame:
    """Return a segmenter's figures for each row; all rows have a mask; see `segmentation.measure`."""
    assert cache.masks is not None, "the rows have masks"
    lungs = inference.lungs(model, cache.images, rows, wants=wants)
    return segmentation.measure(lungs, cache.masks[rows], segmentation.mm_per_px(cache.index.iloc[rows]))


def _compare(
    first: Any, second: Any, cache: Cache, rows: Rows, labels: Sequence[str], **settings: Any
) -> tuple[list[Figures], Figures]:
    groups = cache.index["group"].to_numpy()[rows]
    each = [segmentation.figures(predicted, groups, **settings) for predicted in (first, second)]
    return each, segmentation.difference(first, second, groups, **settings)


KIND = Kind(
    noun="segmenter",
    verb="Outlines the",
    score="Dice",
    shown=segmentation.FIGURES,
    by_source=True,
    labels=lambda config: ["lung"],
    build=build,
    split=_split,
    task=lambda model, cache, config, device, train: Segmentation(model, cache, config, device),
    judgeable=lambda cache, rows, labels: (segmentation.masked(cache, rows), []),
    predict=_predict,
    settings=lambda config: {"resamples": config.probe.resamples},
    evaluate=lambda predicted, cache, rows, labels, **settings: segmentation.evaluate(
        predicted, cache.index.iloc[rows], **settings
    ),
    compare=_compare,
)
