"""Folders as a hospital exports them, and the caches that are prepared from them."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dicoms import chest, dataset, save
from PIL import Image

from sscxr.data.cache.cache import Cache
from sscxr.data.prepare.prepare import prepare

SALT = bytes(range(32))
Bytes = npt.NDArray[np.uint8]


def picture(seed: int, height: int = 120, width: int = 100) -> Bytes:
    return chest(height, width, bits=8, seed=seed).astype(np.uint8)


def write(path: Path, pixels: Bytes, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def run(sources: object, out: Path, **options: object) -> Cache:
    listed = sources if isinstance(sources, list) else [sources]
    return prepare(listed, out, **{"size": 64, "workers": 0, "progress": False, "salt": SALT} | options)  # type: ignore[arg-type]


def quarantine(cache: Path) -> dict[str, str]:
    with (cache / "quarantine.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["file", "reason"]
        return {Path(row["file"]).name: row["reason"] for row in reader}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "lock"
    }


def make(folder: Path) -> Path:
    """A folder of all kinds: pictures, a JPEG, DICOM with and without its ending."""
    (folder / "dicom").mkdir(parents=True)
    for number in range(4):
        write(folder / "pictures" / f"{number}.png", picture(number))
    write(folder / "pictures" / "photo.jpg", picture(5), quality=95)
    for number in range(6, 9):
        name = "IM0001" if number == 6 else f"{number}.dcm"
        patient = "P-1" if number < 8 else "P-2"
        save(dataset(chest(seed=number), PatientID=patient), folder / "dicom" / name)
    return folder
