"""The index's columns as plain arrays, so that opening a large cache does not require parsing its text.

`index.csv` is authoritative. `index.safetensors` repeats the columns that training reads, with the SHA-256 of the
text that they came from, and has that text's modification time. If the text has changed since, it is ignored.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from sscxr.files import sha256

if TYPE_CHECKING:
    import pandas as pd

FILE, INDEX = "index.safetensors", "index.csv"
_VERSION = "1"
_UNIQUE = ("image", "group")  # read from the text: they have nearly as many values as images
_MOST_WORDS = 1000  # different values; a column of text with more is read from the text, too


class Columns:
    """Columns of an index; each is read from the file on access.

    Attributes:
        names: all columns of the text, in its order; `in` tests whether a column is here.
        rows: how many rows the text has.
    """

    def __init__(self, opened: Any, about: dict[str, Any]) -> None:
        """Take an open `index.safetensors`, which stays readable after the file is replaced, like the text."""
        self.names: list[str] = about["names"]
        self.rows = int(about["rows"])
        self._opened, self._words, self._kept = opened, about["words"], set(opened.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return a column [N] in its own dtype; text as objects."""
        values: npt.NDArray[Any] = self._opened.get_tensor(name)
        if name not in self._words:
            return values
        words: npt.NDArray[Any] = np.array(self._words[name], dtype=object)[values]
        return words


def write(folder: Path, index: "pd.DataFrame") -> None:
    """Write the columns of the `index.csv` that is in the folder.

    Args:
        index: as `cache.read_index` reads it.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    words: dict[str, list[str]] = {}
    for name in index.columns:
        if name in _UNIQUE:
            continue
        if index[name].dtype.kind in "biuf":
            arrays[name] = np.ascontiguousarray(index[name].to_numpy())
        else:
            found, codes = np.unique(index[name].to_numpy(dtype=str), return_inverse=True)
            if len(found) <= _MOST_WORDS:
                words[name], arrays[name] = found.tolist(), codes.astype(np.min_scalar_type(len(found)))
    about = {
        "version": _VERSION,
        "names": list(index.columns),
        "rows": len(index),
        "words": words,
        "bytes": (folder / INDEX).stat().st_size,
        "sha256": sha256(folder / INDEX),
    }
    safetensors.numpy.save_file(arrays, folder / FILE, metadata={"about": json.dumps(about)})
    changed = (folder / INDEX).stat().st_mtime_ns
    os.utime(folder / FILE, ns=(changed, changed))


def read(folder: Path) -> Columns | None:
    """Return the columns of the folder's `index.csv`; None if they are absent, or from another text."""
    try:
        opened: Any = safetensors.safe_open(folder / FILE, framework="np")
        about = json.loads((opened.metadata() or {})["about"])
        if about["version"] != _VERSION or not _is_of(folder, about["bytes"], about["sha256"]):
            return None
        return Columns(opened, about)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):
        return None


def _is_of(folder: Path, size: int, digest: str) -> bool:
    text, ours = (folder / INDEX).stat(), (folder / FILE).stat()
    if text.st_size != size:
        return False
    # A copy of the cache may have other times; then the content decides.
    return text.st_mtime_ns == ours.st_mtime_ns or sha256(folder / INDEX) == digest
