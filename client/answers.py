"""Records which rows a site has answered for, so that no combination of its answers is about a few patients.

The reported sets divide the site's images into parts; images in the same sets are in the same part. The site
answers for a further set only if every part has at least the minimum of patients; sums and differences of any
reported numbers are then about so many. An answer is repeated while the cache differs by fewer.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sscxr.data.rows import Rows
from sscxr.files import locked, write_atomically

Names = npt.NDArray[np.str_]
_RUNS = 256  # runs whose images are recorded; earlier ones send no more messages
FILE = "_answers.npz"  # cannot be a run's folder: a run's name begins with a letter or a digit


class Answers:
    """The sets of images that a site has answered for, in a file of its state.

    The file has salted hashes of images and of patient groups, which never leave the site. Without it, a site
    answers as if it had never been asked.
    """

    def __init__(self, folder: Path, least: int) -> None:
        """Read the file, if it exists; `least` is the minimum of patients."""
        self._file, self._least = folder / FILE, least
        self.images: Names = np.empty(0, "U1")
        self._groups: Names = np.empty(0, "U1")
        self._sets = np.empty((0, 0), dtype=bool)  # [sets, images]
        self.notes: dict[str, Any] = {}  # key -> the numbers of its sets, and what was reported about them
        if self._file.is_file():
            with np.load(self._file, allow_pickle=False) as kept:
                self.images, self._groups, self._sets = kept["images"], kept["groups"], kept["sets"]
                self.notes = json.loads(str(kept["notes"]))

    def save(self) -> None:
        """Write the file, readable by its owner."""
        out = io.BytesIO()
        notes = np.asarray(json.dumps(self.notes))
        np.savez_compressed(out, images=self.images, groups=self._groups, sets=self._sets, notes=notes)
        write_atomically(self._file, out.getvalue())
        self._file.chmod(0o600)

    def seen(self, images: Names) -> npt.NDArray[np.bool_]:
        """Return bool [N]: which images were in an answer; the others wait until they are enough."""
        return np.isin(images, self.images)

    def known(self, key: str) -> list[Names] | None:
        """Return the sets that were answered for under a key."""
        if key not in self.notes:
            return None
        return [self.images[self._sets[number]] for number in self.notes[key]["sets"]]

    def add(self, key: str, sets: Sequence[Names], group_of: dict[str, str]) -> bool:
        """Record further sets under a key if that is safe; return whether it is.

        Args:
            sets: sets of images; they may be empty.
            group_of: image -> its patient group.
        """
        fresh = np.setdiff1d(np.concatenate([np.empty(0, "U1"), *sets]), self.images)
        images = np.concatenate([self.images, fresh])
        groups = np.concatenate([self._groups, np.asarray([group_of[image] for image in fresh], dtype=str)])
        members = np.pad(self._sets, ((0, 0), (0, len(fresh))))
        numbers = []
        for one in sets:
            row = np.isin(images, one)
            same = np.flatnonzero((members == row).all(axis=1))
            if not len(same):
                members = np.vstack([members, row])
            numbers.append(int(same[0]) if len(same) else len(members) - 1)
        if _smallest_part(members, groups) < self._least:
            return False
        if len(members) == len(self._sets) and self.notes.get(key, {}).get("sets") == numbers:
            return True
        self.images, self._groups, self._sets = images, groups, members
        self.notes[key] = {**self.notes.get(key, {}), "sets": numbers}
        self.save()
        return True

    def pin(self, begun: str, key: str) -> None:
        """Keep a key's sets under another key as well, independent of later changes to the first."""
        pinned = [name for name, note in self.notes.items() if note.get("pinned")]
        for name in pinned[: max(0, len(pinned) + 1 - _RUNS)]:
            del self.notes[name]
        self.notes[begun] = {"sets": self.notes[key]["sets"], "pinned": True}
        self.save()


def _smallest_part(members: npt.NDArray[np.bool_], groups: Names) -> int:
    """Return the number of patients in the smallest part that the sets divide the images into."""
    part = np.zeros(members.shape[1], dtype=np.int64)
    for row in members:
        part = np.unique(2 * part + row, return_inverse=True)[1]
    part = part[members.any(axis=0)]
    patients = np.unique(groups[members.any(axis=0)], return_inverse=True)[1]
    if not len(part):
        return 0
    pairs = np.unique(np.stack([part, patients]), axis=1)
    return int(np.unique(pairs[0], return_counts=True)[1].min())


@contextmanager
def opened(folder: Path, least: int) -> Iterator[Answers]:
    """Yield the answers so far under a lock, since two runs may ask at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "_lock"):
        yield Answers(folder, least)


def settled(
    answers: Answers, key: str, images: Names, groups: Names, parts: Sequence[Rows], run: str = ""
) -> list[Rows]:
    """Return the rows to use in place of those asked for, so that an answer about them is safe.

    Args:
        key: what the rows depend on, beside the cache; the same rows for the same key.
        run: a run that reads the same images to its end; later ones wait for the next run.
        images, groups: of the cache, [N].
        parts: rows of the cache whose numbers are to be reported; all but the first may be left out.

    Returns:
        As many parts, of the lengths to report. If images of an earlier answer are gone, but too few to reveal
        it, other images of the first part replace them, and the other parts are empty. The first part is empty if
        no answer is safe.
    """
    begun = f"{key} in {run}"
    known = answers.known(begun)
    if known is not None:
        return _repeated(known, images, parts)
    found = _settled(answers, key, images, groups, parts)
    if run and len(found[0]):
        answers.pin(begun, key)
    return found


def _settled(answers: Answers, key: str, images: Names, groups: Names, parts: Sequence[Rows]) -> list[Rows]:
    group_of = dict(zip(images.tolist(), groups.tolist(), strict=True))
    first, *others = parts
    nothing = [rows[:0] for rows in others]
    known, seen = answers.known(key), answers.seen(images)
    within = [rows[seen[rows]] for rows in parts]
    if len(first) and answers.add(key, [images[rows] for rows in parts], group_of):
        return list(parts)
    if known is not None:
        return _repeated(known, images, parts)
    for tried in ([first, *nothing], within, [within[0], *nothing]):
        if len(tried[0]) and answers.add(key, [images[rows] for rows in tried], group_of):
            return tried
    return [first[:0], *nothing]


def _repeated(known: Sequence[Names], images: Names, parts: Sequence[Rows]) -> list[Rows]:
    living = [rows[np.isin(images[rows], before)] for rows, before in zip(parts, known, strict=True)]
    gone = len(known[0]) - len(living[0])
    others = [rows if len(rows) == len(was) else rows[:0] for rows, was in zip(living, known, strict=True)]
    if not len(living[0]):
        return [rows[:0] for rows in parts]
    return [np.concatenate([living[0], np.resize(living[0], gone)]), *others[1:]]
