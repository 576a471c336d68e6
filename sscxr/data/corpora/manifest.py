"""The CSV contract: one row per image, with what is known of it. What is not stated is unknown, never negative.

Columns (only the first is required):

    file           the image, relative to the manifest's folder (`image` and `path` are understood too)
    source         the corpus or hospital; default: `--source`
    patient_id     the patient (`patient` is understood too, if there is no `patient_id`)
    split_group    patients to keep together; overrides `patient_id`
    view, sex, age, age_group, licence
    mask           a lung mask, relative to the manifest's folder; several separated by | are joined
    hospital       the hospital or machine within the source
    split          train, valid or test, as published (see `parts`); test images are never trained on
    label          the names of its findings, separated by ; or |
    label:NAME     1 present, 0 absent, -1 or empty unknown

Each name in `label` becomes a label: 1 if a row has it, 0 if the row has others, unknown if it has none. In a
manifest without `label`, every column that is not listed here or in `OTHER_COLUMNS` is a label.
"""

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import pandas as pd

from sscxr.data.cache.cache import LABEL_PREFIX
from sscxr.data.corpora import csv_text
from sscxr.data.corpora.parts import TEST, part_of
from sscxr.data.pixels.facts import NO_VALUE, age_band, dicom_age, normal_id, normal_sex, normal_view
from sscxr.errors import SscxrError
from sscxr.printable import line

FILE_COLUMNS = ("file", "image", "path")
KNOWN_COLUMNS = (
    "source", "patient_id", "split_group", "view", "sex", "age", "age_group", "licence", "mask", "label",
    "hospital", "split",
)  # fmt: skip
# Other columns of manifests, which are not labels.
OTHER_COLUMNS = (
    "patient", "labels_raw", "mask_kind", "original_file", "orig_width", "orig_height", "notes", "format",
    "redistributable", "use", "bytes", "sha256", "width", "height", "mode", "license", "study_id", "study_date",
    "fold", "site", "finding_text", "image_id", "boxes",
)  # fmt: skip
UNKNOWN_LABELS = NO_VALUE | {"-1", "-1.0"}
LINKED = "leads out of the manifest's folder by a link"
MAX_CATEGORIES = 100  # more distinct names than this in `label` are free text, not names


class ManifestError(SscxrError):
    """An invalid manifest; one line states what is wrong and what to do."""


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        file: the image, absolute.
        name: the image's name in the manifest.
        source: empty if the manifest has none.
        patient: identifier of the patient, empty if unknown.
        group: identifier of the patient group, by default the patient's.
        view, sex, age_band, licence: in the cache's words.
        labels: name to 1 or 0; unknown ones are missing.
        mask, more_masks: absolute, or None; several are joined.
        problem: why the row cannot be used, or empty.
        warning: a doubt about the row, which is still used, or empty.
        hospital: the hospital or machine within the source; empty if unknown.
        published: train, valid, test or empty, as published.
        held_out: whether it is never trained on.
        public_id: the image's name within a public corpus; empty for a hospital's own images.
        place: the public name that the patient's place is drawn from, if there is one.
    """

    file: Path
    name: str
    source: str = ""
    patient: str = ""
    group: str = ""
    view: str = ""
    sex: str = ""
    age_band: str = ""
    licence: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    mask: Path | None = None
    problem: str = ""
    warning: str = ""
    # Not in the representation, by which older caches identify files.
    more_masks: tuple[Path, ...] = field(default=(), repr=False)
    hospital: str = field(default="", repr=False)
    published: str = field(default="", repr=False)
    held_out: bool = field(default=False, repr=False)
    public_id: str = field(default="", repr=False)
    place: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Make names safe to show and read back: on one line, without control characters."""
        for name in ("source", "licence", "hospital", "public_id"):
            if not getattr(self, name).isprintable():
                object.__setattr__(self, name, line(getattr(self, name)))
        if not all(name.isprintable() for name in self.labels):
            object.__setattr__(self, "labels", {line(name): value for name, value in self.labels.items()})

    @property
    def added(self) -> str:
        """Return what the representation leaves out; empty if nothing."""
        left_out = (self.more_masks, self.hospital, self.published, self.held_out, self.public_id, self.place)
        return repr(left_out) if any(left_out) else ""


