"""One file to one square 8-bit image of the cache: the work of a worker process, and its refusals.

This module does not depend on caches, patients' hashes or other files, so it runs anywhere in any order.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sscxr.data.pixels import content, dicom, header, jsrt, mask_doubts, parsing, pictures, posture
from sscxr.data.pixels.facts import Facts, Refused
from sscxr.data.pixels.greyscale import AS_STORED, Turning, bands, turn
from sscxr.data.pixels.quiet import quiet

# Log odds of the posture detector that laterals, which it was not made for, do not reach (27 tried, 3.8 at most),
# and that about 98 % of turned frontal views do.
LATERAL_ODDS = 4.0
NOT_READABLE = "not readable"  # rights, a network drive
# Refusals that rights or another word for a chest may resolve: such a file is tried again.
PASSING = (NOT_READABLE, header.BODY_PART_NOT_KNOWN)

Bytes = npt.NDArray[np.uint8]
Grey = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """Attributes: the file; its mask and view, if a manifest has them; the cache's px a side; px a file may have;
    further masks, to be joined with the first; words for a chest in Body Part Examined beside those known; whether
    the image is wanted at its own resolution too.
    """

    file: Path
    mask: Path | None
    view: str
    size: int
    max_pixels: int
    more_masks: tuple[Path, ...] = ()
    chest_words: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Prepared:
    """An image as the cache keeps it.

    Attributes:
        digest: SHA-256 of the decoded, upright 8-bit grey levels and their shape: equal images, equal digest.
        image: uint8 [S, S].
        mask: uint8 [S, S], or None.
        facts: the file's facts, with every warning.
        height, width: of the original after orientation, px.
        top, left, content_height, content_width: where the image lies within the square, px.
        turning: how the stored pixels were turned to be upright.
        levels: uint8 [height, width], the original upright, where the task asks for it.
    """

    digest: str
    image: Bytes
    mask: Bytes | None
    facts: Facts
    height: int
    width: int
    top: int
    left: int
    content_height: int
    content_width: int
    turning: Turning = AS_STORED
    levels: Bytes | None = None


def attempt(task: Task) -> Prepared | Refused:
    """Call `prepare_file` and return any error as a refusal."""
    try:
        with quiet():  # warnings of libraries about files that they read nevertheless
            return prepare_file(task)
    except Refused as refusal:
        return refusal
    except MemoryError:
        return Refused("too large", "not enough memory to decode it")
    except OSError as error:
        return Refused(NOT_READABLE, str(error.strerror or error))
    except Exception:  # hostile bytes may raise anything anywhere; one file must not stop the others
        return Refused("unreadable", "damaged, or its parts contradict each other")


def prepare_file(task: Task) -> Prepared:
    """Read, check, resize and pad one file.

    Raises:
        Refused: with the reason.
        OSError: the file cannot be opened.
    """
    grey, facts, turning = read(task.file, task.max_pixels, task.chest_words)
    levels = _levels(grey)
    seen = content.check(levels)
    height, width = levels.shape
    digest = hashlib.sha256(f"{height}x{width}:".encode())
    digest.update(levels.data)
    small = resized(grey, task.size)
    doubts = [*facts.warnings, *seen]
    if has_heavy_text(levels):
        doubts.append("burnt-in text")
    if "L" not in (task.view, facts.view):  # the detector is for frontal views only
        doubts += _check_posture(small, bool(task.view or facts.view))
    mask, doubt = _mask(task, (height, width), turning)
    doubts += [doubt] if doubt else []
    top, left = ((task.size - side) // 2 for side in small.shape)
    place = (slice(top, top + small.shape[0]), slice(left, left + small.shape[1]))
    image = np.zeros((task.size, task.size), dtype=np.uint8)
    image[place] = _levels(small)
    if mask is not None:
        padded = np.zeros_like(image)
        padded[place] = np.asarray(Image.fromarray(mask).resize(small.shape[::-1], Image.Resampling.NEAREST))
        mask = padded
    facts = Facts(**{**vars(facts), "warnings": tuple(dict.fromkeys(doubts))})
    return Prepared(
        digest.hexdigest(), image, mask, facts, height, width, top, left, small.shape[0], small.shape[1],
        turning, levels if task.whole else None,
    )  # fmt: skip


@quiet()
def read(file: Path, max_pixels: int, chest_words: tuple[str, ...] = ()) -> tuple[Grey, Facts, Turning]:
    """Return a file's grey levels, float32 [H, W] in 0..1, upright; its facts; how it was turned to be upright.

    Raises:
        Refused: with the reason.
        OSError: the file cannot be opened.
    """
    if file.stat().st_size == 0:
        raise Refused("empty file")
    if pictures.is_picture(file):
        return pictures.read(file, max_pixels=max_pixels)
    if parsing.is_dicom(file):
        return dicom.read(file, max_pixels=max_pixels, chest_words=chest_words)
    if jsrt.is_jsrt(file):
        return jsrt.read(file)
    if file.suffix.lower() == ".csv":
        raise Refused(
            "not an image", "a table; if it is a manifest, give it as a source itself or as --labels"
        )
    raise Refused("not an image", "neither DICOM, PNG nor JPEG by its content")


def _levels(grey: Grey) -> Bytes:
    """Convert grey levels of 0..1 to 8 bits."""
    levels = np.empty(grey.shape, np.uint8)
    for rows in bands(grey.shape):
        levels[rows] = np.rint(grey[rows] * np.float32(255))
    return levels


def _check_posture(small: Grey, frontal: bool) -> list[str]:
    """Refuse a surely turned or inverted picture; one that may be a lateral, or is mirrored, is a doubt."""
    seen = posture.look(small)
    if not seen.problems():
        return seen.doubts()
    odds = [seen.rotation_odds] * (seen.rotation != 0) + [seen.inversion_odds] * seen.inverted
    if frontal or max(odds) > LATERAL_ODDS:
        raise Refused("; ".join(seen.problems()))
    return [f"{problem}, unless it is a lateral" for problem in seen.problems()]


def resized(grey: Grey, size: int) -> Grey:
    """Resize [H, W] to a longer side of `size` px, antialiased, keeping the aspect ratio; small images grow."""
    height, width = grey.shape
    scale = size / max(height, width)
    if scale == 1:
        return grey
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BILINEAR
    # reducing_gap: a box filter first for large reductions; three keeps Lanczos' result to a grey level.
    image = Image.fromarray(grey).resize(shape, method, reducing_gap=3.0 if scale < 1 else None)
    return np.clip(np.asarray(image, dtype=np.float32), 0, 1)


def _mask(task: Task, shape: tuple[int, int], turning: Turning) -> tuple[Bytes | None, str]:
    """Return the mask of an upright image of `shape`, several joined, and a doubt; or None and what is wrong."""
    joined: Bytes | None = None
    for file in filter(None, (task.mask, *task.more_masks)):
        mask, problem = _one_mask(file, shape, turning, task.max_pixels)
        if mask is None:
            return None, problem
        joined = mask if joined is None else np.maximum(joined, mask)
    if joined is None:
        return None, ""
    problem = mask_doubts.refusal(joined)
    return (None, problem) if problem else (joined, mask_doubts.doubt(joined))


def _one_mask(
    file: Path, shape: tuple[int, int], turning: Turning, max_pixels: int
) -> tuple[Bytes | None, str]:
    try:
        mask = pictures.read_mask(file, max_pixels=max_pixels)
    except FileNotFoundError:
        return None, "mask missing"
    except (OSError, Refused):
        return None, "mask not readable"
    # Masks are drawn on the pixels as stored or on the image as shown, or on one reduced by a whole number.
    stored = shape[::-1] if turning[0] else shape
    factor = stored[0] // mask.shape[0]
    if factor > 1 and (mask.shape[0] * factor, mask.shape[1] * factor) == stored:
        mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    if mask.shape == stored:
        mask = turn(mask, turning)
    return (mask, "") if mask.shape == shape else (None, "mask not of the image's size")


def has_heavy_text(levels: Bytes) -> bool:
    """Return whether lines of text are burnt in, judging by strong jumps that repeat along many rows (ours).

    Anatomy hardly has steps of a quarter of the grey range from one pixel to the next; an edge of collimation has
    one per row, a side marker a few in few rows; letters have many, in every row of a line.
    """
    step = max(1, max(levels.shape) // 1024)
    view = np.ascontiguousarray(levels[::step, ::step])
    left, right = view[:, :-1], view[:, 1:]
    jumps = (np.maximum(left, right) - np.minimum(left, right) > 64).sum(axis=1, dtype=np.uint16)
    return int((jumps >= 16).sum()) >= 24
