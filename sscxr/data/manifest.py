"""The CSV contract: one row an image, with what is known of it. What is not stated is unknown, never negative.

Columns, of which only the first is needed:

    file           the image, relative to the manifest's folder (`image` and `path` are understood too)
    source         the corpus or hospital; where absent, as `--source` says
    patient_id     whose image it is (`patient` is understood too, where there is no `patient_id`)
    split_group    patients to be kept together; wins over `patient_id`
    view, sex, age, age_group, licence
    mask           a lung mask, relative to the manifest's folder; several separated by | are joined
    hospital       which hospital or machine of the source it comes from
    split          train, valid or test, as published; what is test is never trained on
    label          what it shows, by name; several separated by ; or |
    label:NAME     1 present, 0 absent, -1 or empty unknown

`label` becomes one label a name: 1 where a row has it, 0 where the row has others, unknown where it has none.
In a manifest without `label`, every column that is not listed here or in `OTHER_COLUMNS` is a label.
"""

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from sscxr.data.cache import LABEL_PREFIX
from sscxr.data.facts import NO_VALUE, age_band, dicom_age, normal_sex, normal_view
from sscxr.errors import SscxrError
from sscxr.printable import line

FILE_COLUMNS = ("file", "image", "path")
KNOWN_COLUMNS = (
    "source", "patient_id", "split_group", "view", "sex", "age", "age_group", "licence", "mask", "label",
    "hospital", "split",
)  # fmt: skip
# Seen in manifests, and not labels.
OTHER_COLUMNS = (
    "patient", "labels_raw", "mask_kind", "original_file", "orig_width", "orig_height", "notes", "format",
    "redistributable", "use", "bytes", "sha256", "width", "height", "mode", "license", "study_id", "study_date",
    "fold", "site", "finding_text", "image_id", "boxes",
)  # fmt: skip
PUBLISHED = ("train", "valid", "test")
UNKNOWN_LABELS = NO_VALUE | {"-1", "-1.0"}
MAX_CATEGORIES = 100  # more distinct names than this in `label` are free text, not names


class ManifestError(SscxrError):
    """A manifest that cannot be used: one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        file: the image, absolute.
        name: the image as the manifest names it.
        source: empty where the manifest does not say.
        patient: identifier of the patient, empty where unknown.
        group: identifier of the patient group, the patient's where no other is given.
        view, sex, age_band, licence: in the cache's words.
        labels: name to 1 or 0; unknown ones are absent.
        mask, more_masks: absolute, or None; several are joined.
        problem: why the row cannot be used, or empty.
        warning: a doubt about the row, which is used all the same, or empty.
        hospital: which one of the source, or which machine; empty where unknown.
        published: train, valid, test or empty, as published.
        held_out: never to be trained on.
        public_id: the image's name within a public corpus; empty for a hospital's own, which have none.
        place: what the patient's place among those set aside is drawn from, where a public name tells.
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
    # Not in the representation, which files of older caches are known by.
    more_masks: tuple[Path, ...] = field(default=(), repr=False)
    hospital: str = field(default="", repr=False)
    published: str = field(default="", repr=False)
    held_out: bool = field(default=False, repr=False)
    public_id: str = field(default="", repr=False)
    place: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Make names fit to be shown and read back: on one line, without control characters."""
        for name in ("source", "licence", "hospital", "public_id"):
            if not getattr(self, name).isprintable():
                object.__setattr__(self, name, line(getattr(self, name)))
        if not all(name.isprintable() for name in self.labels):
            object.__setattr__(self, "labels", {line(name): value for name, value in self.labels.items()})

    @property
    def added(self) -> str:
        """What the representation leaves out; empty where there is nothing."""
        told = (self.more_masks, self.hospital, self.published, self.held_out, self.public_id, self.place)
        return repr(told) if any(told) else ""


def read(path: Path) -> list[Record]:
    """The rows of a manifest, in its order.

    Raises:
        ManifestError: no readable CSV, no file column, a file listed twice, or labels that are not numbers.
    """
    table = _table(path)
    file_column = _file_column(path, table)
    _refuse_repeats(path, table[file_column])
    labels = _labels(path, table, file_column)
    folder = path.parent.resolve()
    rows = table.to_dict("records")
    return [
        _record({str(key): str(value) for key, value in row.items()}, file_column, folder, known)
        for row, known in zip(rows, labels, strict=True)
    ]


