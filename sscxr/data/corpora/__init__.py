"""Public corpora, from the folder that was downloaded to a manifest: `nih:/data/nih`.

A corpus is an entry (`base.Corpus`) in one of the modules of this package, and a line in `CORPORA`. Its table has
one row per image, as described in `sscxr.data.corpora.manifest`; this module does what is common to all.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sscxr.data.cache.cache import LABEL_PREFIX
from sscxr.data.corpora import covid, folders, labeller, nih, readers, tuberculosis
from sscxr.data.corpora.base import COLUMNS, Corpus, CorpusError, Folder
from sscxr.data.corpora.manifest import Record
from sscxr.data.corpora.vocabulary import UNCERTAIN
from sscxr.data.pixels.facts import age_band, normal_sex, normal_view
from sscxr.files import expanded

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        *(nih.NIH, labeller.CHEXPERT, labeller.MIMIC, readers.PADCHEST, nih.RSNA, readers.VINDR, nih.SIIM),
        *(covid.COVID19, covid.COVIDX, covid.STONYBROOK, labeller.BRAX, readers.OPENI),
        *(tuberculosis.MONTGOMERY, tuberculosis.SHENZHEN, tuberculosis.TBX11K),
        *(folders.KERMANY, readers.JSRT, folders.FOLDERS),
    )
}
_SPEC = re.compile(r"([A-Za-z0-9_-]{2,32}):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """A corpus in a folder.

    Attributes:
        corpus: the corpus.
        folder: its folder, absolute.
        table: `COLUMNS` and `label:NAME` columns, one row per image; sorted by `image`. `held_out` is true for
            images that results are published on; `patient_id` begins with the patient's corpus.
        missing: images of the corpus that the folder lacks; they are not in the table.
        warnings: lines to show.
    """

    corpus: Corpus
    folder: Path
    table: pd.DataFrame
    missing: int
    warnings: list[str]

    @property
    def labels(self) -> list[str]:
        """Return the label columns, prefixed."""
        return [name for name in self.table.columns if name.startswith(LABEL_PREFIX)]


def named(given: str | Path) -> tuple[Corpus, Path] | None:
    """Return the corpus and the folder of `nih:/data/nih`; None for a path or anything else.

    Raises:
        CorpusError: an unknown corpus, with the nearest known one.
    """
    text = str(given)
    match = _SPEC.fullmatch(text)
    if match is None or Path(text).exists():
        return None
    return known(match[1]), expanded(match[2])


def known(name: str) -> Corpus:
    """Return the corpus of a name.

    Raises:
        CorpusError: an unknown name, with the nearest known one.
    """
    if name.lower() not in CORPORA:
        near = difflib.get_close_matches(name.lower(), CORPORA, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CorpusError(f"no corpus is called {name!r}; {hint}choose one of: {', '.join(CORPORA)}")
    return CORPORA[name.lower()]


def find(corpus: Corpus, path: Path, *, uncertain: str = "ignore", absent: bool = False) -> Found:
    """List a corpus from its folder, reading tables but not images.

    Args:
        corpus: the corpus.
        path: its folder, as downloaded and unpacked, or any folder above.
        uncertain: treatment of labels that the corpus calls uncertain: "ignore" (unknown), "zeros", "ones".
        absent: whether to list missing images too, without a file.

    Raises:
        CorpusError: not a folder, or not this corpus; names the expected files, and corpora that it could be.
    """
    if uncertain not in UNCERTAIN:
        raise CorpusError(f"uncertain labels: {uncertain!r} is none of {', '.join(UNCERTAIN)}")
    if not path.is_dir():
        raise CorpusError(f"{corpus.name}:{path}: no such folder")
    folder = Folder(path.resolve())
    try:
        table = corpus.read(folder, uncertain)
    except CorpusError as error:
        raise CorpusError(
            f"{error}; {corpus.title} has {corpus.layout}.{_could_be(folder, corpus)}"
        ) from None
    table = _completed(table, corpus)
    there = (table["file"] != "").to_numpy()
    if not there.any() and not absent:
        raise CorpusError(
            f"{path}: none of the {len(table):,} images of {corpus.title} was found; looked for "
            f"{table['image'].iloc[0]} and the others. It has {corpus.layout}.{_could_be(folder, corpus)}"
        )
    missing = int((~there).sum())
    warnings = [f"{corpus.name}: {line}" for line in folder.warnings]
    if missing:
        share = f"{missing:,} of {len(table):,} images ({missing / len(table):.1%})"
        going = "" if absent else "; continuing with those that are"
        warnings.append(f"{corpus.name}: {share} are not in the folder{going}")
    table = table if absent else table[there].reset_index(drop=True)
    return Found(corpus, folder.path, table, missing, warnings)


def _completed(table: pd.DataFrame, corpus: Corpus) -> pd.DataFrame:
    """Complete the columns, in the cache's words, sorted by image."""
    table = table.reset_index(drop=True)
    for name in COLUMNS:
        if name not in table.columns:
            table[name] = np.nan if name == "age" else ""
    text = [name for name in COLUMNS if name != "age"]
    table[text] = table[text].fillna("").astype(str)
    table["view"] = _each(table["view"], normal_view)
    table["sex"] = _each(table["sex"], normal_sex)
    age = pd.to_numeric(table["age"], errors="coerce").astype(np.float32)
    # NaN is in no band; -1 is neither.
    bands = _each(age.fillna(-1).round(2), lambda years: age_band(float(years)))
    table["age_band"] = bands.where(
        bands != "", table["age_group"].where(table["age_group"] == "paediatric", "")
    )
    if corpus.name != "covid19":  # whose images have individual licences
        table["licence"] = table["licence"].where(table["licence"] != "", corpus.licence)
    own = table["patient_id"].str.contains(r"^(?:nih|rsna|covid19):")
    named = (table["patient_id"] != "") & ~own
    table["patient_id"] = table["patient_id"].mask(named, f"{corpus.name}:" + table["patient_id"])
    table["held_out"] = table["split"].isin(corpus.held_out)
    return table.sort_values("image", ignore_index=True, kind="stable")


