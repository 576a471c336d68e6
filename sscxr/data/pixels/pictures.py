"""PNG and JPEG pictures of radiographs, and the masks that come with them."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sscxr.data.pixels.facts import Facts, Refused
from sscxr.data.pixels.greyrange import MIN_USED, PERCENTILES, content, used
from sscxr.data.pixels.greyscale import AS_STORED, BORDER, Turning, turn

PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG")
MASK_FORMATS = (*FORMATS, "GIF")  # the SCR database's
# A radiograph may be tinted, or have a coloured arrow; a photograph or an overlay is coloured all over
# (ours).
COLOURED = 64 / 255  # between the largest and the smallest channel
MAX_COLOURED = 0.2  # of the pixels
MASK_LUNG, MASK_IGNORE = 255, 127
# EXIF 2.3, tag 0x0112: transpose, then flip left and right, then flip top and bottom.
EXIF_TURNS: dict[int, Turning] = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

Grey = npt.NDArray[np.float32]


def is_picture(path: Path) -> bool:
    """Return whether a file begins like a PNG or a JPEG."""
    with path.open("rb") as file:
        head = file.read(8)
    return head == PNG or head[:3] == b"\xff\xd8\xff"


def read(path: Path, *, max_pixels: int) -> tuple[Grey, Facts, Turning]:
    """Read a whole picture as grey levels, turned by its EXIF orientation.

    Transparency is composited on black. 16 bits are stretched between percentiles, as black and white are not
    stated; 8 bits keep their range. The first picture of a phone's JPEG (MPO) is read.

    Args:
        path: a PNG or JPEG file.
        max_pixels: width times height above which it is refused before it is decoded.

    Returns:
        float32 [H, W] in 0..1, the facts, and how it was turned.

    Raises:
        Refused: not a whole, still, grey picture.
        OSError: the file cannot be opened.
    """
    picture = _open(path, max_pixels)
    doubts = ["several pictures in one file; the first was read"] if picture.format == "MPO" else []
    wide = _wide_samples(path)
    if wide is not None:
        values = np.rint(colour_to_grey(wide) * np.float32(65535)).astype(np.int64)
        grey, grey_range, more = _stretched(values)
        doubts += more
    elif picture.mode.startswith("I"):
        grey, grey_range, more = _stretched(np.asarray(picture).astype(np.int64))
        doubts += more
    elif picture.mode == "F":
        raise Refused("unreadable", "a picture of floating-point values")
    else:
        grey, grey_range = _eight_bits(picture), "8 bit"
    turning = _turning(picture)
    return turn(grey, turning), Facts(grey_range=grey_range, warnings=tuple(doubts)), turning


def read_mask(path: Path, *, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Read a mask as stored: uint8 [H, W] of 255 lung, 127 ignore, 0 background; in a mask of 0 and 1, 1 is lung.

    Raises:
        Refused: not a whole picture.
        OSError: the file cannot be opened.
    """
    picture = _open(path, max_pixels, MASK_FORMATS)
    if picture.mode == "P":
        picture = picture.convert("RGB")
    values = np.asarray(picture.convert("L") if picture.mode not in ("1", "L") else picture).astype(np.int64)
    if values.max(initial=0) <= 1:
        values = values * MASK_LUNG
    mask = np.zeros(values.shape, dtype=np.uint8)
    mask[values >= 96] = MASK_IGNORE  # half way, with room for a lossy file's noise
    mask[values >= 160] = MASK_LUNG
    return mask


def colour_to_grey(samples: npt.NDArray[Any]) -> Grey:
    """Return the luma (ITU-R BT.601) of [H, W, 3] samples of 8 or 16 bits, if they are effectively grey.

    Raises:
        Refused: too much of the picture is coloured.
    """
    channels = samples.astype(np.float32) / np.iinfo(samples.dtype).max
    spread = channels.max(axis=2) - channels.min(axis=2)
    share = float((spread > COLOURED).mean())
    if share > MAX_COLOURED:
        raise Refused("colour picture", f"{share:.0%} of it coloured")
    if not spread.any():
        return np.ascontiguousarray(channels[..., 0])
    return np.asarray(channels @ np.array((0.299, 0.587, 0.114), dtype=np.float32), dtype=np.float32)