def read(path: Path, warnings: list[str] | None = None) -> list[Record]:
    """Read the rows of a manifest, in its order.

    Args:
        path: the file.
        warnings: gets a line for every guess.

    Raises:
        ManifestError: an unreadable CSV, no file column, a file listed twice, labels that are not numbers, or an
            unknown word in `split`.
    """
    table = _table(path)
    file_column = _file_column(path, table)
    _refuse_repeats(path, table[file_column])
    doubts: list[str] = []
    labels = _labels(path, table, file_column, doubts)
    _doubt_ids(table, doubts)
    parts = _parts(path, table)
    folder = path.parent.resolve()
    rows = table.to_dict("records")
    records = [
        _record({str(key): str(value) for key, value in row.items()}, file_column, folder, known, part)
        for row, known, part in zip(rows, labels, parts, strict=True)
    ]
    away = sum(LINKED in (record.problem, record.warning.removeprefix("mask ")) for record in records)
    if away:
        doubts.append(f"{away} rows name files that a link leads out of its folder; they are left out")
    if warnings is not None:
        warnings += [f"{path.name}: {doubt}" for doubt in doubts]
    return records


def _parts(path: Path, table: pd.DataFrame) -> list[str]:
    """Return each row's published part; refuse an unknown word, which might hold images out."""
    if "split" not in table.columns:
        return [""] * len(table)
    for number, word in table["split"].items():
        if word.lower() not in NO_VALUE and part_of(word) is None:
            raise ManifestError(
                f"{path}: line {number}: column 'split' has a word that does not mean train, valid or test; "
                "write one of these, or call the column 'fold' if it is another cut"
            )
    return ["" if word.lower() in NO_VALUE else part_of(word) or "" for word in table["split"]]


_SCIENTIFIC = re.compile(r"[+-]?\d+(?:[.,]\d+)?[eE][+]?\d+")


def _doubt_ids(table: pd.DataFrame, doubts: list[str]) -> None:
    """Warn of changes that a spreadsheet may have made to patients' ids, without naming any."""
    for column in ("patient_id", "split_group"):
        ids = table[column][~table[column].str.lower().isin(NO_VALUE)] if column in table.columns else None
        if ids is None or ids.empty:
            continue
        short = ids[ids.map(lambda text: _SCIENTIFIC.fullmatch(text) is not None)]
        if len(short):
            doubts.append(
                f"{column} of {len(short)} rows (line {short.index[0]} the first) is a rounded number such as "
                "1.2E+11: different patients may be one here; save the ids as text, and prepare again"
            )
        written = ids.drop_duplicates()
        again = written[written.map(normal_id).duplicated(keep=False)]
        if len(again):
            doubts.append(
                f"{len(again)} different {column}s (line {again.index[0]} the first) are equal except for case, "
                "leading zeros, '.0' or separators; each such set counts as one patient"
            )


def _table(path: Path) -> pd.DataFrame:
    """Read the file as text, every cell stripped."""
    with csv_text.reading(path, ManifestError):
        names = [_column(name) for name in csv_text.names(path)]
        table = csv_text.frame(path)
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise ManifestError(f"{path}: column {repeated[0]!r} is there twice")
    table.columns = table.columns.map(_column)
    if table.empty:
        raise ManifestError(f"{path}: no rows below the header")
    table = pd.DataFrame({name: table[name].str.strip() for name in table.columns})
    return table if "patient_id" in table.columns else table.rename(columns={"patient": "patient_id"})


def _column(name: str) -> str:
    """Return a column's name; known ones may have any case, as in `FILE` and `Label:Edema`."""
    low = name.strip().lower()
    if low.startswith(LABEL_PREFIX):
        return LABEL_PREFIX + name.strip()[len(LABEL_PREFIX) :]
    return low if low in {*FILE_COLUMNS, *KNOWN_COLUMNS, *OTHER_COLUMNS} else name.strip()


