"""Predictions of a fine-tuned model for image files: probabilities, masks, and pictures to check them.

predictions.csv     one row per file: classify: a probability per label; segment: the lungs' share of the image
NAME_saliency.png   classify, if requested: the parts of the image that support the likeliest labels
NAME_mask.png       segment: 255 lung, 0 background, pixel for pixel as the file stores them
NAME_overlay.png    segment: the lungs' outline, the image upright as a viewer shows it
NAME_seg.dcm        segment, if requested, for DICOM files: the mask as DICOM Segmentation
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from sscxr import files, printable
from sscxr.data.pixels.decode import Prepared
from sscxr.finetuning import KINDS, judge
from sscxr.finetuning.judge import Opened
from sscxr.predict import reading
from sscxr.predict.reading import Read, ReadingError, Without

TABLE = "predictions.csv"

Row = dict[str, str]


@dataclass
class Predicted:
    """The outcome of a prediction.

    Attributes:
        rows: those of the table.
        failed: files that could not be used, and why.
        without_seg: DICOM files that have a mask but no DICOM SEG, and why.
    """

    rows: list[Row] = field(default_factory=list)
    failed: Without = field(default_factory=list)
    without_seg: Without = field(default_factory=list)

    @property
    def done(self) -> int:
        """Return how many files did not fail."""
        return len(self.rows) - len(self.failed)


def predict(
    model: str | Path,
    paths: Sequence[Path],
    out: Path,
    *,
    options: Collection[str] = (),
    overwrite: bool = False,
    on_file: Callable[[int, int, Read], None] = lambda done, total, file: None,
) -> Predicted:
    """Predict files one by one, and write the files that the module's docstring lists.

    Args:
        model: the folder of a fine-tuned model.
        paths: DICOM, PNG and JPEG files, folders of them, and manifests.
        out: a new or empty folder.
        options: "--saliency": write a classifier's saliency maps; "--dicom-seg": write a segmenter's masks of DICOM
            files as DICOM SEG too.
        overwrite: write into a folder that holds earlier predictions.
        on_file: called after each file.

    Returns:
        The table's rows, and the files that could not be used; the others are predicted all the same.

    Raises:
        ReadingError, FinetunedError, DicomSegError ...: no file could be predicted.
    """
    opened = judge.open_model(model)
    task = _task(opened.spec.task)
    for option in options:
        if option not in task.OPTIONS:
            wanted = next(name for name in KINDS if option in _task(name).OPTIONS)
            raise ReadingError(
                f"{option} needs a model made to {wanted}; {model} is made to {opened.spec.task}"
            )
    columns, drawn = task.columns(opened.spec.labels, options), task.DRAWS or bool(options)
    _refuse(out, overwrite=overwrite)
    listed = reading.files(paths, skip=out)
    out.mkdir(parents=True, exist_ok=True)
    found = Predicted()
    try:
        for number, file in enumerate(reading.read(listed, size=opened.cache_size, whole=drawn), 1):
            row = {"file": str(file.file)}
            if file.prepared is None:
                found.failed.append((file.file, file.problem))
                row["warnings"] = f"not predicted: {file.problem}"
            else:
                fields, warnings = task.write(opened, file, file.prepared, out, options, found.without_seg)
                row |= fields | {"warnings": "; ".join([*_doubts(opened, file.prepared), *warnings])}
            found.rows.append(row)
            on_file(number, len(listed), file)
    finally:  # after Ctrl-C too
        names = ["file", *columns, "warnings"]
        text = printable.table(names, ([row.get(name, "") for name in names] for row in found.rows))
        files.write_atomically(out / TABLE, text.encode("utf-8", "surrogateescape"))
    return found


def _task(name: str) -> Any:
    """Return the module of a task's name: `OPTIONS`, `columns`, `write`, and whether it always `DRAWS`."""
    return import_module(f"sscxr.predict.{name}")


def _doubts(opened: Opened, prepared: Prepared) -> list[str]:
    doubts = list(prepared.facts.warnings)
    if prepared.facts.view == "L" and not opened.config.data.laterals:
        doubts.append("a lateral view; the model learned from frontal ones")
    return doubts


def _refuse(out: Path, *, overwrite: bool) -> None:
    if out.is_file():
        raise ReadingError(f"--out {out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / TABLE).is_file():
        raise ReadingError(f"{out} holds something other than predictions; choose another folder")
    if not overwrite:
        raise ReadingError(f"{out} holds predictions; choose another folder, or give --force")
