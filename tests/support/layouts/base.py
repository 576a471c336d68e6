"""What layouts share: tables as published or written, pictures and masks, and the count of what there is."""

import csv
import gzip
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import chest, dataset, save
from PIL import Image

Row = dict[str, str]


@dataclass
class Truth:
    """What a corpus holds: images of patients, by view (in the cache's words) and by label (present, absent)."""

    patients: set[str] = field(default_factory=set)
    views: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=dict)
    tests: int = 0
    masks: int = 0
    images: int = 0
    hospitals: Counter[str] = field(default_factory=Counter)

    def add(
        self, patient: str, view: str, *, test: bool = False, hospital: str = "", **labels: int | None
    ) -> None:
        self.images += 1
        self.patients.add(patient)
        self.views[view] += 1
        self.tests += test
        self.hospitals[hospital] += 1
        for name, value in labels.items():
            if value is not None:
                self.labels.setdefault(name, Counter())[value] += 1


def shipped(name: str) -> Iterator[Row]:
    """The rows of a table that torchxrayvision brings, as they stand."""
    package = find_spec("torchxrayvision")
    if package is None or not package.submodule_search_locations:
        pytest.skip("torchxrayvision is not installed")
    path = Path(package.submodule_search_locations[0]) / "data" / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = io.TextIOWrapper(archive.open(archive.namelist()[0]), encoding="utf-8")
            yield from csv.DictReader(text)
    else:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def write_table(path: Path, rows: list[Row], *, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()) if packed else text.getvalue().encode())


_seeds = count(1)


def picture(path: Path, *, bits: int = 8, **tags: Any) -> None:
    """A phantom that no other file has, in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed, kind = next(_seeds), path.suffix.lower()
    if kind in (".dcm", ".dicom"):
        save(dataset(chest(96, 80, seed=seed), **{"PatientAge": None, "PatientSex": None, **tags}), path)
    elif kind == ".img":
        small = 4095 - chest(128, 128, seed=seed)
        small.repeat(16, axis=0).repeat(16, axis=1).astype(">u2").tofile(path)
    elif bits == 16:
        Image.fromarray(chest(96, 80, bits=16, seed=seed).astype(np.uint16)).save(path)
    else:
        Image.fromarray(chest(96, 80, bits=8, seed=seed).astype(np.uint8)).save(path)


def mask(path: Path, left: bool, shape: tuple[int, int] = (96, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.zeros(shape, dtype=np.uint8)
    column = (
        slice(shape[1] * 6 // 10, shape[1] * 9 // 10) if left else slice(shape[1] // 10, shape[1] * 4 // 10)
    )
    drawn[shape[0] // 4 : shape[0] * 3 // 4, column] = 255
    Image.fromarray(drawn).save(path)