def _file_column(path: Path, table: pd.DataFrame) -> str:
    for name in FILE_COLUMNS:
        if name in table.columns:
            return name
    found = ", ".join(repr(name) for name in table.columns[:12])
    raise ManifestError(f"{path}: no column 'file' (nor 'image', 'path'); the columns found are {found}")


def _refuse_repeats(path: Path, files: "pd.Series[str]") -> None:
    names = files.map(os.path.normpath)
    repeats = names[names.duplicated() & (files != "")]
    if len(repeats):
        first, second = names.index[names == repeats.iloc[0]][:2]
        raise ManifestError(
            f"{path}: lines {first} and {second} name the same file {repeats.iloc[0]!r}; keep one row per file"
        )


def _labels(path: Path, table: pd.DataFrame, file_column: str, doubts: list[str]) -> list[dict[str, int]]:
    """Return the known labels of every row, from the columns and then from the names in `label`."""
    columns = [name for name in table.columns if name.startswith(LABEL_PREFIX)]
    named = "label" in table.columns and not set(table["label"].str.lower()) <= UNKNOWN_LABELS | {*_VALUES}
    if "label" in table.columns and not named:
        columns.append("label")
    elif not named:
        listed = {*FILE_COLUMNS, *KNOWN_COLUMNS, *OTHER_COLUMNS, *columns}
        columns += [
            name for name in table.columns if name and name not in listed and not name.startswith("Unnamed")
        ]
    keys = [_key(column.removeprefix(LABEL_PREFIX)) for column in columns]
    twice = next((name for name, key in zip(columns, keys, strict=True) if keys.count(key) > 1), None)
    if twice is not None:
        raise ManifestError(f"{path}: column {twice!r} is there twice, in another case; join them")
    labels: list[dict[str, int]] = [{} for _ in range(len(table))]
    for column in columns:
        name = column.removeprefix(LABEL_PREFIX).strip()
        for known, (number, cell) in zip(labels, table[column].items(), strict=True):
            value = _label_value(path, column, number, cell)
            if value is not None:
                known[name] = value
    if named:
        _add_names(path, table["label"], labels, doubts)
    _doubt_names(sorted({name for known in labels for name in known}), doubts)
    return labels


_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "0,0": 0, "1,0": 1, "false": 0, "true": 1}


