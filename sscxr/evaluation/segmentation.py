"""Evaluation of lung masks: Dice and the 95 % Hausdorff distance, with intervals over patients.

Both are measured at the cache's resolution, image by image, and averaged. Ignored pixels are removed from both
masks, as if they were background. If the truth is then empty, an empty prediction is right (Dice 1, distance 0)
and any other wrong (Dice 0). If only one of the two is empty, it has no outline, and the distance is the longest
possible one, the square's diagonal, so a model that finds no lung gains nothing. Empty masks are counted.
"""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from sscxr.data.cache.cache import Cache, CacheError
from sscxr.data.pixels.pictures import MASK_IGNORE, MASK_LUNG
from sscxr.data.rows import Rows
from sscxr.evaluation import metrics
from sscxr.evaluation.classification import by_subgroup

Bools = npt.NDArray[np.bool_]
Masks = npt.NDArray[np.uint8]

FIGURES = ("dice", "hd95_px", "hd95_mm")
_EMPTY = ("empty_predictions", "empty_truths")


def masked(cache: Cache, rows: Rows) -> Rows:
    """Return those of some rows whose image has a mask.

    Raises:
        CacheError: the cache or these rows have no mask, or masks and images differ in size.
    """
    if cache.masks is None:
        raise CacheError(
            f"cache {cache.folder} has no masks; name them in a manifest's column `mask`, and prepare it again"
        )
    if cache.masks.shape != cache.images.shape:
        raise CacheError(
            f"cache {cache.folder} is inconsistent: masks of {cache.masks.shape[1:]} px for images of "
            f"{cache.images.shape[1:]} px; prepare it again"
        )
    has = (cache.index["has_mask"] == 1).to_numpy()
    found = rows[has[rows]]
    if not len(found):
        where = ", ".join(sorted(cache.index["source"][has].unique()))
        raise CacheError(
            f"none of these {len(rows)} images of cache {cache.folder} has a mask; images of {where} do"
        )
    return found


def measure(predicted: Bools, masks: Masks, mm_per_px: npt.NDArray[np.floating[Any]]) -> pd.DataFrame:
    """Return the figures of each image.

    Args:
        predicted: bool [N, S, S], lung.
        masks: uint8 [N, S, S], as in a cache: 255 lung, 127 ignore, 0 background.
        mm_per_px: float [N], of the cache; NaN: unknown.

    Returns:
        N rows: `dice` (0..1), `hd95_px`, `hd95_mm` (NaN where the spacing is unknown), and bool
        `empty_predictions`, `empty_truths`. All are NaN or False where every pixel is ignored.

    Raises:
        ValueError: the shapes do not agree.
    """
    if predicted.shape != masks.shape or predicted.ndim != 3 or len(mm_per_px) != len(masks):
        raise ValueError(
            f"predicted {predicted.shape}, masks {masks.shape}, {len(mm_per_px)} spacings: expected [N, S, S] and N"
        )
    rows = [_of_image(*pair) for pair in zip(predicted, masks, strict=True)]
    found = pd.DataFrame(rows, columns=["dice", "hd95_px", *_EMPTY])
    found["hd95_mm"] = found["hd95_px"] * np.asarray(mm_per_px, dtype=np.float64)
    return found


def mean_dice(predicted: Bools, masks: Masks) -> float:
    """Return the mean Dice, in a fiftieth of the time of `measure`; arguments as there."""
    each = [
        dice(mine & (mask != MASK_IGNORE), mask == MASK_LUNG)
        for mine, mask in zip(predicted, masks, strict=True)
        if (mask != MASK_IGNORE).any()
    ]
    return float(np.mean(each)) if each else math.nan


