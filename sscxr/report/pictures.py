"""Pictures in a report, and strips of images over the rounds, kept as PNG files beside a run that has images.

Only a simulation writes them. A real server has no images, and so no such folder.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sscxr.files import write_atomically
from sscxr.runs import RunError

FOLDER = "pictures"
_INDEX = "index.json"  # {file: caption}
_GAP = 2  # px between images, transparent, so that the page's colour separates them


@dataclass(frozen=True)
class Strip:
    """A row of images: its caption, and a PNG."""

    caption: str
    png: bytes

    @property
    def address(self) -> str:
        """Return the PNG as a `data:` address."""
        return address(self.png)


def address(png: bytes) -> str:
    """Return a PNG as a `data:` address, so that the page contains it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def strip(images: npt.NDArray[np.uint8]) -> bytes:
    """Return images side by side as a PNG.

    Args:
        images: uint8 [n, H, W], n at least 1.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"a row of images must be uint8 [n, H, W], not {images.dtype} {images.shape}")
    grey_and_alpha = np.stack([images, np.full_like(images, 255)], axis=-1)
    padded = np.pad(grey_and_alpha, ((0, 0), (0, 0), (0, _GAP), (0, 0)))
    row = np.concatenate(list(padded), axis=1)[:, :-_GAP]
    buffer = io.BytesIO()
    Image.fromarray(row).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def add(folder: Path, name: str, caption: str, images: npt.NDArray[np.uint8]) -> None:
    """Keep a strip in the file `name`; strips are shown in the order of their names."""
    captions = _captions(folder)
    write_atomically(folder / f"{name}.png", strip(images))
    write_atomically(folder / _INDEX, json.dumps(captions | {f"{name}.png": caption}, indent=1).encode())


def has(folder: Path, name: str) -> bool:
    """Return whether a strip of this name is kept."""
    return f"{name}.png" in _captions(folder)


def read(folder: Path) -> list[Strip]:
    """Read the strips of a run; none without the folder.

    Raises:
        RunError: their index cannot be read.
    """
    captions = _captions(folder)
    return [Strip(captions[name], (folder / name).read_bytes()) for name in sorted(captions)]


def _captions(folder: Path) -> dict[str, str]:
    file = folder / _INDEX
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise RunError(f"{file}: not readable as JSON") from None
