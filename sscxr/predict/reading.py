"""Files given on a command line, read as `prepare` reads them, one at a time; what fails does not stop the rest."""

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
_LONGEST = 220  # bytes of a name, which is a file's with more behind it; file systems allow 255


class ReadingError(SscxrError):
    """Nothing to read, or nowhere to write what is found: one line that says why."""


@dataclass(frozen=True)
class Read:
    """One file, or why it cannot be used.

    Attributes:
        file: as it was named, or below the folder that was.
        name: its name without the ending, cut where it is very long, with a number where another file has the same.
        prepared: the image as a cache would keep it; None where the file is refused.
        problem: why, where it is.
    """

    file: Path
    name: str
    prepared: Prepared | None
    problem: str = ""


def files(paths: Sequence[Path], *, skip: Path | None = None) -> list[tuple[Path, str]]:
    """Each file, and why it cannot be read where that is known already; folders are searched to the bottom.

    Args:
        paths: files, folders and manifests (`.csv`).
        skip: a folder that is left out.

    Raises:
        ReadingError: no file in any of them.
        ManifestError: a manifest that cannot be used.
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
    """Read files, in their order, each in a process that may die of it.

    Args:
        listed: what `files` returned.
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
    """A name for each file, as `Read` has it."""
    names: list[str] = []
    taken: set[str] = set()
    for file in listed:
        # A DICOM file is often named by its UID alone, whose last number is no ending.
        stem = file.stem if file.suffix.lower() in _ENDINGS else file.name
        stem = os.fsdecode(os.fsencode(stem)[:_LONGEST])
        name, number = stem, 1
        while name.lower() in taken:  # alike where case does not count
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def to_original(square: npt.NDArray[np.float32], prepared: Prepared) -> npt.NDArray[np.float32]:
    """Values on the padded square brought back to the original's pixels, bilinearly.

    Args:
        square: float32 [S, S].
        prepared: where the image lies in the square, and how large it was.

    Returns:
        float32 [height, width], upright.
    """
    rows = slice(prepared.top, prepared.top + prepared.content_height)
    columns = slice(prepared.left, prepared.left + prepared.content_width)
    content = Image.fromarray(np.ascontiguousarray(square[rows, columns], dtype=np.float32))
    return np.asarray(content.resize((prepared.width, prepared.height), Image.Resampling.BILINEAR))
