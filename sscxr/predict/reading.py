"""Files from a command line, read one at a time as `prepare` reads them; a failure does not stop the others."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sscxr.data.pixels import decode, dicom
from sscxr.data.pixels.decode import Prepared
from sscxr.data.pixels.facts import Refused
from sscxr.data.prepare import listing, pool
from sscxr.errors import SscxrError

WORKERS = 1  # the model waits for a file, not a file for the model
_ENDINGS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
_LONGEST = 220  # bytes of a name, to which suffixes are added; file systems allow 255

Without = list[tuple[Path, str]]  # files that lack something, with the reason


class ReadingError(SscxrError):
    """There is nothing to read, or the results cannot be written; one line states why."""


@dataclass(frozen=True)
class Read:
    """One file, or the reason why it cannot be used.

    Attributes:
        file: as it was named, or below the folder that was named.
        name: its name without the suffix, cut if it is very long, with a number if another file has the same.
        prepared: the image as a cache would keep it; None if the file is refused.
        problem: the reason, if it is.
    """

    file: Path
    name: str
    prepared: Prepared | None
    problem: str = ""


def files(paths: Sequence[Path], *, skip: Path | None = None) -> list[tuple[Path, str]]:
    """List each file, with the reason if it is known that it cannot be read; folders are searched recursively.

    Args:
        paths: files, folders and manifests (`.csv`).
        skip: a folder that is left out.

    Raises:
        ReadingError: there are no files.
        ManifestError: a manifest cannot be used.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            found[path] = "no such file or folder"
            continue
        for item in listing.collect([path], labels=None, skip=skip).items:
            named = path.is_file() and path.suffix.lower() != ".csv"
            found.setdefault(path if named else item.file, item.problem)
    if not found:
        raise ReadingError(f"no files in {', '.join(map(str, paths))}")
    return list(found.items())


def read(listed: Sequence[tuple[Path, str]], *, size: int, whole: bool = False) -> Iterator[Read]:
    """Read files in their order, each in a worker process that a file may crash.

    Args:
        listed: the result of `files`.
        size: px a side of the squares.
        whole: keep each image at its own resolution too.
    """
    names = _names([file for file, _ in listed])
    usable = [file for file, problem in listed if not problem]
    tasks = (decode.Task(file, None, "", size, dicom.MAX_PIXELS, whole=whole) for file in usable)
    outcomes = pool.in_order(tasks, min(WORKERS, len(usable)))
    for (file, problem), name in zip(listed, names, strict=True):
        outcome = None if problem else next(outcomes)
        if outcome is None or isinstance(outcome, Refused):
            yield Read(file, name, None, problem or str(outcome))
        else:
            yield Read(file, name, outcome)


def _names(listed: Sequence[Path]) -> list[str]:
    """Return the name of each file, see `Read`."""
    names: list[str] = []
    taken: set[str] = set()
    for file in listed:
        # A DICOM file is often named by its UID alone, whose last number is not a suffix.
        stem = file.stem if file.suffix.lower() in _ENDINGS else file.name
        stem = os.fsdecode(os.fsencode(stem)[:_LONGEST])
        name, number = stem, 1
        while name.lower() in taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def to_original(square: npt.NDArray[np.float32], prepared: Prepared) -> npt.NDArray[np.float32]:
    """Bring values on the padded square back to the original's pixels, bilinearly.

    Args:
        square: float32 [S, S].
        prepared: has the image's place in the square, and its original size.

    Returns:
        float32 [height, width], upright.
    """
    rows = slice(prepared.top, prepared.top + prepared.content_height)
    columns = slice(prepared.left, prepared.left + prepared.content_width)
    content = Image.fromarray(np.ascontiguousarray(square[rows, columns], dtype=np.float32))
    return np.asarray(content.resize((prepared.width, prepared.height), Image.Resampling.BILINEAR))


def levels(prepared: Prepared) -> npt.NDArray[np.uint8]:
    """Return an image read as a whole, at its own resolution."""
    assert prepared.levels is not None, "requested if a picture is drawn"
    return prepared.levels
