"""Predictions of a fine-tuned model for image files: probabilities, masks, and pictures to check them.

predictions.csv     one row per file: classify: a probability per label; segment: the lungs' share of the image
NAME_saliency.png   classify, if requested: the parts of the image that support the likeliest labels
NAME_mask.png       segment: 255 lung, 0 background, pixel for pixel as the file stores them
NAME_overlay.png    segment: the lungs' outline, the image upright as a viewer shows it
NAME_seg.dcm        segment, if requested, for DICOM files: the mask as DICOM Segmentation
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from sscxr import files, printable
from sscxr.data.pixels import parsing
from sscxr.data.pixels.decode import Prepared
from sscxr.data.pixels.greyscale import turn_back
from sscxr.finetuning import finetuned, judge
from sscxr.finetuning.judge import Opened
from sscxr.models import inference
from sscxr.models.classifier import Classifier
from sscxr.predict import dicom_seg, overlay, reading, saliency
from sscxr.predict.reading import Read, ReadingError

TABLE = "predictions.csv"
MOST_MAPS = 3  # saliency maps per file, for the likeliest labels

Row = dict[str, str]
Mask = npt.NDArray[np.bool_]


@dataclass
class Predicted:
    """The outcome of a prediction.

    Attributes:
        rows: those of the table.
        failed: files that could not be used, and why.
        without_seg: DICOM files that have a mask but no DICOM SEG, and why.
    """

    rows: list[Row] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    without_seg: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Return how many files did not fail."""
        return len(self.rows) - len(self.failed)


def predict(
    model: str | Path,
    paths: Sequence[Path],
    out: Path,
    *,
    with_saliency: bool = False,
    with_seg: bool = False,
    overwrite: bool = False,
    on_file: Callable[[int, int, Read], None] = lambda done, total, file: None,
) -> Predicted:
    """Predict files one by one, and write the files that the module's docstring lists.

    Args:
        model: the folder of a fine-tuned model.
        paths: DICOM, PNG and JPEG files, folders of them, and manifests.
        out: a new or empty folder.
        with_saliency: write a classifier's saliency maps.
        with_seg: write a segmenter's masks of DICOM files as DICOM SEG too.
        overwrite: write into a folder that holds earlier predictions.
        on_file: called after each file.

    Returns:
        The table's rows, and the files that could not be used; the others are predicted all the same.

    Raises:
        ReadingError, FinetunedError, DicomSegError ...: no file could be predicted.
    """
    opened = judge.open_model(model)
    classifies = opened.spec.task == "classify"
    if (with_saliency and not classifies) or (with_seg and classifies):
        option, task = ("--saliency", "classify") if with_saliency else ("--dicom-seg", "segment")
        raise ReadingError(f"{option} needs a model made to {task}; {model} is made to {opened.spec.task}")
    if with_seg:
        dicom_seg.require()
    _refuse(out, overwrite=overwrite)
    listed = reading.files(paths, skip=out)
    out.mkdir(parents=True, exist_ok=True)
    sha256 = files.sha256(Path(model) / finetuned.WEIGHTS)
    columns = ["lung_share", "mask", "overlay", "dicom_seg"]
    if classifies:
        columns = [*opened.spec.labels, *["saliency"] * with_saliency]
    found = Predicted()
    try:
        drawn = with_saliency or not classifies
        for number, file in enumerate(reading.read(listed, size=opened.cache_size, whole=drawn), 1):
            row = {"file": str(file.file)}
            if file.prepared is None:
                found.failed.append((file.file, file.problem))
                row["warnings"] = f"not predicted: {file.problem}"
            else:
                warnings = _doubts(opened, file.prepared)
                if classifies:
                    row |= _classified(opened, file, file.prepared, out, with_saliency=with_saliency)
                else:
                    segmented, mask = _segmented(opened, file, file.prepared, out, warnings)
                    row |= segmented
                    if with_seg and parsing.is_dicom(file.file):
                        row |= _as_seg(file, mask, out, sha256, warnings, found)
                row["warnings"] = "; ".join(warnings)
            found.rows.append(row)
            on_file(number, len(listed), file)
    finally:  # after Ctrl-C too
        _write(out / TABLE, ["file", *columns, "warnings"], found.rows)
    return found