def _key(name: str) -> str:
    """Normalise a label's spelling: case, blanks, `_` and `-` do not count."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _doubt_names(names: list[str], doubts: list[str]) -> None:
    """Warn of labels that differ by one letter: one may be a typo of the other, and each counts as its absence."""
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            if min(len(one), len(other)) >= 5 and _one_slip(_key(one), _key(other)):
                doubts.append(
                    f"labels {one!r} and {other!r} are nearly alike; if they are one, write them alike"
                )


def _one_slip(one: str, other: str) -> bool:
    """Return whether the names differ by one letter, or by two swapped; differing numbers are not typos."""
    start = len(os.path.commonprefix([one, other]))  # noqa: RUF071 - letters
    end = len(os.path.commonprefix([one[start:][::-1], other[start:][::-1]]))  # noqa: RUF071
    left, right = one[start : len(one) - end], other[start : len(other) - end]
    if re.search(r"\d", left + right):
        return False
    return max(len(left), len(right)) <= 1 or (len(left) == 2 and left == right[::-1])


def _label_value(path: Path, column: str, number: object, cell: str) -> int | None:
    if cell.lower() in UNKNOWN_LABELS:
        return None
    if cell.lower() not in _VALUES:
        near = get_close_matches(column, KNOWN_COLUMNS, n=1, cutoff=0.8)
        hint = f"or did you mean {near[0]!r}?" if near else "remove the column if it is not a label"
        raise ManifestError(
            f"{path}: line {number}: label column {column!r} has {cell!r}; labels are 1, 0, or -1 or empty "
            f"for unknown ({hint})"
        )
    return _VALUES[cell.lower()]


def _add_names(path: Path, cells: "pd.Series[str]", labels: list[dict[str, int]], doubts: list[str]) -> None:
    """Add a label for each name in `label`: a row's own are 1, others' 0; an empty cell leaves all unknown."""
    rows = [
        [name.strip() for name in re.split(r"[;|]", cell) if name.strip().lower() not in UNKNOWN_LABELS]
        for cell in cells
    ]
    # Names that differ by case are one, in the spelling of a column or else the commonest.
    spelt = Counter(name for row in rows for name in row)
    chosen = {_key(name): name for name in sorted(spelt, key=lambda name: (spelt[name], name))}
    chosen |= {_key(name): name for known in labels for name in known}
    others = sorted(name for name in spelt if chosen[_key(name)] != name)
    if others:
        doubts.append(
            f"label: {len(others)} names are other spellings, and joined: "
            + ", ".join(f"{name!r} is {chosen[_key(name)]!r}" for name in others[:5])
        )
    rows = [[chosen[_key(name)] for name in row] for row in rows]
    names = sorted({name for row in rows for name in row})
    if len(names) > MAX_CATEGORIES:
        raise ManifestError(
            f"{path}: column 'label' has {len(names)} different names, more than {MAX_CATEGORIES}; free text "
            "goes into 'labels_raw'"
        )
    for known, present in zip(labels, rows, strict=True):
        if present:
            known |= {name: int(name in present) for name in names if name not in known}


def _record(
    row: dict[str, str], file_column: str, folder: Path, labels: dict[str, int], published: str
) -> Record:
    name = row[file_column]
    file, problem = inside(folder, name)
    masks, warning = _masks(folder, _known(row.get("mask", "")))
    patient = row.get("patient_id", "")
    patient = "" if patient.lower() in NO_VALUE else patient
    group = row.get("split_group", "")
    return Record(
        file=file,
        name=name,
        source=_known(row.get("source", "")),
        patient=patient,
        group=patient if group.lower() in NO_VALUE else group,
        view=normal_view(row.get("view", "")),
        sex=normal_sex(row.get("sex", "")),
        age_band=_age_band(row.get("age", ""), row.get("age_group", "")),
        licence=row.get("licence", "") or row.get("license", ""),
        labels=labels,
        mask=masks[0] if masks else None,
        problem=problem,
        warning=f"mask {warning}" if warning else "",
        more_masks=masks[1:],
        hospital=_known(row.get("hospital", "")),
        published=published,
        held_out=published == TEST,
    )


def _masks(folder: Path, names: str) -> tuple[tuple[Path, ...], str]:
    """Return the masks of a row; if one is wrong, return none, and what is wrong."""
    found = [inside(folder, name.strip()) for name in names.split("|") if name.strip()]
    warning = next((problem for _, problem in found if problem), "")
    return ((), warning) if warning else (tuple(path for path, _ in found), "")


def inside(folder: Path, name: str) -> tuple[Path, str]:
    """Return a path below a folder, and what is wrong with it: it must not lead out of the folder."""
    if not name:
        return folder, "no file named"
    if "\0" in name:
        return folder, "not a file name"
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        return path, "leads out of the manifest's folder"
    return path, "" if within(folder, path) else LINKED


def within(folder: Path, path: Path) -> bool:
    """Return whether a path stays below a folder, whose own path has no link, when links are followed."""
    if not _real(path.parent).is_relative_to(folder):
        return False
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(folder)


@lru_cache(maxsize=4096)
def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _known(text: str) -> str:
    return "" if text.lower() in NO_VALUE else text


def _age_band(age: str, group: str) -> str:
    """Return the band of the age, in years or DICOM's form, or else of the group; "1-5y" is not an age."""
    try:
        # A decimal comma, as spreadsheets in many languages write it.
        years: float | None = float(age.replace(",", "."))
    except ValueError:
        years = dicom_age(age)
    band = "" if years is None else age_band(years)
    groups = {"paediatric": "paediatric", "pediatric": "paediatric", "adult": "adult"}
    return band or groups.get(group.lower(), "")