def dice(predicted: Bools, truth: Bools) -> float:
    """Return the Dice coefficient, 0..1: twice the overlap over the sum of both areas; 1 if both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 1.0


def hd95(predicted: Bools, truth: Bools) -> float:
    """Return the 95 % Hausdorff distance of two outlines in px, by MONAI; see the module for empty ones."""
    if not predicted.any() or not truth.any():
        return math.hypot(*truth.shape) if predicted.any() or truth.any() else 0.0
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # takes seconds to import

    one, other = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # MONAI raises it for its own call
        return float(compute_hausdorff_distance(one, other, include_background=True, percentile=95))


def mm_per_px(index: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the cache's mm per pixel, float64 [N]; NaN if the original's spacing is unknown.

    They follow from the longer side, which is rounded least when an image is scaled into the square.
    """
    original = index[["height", "width"]].max(axis=1)
    scaled = index[["content_height", "content_width"]].max(axis=1)
    return (index["spacing_mm"] * original / scaled).to_numpy(dtype=np.float64)


def evaluate(measured: pd.DataFrame, index: pd.DataFrame, *, resamples: int = 1000) -> dict[str, Any]:
    """Return all figures of a segmenter on a set of images, in types that JSON has.

    Args:
        measured: the result of `measure`, N rows.
        index: a cache's index, the same N rows, with the patient groups and the columns of the subgroups.
        resamples: the bootstrap's.

    Returns:
        The result of `figures`, and `by`: source, view, sex and age_band -> value ("unknown" if empty) -> the
        result of `figures` for those images.
    """
    found = figures(measured, index["group"], resamples=resamples)

    def of(rows: Bools) -> dict[str, Any]:
        return figures(measured[rows], index["group"][rows], resamples=resamples)

    return found | {"by": by_subgroup(index, of)}


def figures(
    measured: pd.DataFrame, groups: npt.ArrayLike, *, resamples: int = 1000, test: bool = False
) -> dict[str, Any]:
    """Return means over images with 95 % intervals over patients.

    Args:
        groups: [N]. The others as in `evaluate`.
        test: add `p` to each figure, for the test that it is 0.

    Returns:
        Each of `FIGURES`: {value, low, high, n}, n the images that have it; value, low and high are null if
        none has. Then counts: images `n`, `patients`, `empty_predictions`, `empty_truths`.
    """
    groups = np.asarray(groups)
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = measured[name].to_numpy(dtype=np.float64)
        has = np.isfinite(values)
        found[name] = _mean(values[has], groups[has], resamples, test=test)
    counts = {name: int(measured[name].sum()) for name in _EMPTY if name in measured}
    return found | {"n": len(measured), "patients": len(set(groups))} | counts


def difference(
    measured: pd.DataFrame, baseline: pd.DataFrame, groups: npt.ArrayLike, *, resamples: int = 1000
) -> dict[str, Any]:
    """Return one segmenter's figures minus another's on the same images, by a paired bootstrap over patients.

    A higher Dice is better, a shorter distance is better. Arguments and result as in `figures`, without the counts
    of empty masks; each figure also has `p`, for the test that the difference is 0 (null if no image has the
    figure).
    """
    gains = measured[list(FIGURES)].reset_index(drop=True) - baseline[list(FIGURES)].reset_index(drop=True)
    return figures(gains, groups, resamples=resamples, test=True)


def _of_image(predicted: Bools, mask: Masks) -> tuple[float, float, bool, bool]:
    known = mask != MASK_IGNORE
    if not known.any():
        return math.nan, math.nan, False, False
    predicted, truth = predicted & known, mask == MASK_LUNG
    return dice(predicted, truth), hd95(predicted, truth), not predicted.any(), not truth.any()


def _mean(
    values: npt.NDArray[np.float64], groups: npt.NDArray[Any], resamples: int, *, test: bool
) -> dict[str, Any]:
    mean, drawn = math.nan, np.empty(0)
    if len(values):
        # A row of weights is never all zero: some group is always drawn, and each has an image.
        chunks = [weights @ values / weights.sum(axis=1) for weights in metrics.resampled(groups, resamples)]
        mean, drawn = float(values.mean()), np.concatenate(chunks)
    p = {"p": metrics.plain(metrics.p_value(drawn))} if test else {}
    return metrics.figure(mean, drawn, len(values)) | p