def _each(cells: "pd.Series[str] | pd.Series[float]", what: Callable[[Any], str]) -> "pd.Series[str]":
    """Apply a function to every cell, calling it once for each distinct value."""
    codes, values = pd.factorize(cells)
    return pd.Series(
        np.array([what(value) for value in values], dtype=object)[codes], index=cells.index, dtype=str
    )


def _could_be(folder: Folder, but: Corpus) -> str:
    """Return a sentence with the corpora that the folder looks like; empty if none."""
    names = {part for file in folder.files[:200_000] for part in file.split("/")}
    alike = [
        corpus.name
        for corpus in CORPORA.values()
        if corpus is not but and any(fnmatchcase(name, sign) for sign in corpus.signs for name in names)
    ]
    return f" The folder looks like {' or '.join(alike)}" if alike else ""


def records(found: Found) -> Iterator[Record]:
    """Return the rows as records for `prepare`; equal labels share one object."""
    table, labels = found.table, found.labels
    names = [column.removeprefix(LABEL_PREFIX) for column in labels]
    values = table[labels].to_numpy(dtype=np.float32)
    shared: dict[bytes, dict[str, int]] = {}
    public = found.corpus.public
    rows: Iterable[Any] = table.drop(columns=labels).itertuples(index=False)
    for row, one in enumerate(rows):
        key = values[row].tobytes()
        if key not in shared:
            known = np.flatnonzero(np.isfinite(values[row]))
            shared[key] = {names[place]: int(values[row, place]) for place in known}
        masks = tuple(found.folder / name for name in one.mask.split("|") if name)
        yield Record(
            file=found.folder / one.file,
            name=one.image,
            source=found.corpus.name if public else "",
            patient=one.patient_id,
            group=one.patient_id,
            view=one.view,
            sex=one.sex,
            age_band=one.age_band,
            licence=one.licence,
            labels=shared[key],
            mask=masks[0] if masks else None,
            more_masks=masks[1:],
            hospital=one.hospital,
            published=one.split,
            held_out=bool(one.held_out),
            public_id=one.image if public else "",
            place=one.patient_id if public else "",
        )
