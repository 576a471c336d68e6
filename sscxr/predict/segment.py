"""A segmenter's predictions of a file: the mask, its outline, and DICOM SEG if requested."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from sscxr.data.pixels import parsing
from sscxr.data.pixels.decode import Prepared
from sscxr.data.pixels.greyscale import turn_back
from sscxr.finetuning.judge import Opened
from sscxr.models import inference
from sscxr.predict import dicom_seg, overlay, reading
from sscxr.predict.reading import Read, Without

OPTIONS, DRAWS = ("--dicom-seg",), True


def columns(labels: list[str], options: Collection[str]) -> list[str]:
    """Return the columns of the table; refuse DICOM SEG if it cannot be written."""
    if "--dicom-seg" in options:
        dicom_seg.require()
    return ["lung_share", "mask", "overlay", "dicom_seg"]


def write(
    opened: Opened, file: Read, prepared: Prepared, out: Path, options: Collection[str], without: Without
) -> tuple[dict[str, str], list[str]]:
    """Return the row's fields, and warnings; write the mask as the file stores its pixels, and its outline."""
    outputs = inference.batches(opened.model, opened.model, prepared.image[None], None, opened.input)
    logits = inference.upsampled(next(outputs), len(prepared.image))[0, 0].cpu().numpy()
    mask = reading.to_original(logits, prepared) > 0
    stored = turn_back(mask, prepared.turning)
    names = {"mask": f"{file.name}_mask.png", "overlay": f"{file.name}_overlay.png"}
    Image.fromarray(stored.astype(np.uint8) * 255).save(out / names["mask"])
    overlay.outlined(reading.levels(prepared), mask).save(out / names["overlay"])
    warnings = [] if mask.any() else ["no lung found"]
    if "--dicom-seg" in options and parsing.is_dicom(file.file):
        try:
            dicom_seg.write(file.file, stored, out / f"{file.name}_seg.dcm", model=opened.sha256)
            names["dicom_seg"] = f"{file.name}_seg.dcm"
        except dicom_seg.DicomSegError as error:
            warnings.append(str(error))
            without.append((file.file, str(error)))
    return {"lung_share": f"{mask.mean():.6f}"} | names, warnings