def _table(path: Path) -> pd.DataFrame:
    """The file as text, every cell stripped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
        separator = ";" if head.count(";") > head.count(",") else ","
        names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not a CSV in UTF-8; save it as 'CSV UTF-8'") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ManifestError(f"{path}: not readable as CSV: {' '.join(str(error).split())}") from None
    if table.index.nlevels > 1 or not isinstance(table.index, pd.RangeIndex):
        raise ManifestError(f"{path}: rows have more cells than the header has columns")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ManifestError(f"{path}: column {repeated[0]!r} is there twice")
    table.columns = table.columns.str.strip()
    if table.empty:
        raise ManifestError(f"{path}: no rows below the header")
    table = pd.DataFrame({name: table[name].fillna("").str.strip() for name in table.columns})
    return table if "patient_id" in table.columns else table.rename(columns={"patient": "patient_id"})


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
        first, second = (names == repeats.iloc[0]).to_numpy().nonzero()[0][:2] + 2  # line 1 is the header
        raise ManifestError(
            f"{path}: lines {first} and {second} name the same file {repeats.iloc[0]!r}; keep one row a file"
        )


def _labels(path: Path, table: pd.DataFrame, file_column: str) -> list[dict[str, int]]:
    """Known labels of every row: the columns' and then the names' in `label`."""
    columns = [name for name in table.columns if name.startswith(LABEL_PREFIX)]
    named = "label" in table.columns and not set(table["label"].str.lower()) <= UNKNOWN_LABELS | _NUMBERS
    if "label" in table.columns and not named:
        columns.append("label")
    elif not named:
        listed = {*FILE_COLUMNS, *KNOWN_COLUMNS, *OTHER_COLUMNS, *columns}
        columns += [name for name in table.columns if name not in listed and not name.startswith("Unnamed")]
    labels: list[dict[str, int]] = [{} for _ in range(len(table))]
    for column in columns:
        name = column.removeprefix(LABEL_PREFIX).strip()
        for row, (known, cell) in enumerate(zip(labels, table[column], strict=True)):
            value = _label_value(path, column, row, cell)
            if value is not None:
                known[name] = value
    if named:
        _add_names(path, table["label"], labels)
    return labels


_NUMBERS = {"0", "1", "0.0", "1.0"}


def _label_value(path: Path, column: str, row: int, cell: str) -> int | None:
    if cell.lower() in UNKNOWN_LABELS:
        return None
    if cell not in _NUMBERS:
        near = get_close_matches(column, KNOWN_COLUMNS, n=1, cutoff=0.8)
        hint = f"or did you mean {near[0]!r}?" if near else "remove the column if it is no label"
        raise ManifestError(
            f"{path}: line {row + 2}: label column {column!r} holds {cell!r}; labels are 1, 0, or -1 or empty "
            f"for unknown ({hint})"
        )
    return int(float(cell))


def _add_names(path: Path, cells: "pd.Series[str]", labels: list[dict[str, int]]) -> None:
    """One label a name in `label`: the row's own are 1, the manifest's others 0; empty cells leave all unknown."""
    rows = [
        [name.strip() for name in re.split(r"[;|]", cell) if name.strip().lower() not in UNKNOWN_LABELS]
        for cell in cells
    ]
    names = sorted({name for row in rows for name in row})
    if len(names) > MAX_CATEGORIES:
        raise ManifestError(
            f"{path}: column 'label' holds {len(names)} different names, more than {MAX_CATEGORIES}; free text "
            "goes into 'labels_raw'"
        )
    for known, present in zip(labels, rows, strict=True):
        if present:
            known |= {name: int(name in present) for name in names if name not in known}


def _record(row: dict[str, str], file_column: str, folder: Path, labels: dict[str, int]) -> Record:
    name = row[file_column]
    file, problem = inside(folder, name)
    masks, warning = _masks(folder, _known(row.get("mask", "")))
    patient = row.get("patient_id", "")
    patient = "" if patient.lower() in NO_VALUE else patient
    group = row.get("split_group", "")
    published = row.get("split", "").lower()
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
        published=published if published in PUBLISHED else "",
        held_out=published == "test",
    )


def _masks(folder: Path, names: str) -> tuple[tuple[Path, ...], str]:
    """The masks of a row, and what is wrong with one of them; then there are none."""
    found = [inside(folder, name.strip()) for name in names.split("|") if name.strip()]
    warning = next((problem for _, problem in found if problem), "")
    return ((), warning) if warning else (tuple(path for path, _ in found), "")


def inside(folder: Path, name: str) -> tuple[Path, str]:
    """A path below a folder, and what is wrong with it: it must not lead out of the folder."""
    if not name:
        return folder, "no file named"
    if "\0" in name:
        return folder, "not a file name"
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        return path, "leads out of the manifest's folder"
    return path, ""


def _known(text: str) -> str:
    return "" if text.lower() in NO_VALUE else text


def _age_band(age: str, group: str) -> str:
    """From the age in years or in DICOM's form, or else from the group; a cohort such as "1-5y" is not an age."""
    try:
        years: float | None = float(age)
    except ValueError:
        years = dicom_age(age)
    band = "" if years is None else age_band(years)
    return band or {"paediatric": "paediatric", "pediatric": "paediatric", "adult": "adult"}.get(
        group.lower(), ""
    )
