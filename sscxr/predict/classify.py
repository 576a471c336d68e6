"""A classifier's predictions of a file: a probability a label, and saliency maps if requested."""

from collections.abc import Collection
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from sscxr.data.pixels.decode import Prepared
from sscxr.finetuning.judge import Opened
from sscxr.models import inference
from sscxr.models.classifier import Classifier
from sscxr.predict import overlay, reading, saliency
from sscxr.predict.reading import Read, Without

OPTIONS, DRAWS = ("--saliency",), False
MOST_MAPS = 3  # saliency maps per file, for the likeliest labels


def columns(labels: list[str], options: Collection[str]) -> list[str]:
    """Return the columns of the table."""
    return [*labels, *["saliency"] * ("--saliency" in options)]


def write(
    opened: Opened, file: Read, prepared: Prepared, out: Path, options: Collection[str], without: Without
) -> tuple[dict[str, str], list[str]]:
    """Return the row's fields, and warnings; write the maps."""
    predicted = inference.probabilities(opened.model, prepared.image[None], wants=opened.input)[0]
    labels, named = opened.spec.labels, {}
    if "--saliency" in options:
        likeliest = np.argsort(-predicted, kind="stable")[:MOST_MAPS]
        maps = [
            reading.to_original(heat(opened, prepared.image, int(label)), prepared) for label in likeliest
        ]
        captions = [f"{labels[label]} {predicted[label]:.2f}" for label in likeliest]
        picture = overlay.heated(reading.levels(prepared), maps, captions)
        picture.save(out / f"{file.name}_saliency.png")
        named = {"saliency": f"{file.name}_saliency.png"}
    return {label: f"{value:.6f}" for label, value in zip(labels, predicted, strict=True)} | named, []


def heat(opened: Opened, image: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.float32]:
    """Return a classifier's saliency map of a square 8-bit image [S, S], float32 [S, S]."""
    found = saliency.relevance(cast(Classifier, opened.model), opened.input.of(image[None]), label)
    upsampled = inference.upsampled(found[:, None], len(image))[0, 0]
    return cast(npt.NDArray[np.float32], upsampled.cpu().numpy())