def _open(path: Path, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Return the decoded picture; its size is checked from its header first."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _loaded(file, max_pixels, formats)
    except Image.DecompressionBombError:
        raise Refused("too large", f"the limit is {max_pixels} px") from None
    except UnidentifiedImageError:
        raise Refused("unreadable", "damaged at its beginning") from None
    except Refused:
        raise
    except MemoryError:
        raise Refused("too large", "not enough memory to decode it") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(error) from None
    except Exception as error:  # a parser of hostile bytes may raise anything
        raise _damaged(error) from None


def _loaded(file: BinaryIO, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    picture = _opened(file, formats)
    width, height = picture.size
    if width * height > max_pixels:
        raise Refused("too large", f"{width} x {height} px, the limit is {max_pixels} px")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":
        raise Refused("multi-frame", f"{frames} pictures in one file")
    if picture.format == "PNG":
        picture.verify()  # checksums, which loading skips
        file.seek(0)
        picture = _opened(file, formats)
    picture.load()
    return picture


def _opened(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Open with Pillow; a PNG with more text or colour profile than Pillow allows, without them."""
    try:
        return Image.open(file, formats=formats)
    except ValueError:
        file.seek(0)
        return Image.open(BytesIO(_without_text(file.read())), formats=formats)


def _without_text(png: bytes) -> bytes:
    """Return a PNG without the chunks that do not affect its pixels and may inflate to anything."""
    kept, at = [png[:8]], 8
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _wide_samples(path: Path) -> npt.NDArray[np.uint16] | None:
    """Return samples [H, W, 3] of a colour or transparent PNG of 16 bits, on black; None for other pictures."""
    with path.open("rb") as file:
        head = file.read(26)
        if head[:8] != PNG or head[24] != 16 or head[25] not in (2, 4, 6):
            return None
        if head[25] == 4:  # two samples of two bytes, as the four of RGBA
            (whole,) = _bytes_of(file, "RGBA")
            whole = whole.astype(np.uint16)
            samples = (whole[..., 0::2] << np.uint16(8) | whole[..., 1::2])[..., [0, 0, 0, 1]]
        else:
            name = "RGB" if head[25] == 2 else "RGBA"
            high, low = _bytes_of(file, f"{name};16B", f"{name};16L")
            samples = high.astype(np.uint16) << np.uint16(8) | low
    if head[25] == 2:
        return samples
    seen = samples[..., :3].astype(np.float32) * (samples[..., 3:].astype(np.float32) / np.float32(65535))
    return np.rint(seen).astype(np.uint16)


def _bytes_of(file: BinaryIO, *raw_modes: str) -> list[npt.NDArray[np.uint8]]:
    """Return one byte of each sample, by each raw mode."""
    found = []
    for mode in raw_modes:  # Pillow keeps one byte of each sample; the raw mode decides which
        file.seek(0)
        picture = _opened(file, ("PNG",))
        picture.tile = [picture.tile[0]._replace(args=mode)]  # type: ignore[attr-defined]
        found.append(np.asarray(picture))
    return found


def _damaged(error: Exception) -> Refused:
    """Return the refusal of a picture that Pillow cannot read."""
    if any(word in str(error).lower() for word in ("truncated", "incomplete")):
        return Refused("truncated", "the picture has no end")
    return Refused("unreadable", "a damaged picture")


def _turning(picture: Image.Image) -> Turning:
    """Return the EXIF orientation in the form for `greyscale.turn`."""
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # ignore EXIF that does not parse
        return AS_STORED
    return EXIF_TURNS.get(orientation, AS_STORED)


def _eight_bits(picture: Image.Image) -> Grey:
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("LA", "La", "PA", "RGBa"):
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
    return colour_to_grey(np.asarray(picture.convert("RGB")))


def _stretched(values: npt.NDArray[np.int64]) -> tuple[Grey, str, list[str]]:
    """Stretch values of more than 8 bits between percentiles; also return warnings."""
    low, high = (float(end) for end in np.percentile(values, PERCENTILES))
    doubts: list[str] = []
    first, span = int(values.min()), int(np.ptp(values)) + 1
    if high <= low:
        low, high = float(first), float(first + span - 1)
    elif span <= 1 << 20:
        counts = np.bincount(values.ravel() - first)
        found = np.arange(first, first + span, dtype=np.float64)
        dark = used(np.clip((found - low) / (high - low), 0, 1), counts) < MIN_USED
        within = content(found, counts) if dark else None
        if within is not None:
            (low, high), doubts = within, [BORDER]
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return grey.astype(np.float32), "percentiles", doubts
