"""Compares how DICOM files are read here with dcmtk's dcm2pnm: `python bench/decoders.py [FOLDER]`.

Without a folder it reads the test files that pydicom ships. Most are not chest radiographs, so their headers are
replaced by those of one first, and their orientation is not judged; the pixels and their description are unchanged.
dcm2pnm does not read JPEG 2000, so such a file of NEMA's WG04 set (`CT1_J2KR`) is compared with another form of the
same picture (`CT1_RLE`) that dcm2pnm reads.
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

from sscxr.data.pixels.decode import Prepared, Task, attempt

SIZE = 128
MATCH = 0.98  # of the correlation with dcm2pnm's picture


def picture(file: Path, scratch: Path, *, window: bool) -> npt.NDArray[np.uint8] | None:
    """Return the grey picture that dcm2pnm makes of a file's first frame; None if it makes none.

    Args:
        window: use the header's first window; else the range from the darkest to the brightest pixel.
    """
    out = scratch / "theirs.pgm"
    out.unlink(missing_ok=True)
    for program in ("dcm2pnm", "dcmj2pnm", "dcml2pnm"):
        command = [program, *(("+Wi", "1") if window else ("+Wm",)), str(file), str(out)]
        try:
            subprocess.run(command, capture_output=True, timeout=20, check=False)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
        if out.exists() and out.stat().st_size:
            return np.asarray(Image.open(out).convert("L"))
    return None


def as_chest(file: Path, to: Path) -> pydicom.Dataset | None:
    """Write a file with a chest radiograph's header to `to`; return None if pydicom cannot write it."""
    try:
        image = pydicom.dcmread(file, force=True)
        if "PixelData" not in image:
            return None
        image.Modality, image.BodyPartExamined = "CR", "CHEST"
        image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        image.PatientOrientation = None  # dcm2pnm leaves a picture as it is stored
        image.save_as(to)
    except Exception:  # pydicom raises anything on the files that are broken on purpose
        return None
    return image


def alike(ours: Prepared, theirs: npt.NDArray[np.uint8]) -> float:
    """Return the correlation of a prepared image with another decoder's picture of it."""
    rows = slice(ours.top, ours.top + ours.content_height)
    content = ours.image[rows, ours.left : ours.left + ours.content_width]
    side = Image.fromarray(theirs).resize(content.shape[::-1], Image.Resampling.BOX)
    return float(np.corrcoef(np.ravel(side), np.ravel(content))[0, 1])


def main() -> None:
    given = sys.argv[1:]
    folder = Path(given[0]) if given else Path(pydicom.__file__).parent / "data" / "test_files"
    counts: collections.Counter[str] = collections.Counter()
    pictures: dict[str, npt.NDArray[np.uint8]] = {}  # of dcm2pnm, by the beginning of the name
    alone: list[tuple[str, Prepared]] = []
    with tempfile.TemporaryDirectory() as made:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise SystemExit(f"{folder} is not a folder with files")
        for file in files:
            chest = Path(made) / "chest.dcm"
            image = as_chest(file, chest)
            if image is None:
                counts["not a picture, or not writable"] += 1
                continue
            theirs = picture(chest, Path(made), window="WindowCenter" in image)
            ours = attempt(Task(chest, None, "L", SIZE, 50_000_000))  # how a lateral lies is not judged
            if theirs is not None:
                pictures.setdefault(_of_wg04(file.name), theirs)
            if not isinstance(ours, Prepared):
                print(f"{file.name}: {ours} ({'read' if theirs is not None else 'not read'} by dcm2pnm)")
                counts[f"refused: {re.split('[:(]', str(ours))[0].strip()}"] += 1
                continue
            counts["read"] += 1
            if theirs is None:
                alone.append((file.name, ours))
            else:
                counts["read by both"] += 1
                _compare(file.name, ours, theirs, counts)
    for name, ours in alone:
        if (same := _of_wg04(name)) and same in pictures:
            counts["compared with the same picture in another form"] += 1
            _compare(name, ours, pictures[same], counts)
    print(*(f"{n:4} {what}" for what, n in counts.most_common()), sep="\n")


def _of_wg04(name: str) -> str:
    """Return the picture of the WG04 set that a file holds, such as "CT1"; empty: none."""
    found = re.match(r"([A-Z]{2}\d)_[A-Z0-9]{3,4}\b", name)
    return found[1] if found else ""


def _compare(
    name: str, ours: Prepared, theirs: npt.NDArray[np.uint8], counts: collections.Counter[str]
) -> None:
    r = alike(ours, theirs)
    counts[f"r > {MATCH}"] += r > MATCH
    if r <= MATCH:
        print(f"{name}: r = {r:.3f}")


if __name__ == "__main__":
    main()
