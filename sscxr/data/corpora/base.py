"""Shared by the entries of corpora: a folder listed once, tables read as text, images found by name."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.cache.cache import LABEL_PREFIX
from sscxr.data.corpora import csv_text
from sscxr.data.corpora.parts import TEST
from sscxr.errors import SscxrError

IMAGES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".img")
# Columns that an entry's table may have besides `label:NAME`; the first is required.
COLUMNS = (
    "image", "file", "patient_id", "study_id", "view", "age", "age_group", "sex", "hospital", "split", "mask",
    "boxes", "licence",
)  # fmt: skip
_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*[Yy]?\s*$")


class CorpusError(SscxrError):
    """A folder is not the named corpus; one line states which files were expected."""


@dataclass
class Folder:
    """A corpus's folder as downloaded, listed once, without reading files.

    Attributes:
        path: the folder.
        warnings: the entry's warnings, each one line without a file's or a patient's name.
    """

    path: Path
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def files(self) -> list[str]:
        """Return every file below the folder, relative, shallow ones first; links within it are followed once."""
        away, top = 0, os.path.realpath(self.path)
        found: list[tuple[int, str]] = []
        seen: set[tuple[int, int]] = set()
        waiting = [("", 0)]
        while waiting:
            below, depth = waiting.pop()
            here = f"{self.path}/{below}"
            status = os.stat(here)  # noqa: PTH116 - a corpus has 250,000 folders
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    name = f"{below}/{entry.name}" if below else entry.name
                    if entry.is_symlink() and not f"{os.path.realpath(entry.path)}/".startswith(f"{top}/"):
                        away += 1
                        continue
                    if entry.is_dir():
                        waiting.append((name, depth + 1))
                    else:
                        found.append((depth, name))
        if away:
            self.warnings.append(
                f"{away} links lead out of the folder and are left out; name a folder that holds their targets too"
            )
        found.sort()
        return [name for _, name in found]

    @cached_property
    def names(self) -> dict[str, str]:
        """Return base name -> file, the shallowest if several have it."""
        names: dict[str, str] = {}
        for file in self.files:
            names.setdefault(file.rpartition("/")[2], file)
        return names

    def has(self, *names: str) -> Path | None:
        """Return the first of these tables that exists, plain or packed, anywhere below the folder."""
        for name in names:
            for packed in (name, f"{name}.gz", f"{name}.zip"):
                if packed in self.names:
                    return self.path / self.names[packed]
        return None

    def table(self, *names: str, shipped: str = "") -> Path:
        """Return a required table: the folder's, or else the one in torchxrayvision.

        Raises:
            CorpusError: neither exists; names the expected files.
        """
        found = self.has(*names)
        if found is not None:
            return found
        wanted = " or ".join(names)
        if not shipped:
            raise CorpusError(f"{self.path}: {wanted} was not found")
        brought = from_torchxrayvision(shipped)
        if brought is None:
            raise CorpusError(
                f"{self.path}: {wanted} was not found; put it there, or install torchxrayvision, "
                "which contains it: pip install 'sscxr[corpora]'"
            )
        return brought

    def stems(self, *folders: str, suffixes: Sequence[str]) -> dict[str, str]:
        """Return the name without its suffix -> file, for the files of `below`."""
        return {
            file.rpartition("/")[2].rpartition(".")[0]: file
            for file in self.below(*folders, suffixes=suffixes)
        }

    def below(self, *folders: str, suffixes: Sequence[str] = IMAGES) -> list[str]:
        """Return files with a suffix below one of these folders; without folders, all."""
        wanted = {name.lower() for name in folders}
        return [
            file
            for file in self.files
            if file.lower().endswith(tuple(suffixes))
            and (not wanted or not wanted.isdisjoint(file.lower().split("/")[:-1]))
        ]

    def locate(
        self, wanted: "pd.Series[str]", *, parts: int = 1, suffixes: Sequence[str] = ("",)
    ) -> "pd.Series[str]":
        """Find images by the last parts of their path; empty for missing ones.

        Args:
            wanted: paths or names.
            parts: how many of the last parts of a path identify an image.
            suffixes: appended to the name and tried in turn; "": the name itself.
        """
        if parts == 1:
            known: Mapping[str, str] = self.names
        else:
            known = {}
            for file in self.files:
                known.setdefault("/".join(file.split("/")[-parts:]), file)
            wanted = pd.Series(["/".join(name.split("/")[-parts:]) for name in wanted], index=wanted.index)
        found = pd.Series("", index=wanted.index, dtype=object)
        for suffix in suffixes:
            found = found.where(found != "", (wanted + suffix).map(known).fillna(""))
        return found.astype(str)


@dataclass(frozen=True)
class Corpus:
    """One entry.

    Attributes:
        name: the name before the colon.
        title, images, labels, licence, where, layout: descriptions.
        read: the folder and the treatment of uncertain labels -> a table of `COLUMNS` and `label:NAME` columns.
        signs: glob patterns of files or folders by which the corpus is recognised.
        held_out: the published parts that results are reported on; they are not trained on.
        public: whether ids may be published, since everybody with the corpus has them.
    """

    name: str
    title: str
    images: str
    labels: str
    licence: str
    where: str
    layout: str
    read: Callable[[Folder, str], pd.DataFrame]
    signs: tuple[str, ...]
    held_out: tuple[str, ...] = (TEST,)
    public: bool = True


def from_torchxrayvision(name: str) -> Path | None:
    """Return a table in torchxrayvision; None if it is not installed. The package is not imported."""
    package = find_spec("torchxrayvision")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "data" / name


def column_names(path: Path, *, header: int = 0) -> list[str]:
    """Return the columns of a table.

    Raises:
        CorpusError: the table is unreadable.
    """
    with csv_text.reading(path, CorpusError):
        return csv_text.names(path, header=header)


def read_csv(
    path: Path, columns: Iterable[str], *, optional: Iterable[str] = (), header: int = 0
) -> pd.DataFrame:
    """Read some columns of a table as text, without blanks before a cell, and `line`, each row's line number.

    Raises:
        CorpusError: the table is unreadable, or lacks a column.
    """
    needed = list(columns)
    wanted = {*needed, *optional}
    with csv_text.reading(path, CorpusError):
        table = csv_text.frame(path, header=header, wanted=wanted.__contains__, blanks=True)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        found = ", ".join(map(repr, column_names(path, header=header)[:12]))
        raise CorpusError(f"{path}: no column {missing[0]!r}; the columns found are {found}")
    if table.empty:
        raise CorpusError(f"{path}: no rows below the header")
    return table.rename_axis("line").reset_index()


def read_by(path: Path, key: str, *columns: str) -> pd.DataFrame:
    """Read some columns of a table by another, the first row of each of its values; see `read_csv`."""
    return read_csv(path, (key, *columns)).drop_duplicates(key).set_index(key)


def both_sides(left: "pd.Series[str]", right: "pd.Series[str]") -> "pd.Series[str]":
    """Return the masks of both lungs, separated by |; empty unless both are there."""
    return (left + "|" + right).where((left != "") & (right != ""), "")


def with_hidden(table: pd.DataFrame, images: Iterable[str]) -> pd.DataFrame:
    """Return the table with further images of the published test set, whose labels are not published."""
    return pd.concat([table, pd.DataFrame({"image": list(images), "split": TEST})], ignore_index=True)


def lines(path: Path) -> list[str]:
    """Read a text list without empty lines.

    Raises:
        CorpusError: not readable as text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not readable as a text list ({type(error).__name__})") from None


