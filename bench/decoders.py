"""Compares how DICOM files are read here with dcmtk's dcm2pnm: `python bench/decoders.py [FOLDER]`.

Without a folder the test files that pydicom ships are read. Their headers are made those of a chest radiograph
first, as most are of other kinds; the pixels and what describes them stay as they were.
"""

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from sscxr.data.decode import Prepared, Task, attempt

SIZE = 128
MATCH = 0.98  # of the correlation with dcm2pnm's picture


def picture(file: Path, scratch: Path) -> npt.NDArray[np.uint8] | None:
    """The grey picture that dcm2pnm makes of a file's first frame; None where it makes none."""
    out = scratch / "theirs.pgm"
    out.unlink(missing_ok=True)
    for program in ("dcm2pnm", "dcmj2pnm", "dcml2pnm"):
        try:
            subprocess.run(
                [program, "+Wm", str(file), str(out)], capture_output=True, timeout=20, check=False
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
        if out.exists() and out.stat().st_size:
            return np.asarray(Image.open(out).convert("L"))
    return None


def as_chest(file: Path, to: Path) -> bool:
    """Writes a file with a chest radiograph's header to `to`; False where pydicom cannot write it."""
    try:
        image = pydicom.dcmread(file, force=True)
        if "PixelData" not in image:
            return False
        image.Modality, image.BodyPartExamined = "CR", "CHEST"
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        image.save_as(to)
    except Exception:  # pydicom raises anything on the files that are broken on purpose
        return False
    return True


def main() -> None:
    given = sys.argv[1:]
    folder = Path(given[0]) if given else Path(pydicom.__file__).parent / "data" / "test_files"
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as made:
        for file in sorted(folder.rglob("*.dcm")):
            chest = Path(made) / "chest.dcm"
            if not as_chest(file, chest):
                counts["not a picture, or not writable"] += 1
                continue
            theirs = picture(chest, Path(made))
            ours = attempt(Task(chest, None, "", SIZE, 50_000_000))
            if not isinstance(ours, Prepared):
                print(f"{file.name}: {ours} ({'read' if theirs is not None else 'not read'} by dcm2pnm)")
                counts[f"refused: {re.split('[:(]', str(ours))[0].strip()}"] += 1
                continue
            counts["read"] += 1
            if theirs is None:
                continue
            counts["read by both"] += 1
            rows = slice(ours.top, ours.top + ours.content_height)
            content = ours.image[rows, ours.left : ours.left + ours.content_width]
            side = Image.fromarray(theirs).resize(content.shape[::-1], Image.Resampling.BOX)
            r = float(np.corrcoef(np.ravel(side), np.ravel(content))[0, 1])
            counts[f"r > {MATCH}"] += r > MATCH
            if r <= MATCH:
                print(f"{file.name}: r = {r:.3f}")
    print(*(f"{n:4} {what}" for what, n in counts.most_common()), sep="\n")


if __name__ == "__main__":
    main()