def _doubts(opened: Opened, prepared: Prepared) -> list[str]:
    doubts = list(prepared.facts.warnings)
    if prepared.facts.view == "L" and not opened.config.data.laterals:
        doubts.append("a lateral view; the model learned from frontal ones")
    return doubts


def _classified(
    opened: Opened, file: Read, prepared: Prepared, out: Path, *, with_saliency: bool
) -> dict[str, str]:
    predicted = judge.probabilities(opened, prepared.image[None])[0]
    labels, named = opened.spec.labels, {}
    if with_saliency:
        likeliest = np.argsort(-predicted, kind="stable")[:MOST_MAPS]
        maps = [
            reading.to_original(heat(opened, prepared.image, int(label)), prepared) for label in likeliest
        ]
        captions = [f"{labels[label]} {predicted[label]:.2f}" for label in likeliest]
        picture = overlay.heated(_levels(prepared), maps, captions)
        picture.save(out / f"{file.name}_saliency.png")
        named = {"saliency": f"{file.name}_saliency.png"}
    return {label: f"{value:.6f}" for label, value in zip(labels, predicted, strict=True)} | named


def heat(opened: Opened, image: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.float32]:
    """Return a classifier's saliency map of a square 8-bit image [S, S], float32 [S, S]."""
    found = saliency.relevance(cast(Classifier, opened.model), opened.input.of(image[None]), label)
    upsampled = inference.upsampled(found[:, None], len(image))[0, 0]
    return cast(npt.NDArray[np.float32], upsampled.cpu().numpy())


def _segmented(
    opened: Opened, file: Read, prepared: Prepared, out: Path, warnings: list[str]
) -> tuple[dict[str, str], Mask]:
    """Return the row's fields, and the mask as the file stores its pixels; write the mask and its outline."""
    outputs = inference.batches(opened.model, opened.model, prepared.image[None], None, opened.input)
    logits = inference.upsampled(next(outputs), len(prepared.image))[0, 0].cpu().numpy()
    mask = reading.to_original(logits, prepared) > 0
    stored = turn_back(mask, prepared.turning)
    names = {"mask": f"{file.name}_mask.png", "overlay": f"{file.name}_overlay.png"}
    Image.fromarray(stored.astype(np.uint8) * 255).save(out / names["mask"])
    overlay.outlined(_levels(prepared), mask).save(out / names["overlay"])
    if not mask.any():
        warnings.append("no lung found")
    return {"lung_share": f"{mask.mean():.6f}"} | names, stored


def _levels(prepared: Prepared) -> npt.NDArray[np.uint8]:
    assert prepared.levels is not None, "requested if a picture is drawn"
    return prepared.levels


def _as_seg(
    file: Read, mask: Mask, out: Path, sha256: str, warnings: list[str], found: Predicted
) -> dict[str, str]:
    try:
        dicom_seg.write(file.file, mask, out / f"{file.name}_seg.dcm", model=sha256)
    except dicom_seg.DicomSegError as error:
        warnings.append(str(error))
        found.without_seg.append((file.file, str(error)))
        return {}
    return {"dicom_seg": f"{file.name}_seg.dcm"}


def _refuse(out: Path, *, overwrite: bool) -> None:
    if out.is_file():
        raise ReadingError(f"--out {out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / TABLE).is_file():
        raise ReadingError(f"{out} holds something other than predictions; choose another folder")
    if not overwrite:
        raise ReadingError(f"{out} holds predictions; choose another folder, or give --force")


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = printable.table(columns, ([row.get(name, "") for name in columns] for row in rows))
    files.write_atomically(path, text.encode("utf-8", "surrogateescape"))