def number(cells: "pd.Series[str]") -> npt.NDArray[np.float32]:
    """Read the numbers of a text column; NaN for cells without one.

    A cell such as "058Y" is 58.
    """
    codes, texts = pd.factorize(cells)  # a million rows have few distinct values
    values = [_NUMBER.match(str(text)) for text in texts]
    return np.array([float(found[1]) if found else np.nan for found in values], dtype=np.float32)[codes]


def add_labels(table: pd.DataFrame, labels: Mapping[str, npt.NDArray[np.float32]]) -> pd.DataFrame:
    """Return the table with a column for each label."""
    columns = {f"{LABEL_PREFIX}{name}": np.asarray(values, np.float32) for name, values in labels.items()}
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)


def boxes(table: pd.DataFrame, image: str, label: str, place: Sequence[str]) -> "pd.Series[str]":
    """Return boxes as text by image: `label x y width height`, px of the original; several separated by |.

    Args:
        table: one row per box, as text; a row without numbers is not a box.
        image, label: columns.
        place: columns of x, y, width and height.
    """
    there = table[(table[list(place)] != "").all(axis=1)]
    text = there[label].str.strip()
    for column in place:
        text = text + " " + pd.Series(number(there[column]), index=there.index).map("{:g}".format)
    return text.groupby(there[image]).agg("|".join)


def unknown_words(folder: Folder, words: Iterable[str]) -> None:
    """Warn of findings in a table that have no mapping yet."""
    found = sorted(word[:40] for word in words)
    if found:
        shown = ", ".join(repr(word) for word in found[:5])
        folder.warnings.append(
            f"{len(found)} word{'s' if len(found) != 1 else ''} of its labels map to nothing here and were left "
            f"out: {shown}{' ...' if len(found) > 5 else ''}"
        )


def first_rows(table: pd.DataFrame, folder: Folder, image: str = "image") -> pd.DataFrame:
    """Keep the first row of each image, and warn of others."""
    again = table.duplicated(image)
    if again.any():
        folder.warnings.append(f"{int(again.sum())} rows repeat an image; the first of each counts")
        return table[~again].reset_index(drop=True)
    return table
