"""The facts of an image besides its pixels, in the cache's vocabulary, and the refusal of a file.

DICOM headers and manifests spell the same facts in many ways; this module reads them all.
"""

import re
import unicodedata
from dataclasses import dataclass

AGE_BANDS = ((5, "0-4"), (18, "5-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (131, "80+"))
# Ids that exports write to mean "none". Used as ids, they would make one patient of a whole site.
PLACEHOLDER_IDS = {
    "", "0", "00000000", "anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "na",
    "nan", "nil", "noid", "none", "null", "patient", "phantom", "removed", "test", "unknown", "unk", "xxx",
}  # fmt: skip
NO_VALUE = {"", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "unknown", "?"}


class Refused(ValueError):  # noqa: N818 - a verdict on a file, which travels as a value as well
    """A file that is refused.

    Attributes:
        kind: the class of the reason, without anything about the file; it is counted and printed.
        detail: more about this file, only for `quarantine.csv`.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        self.detail = " ".join(detail.split())[:200]
        super().__init__(f"{kind}: {self.detail}" if self.detail else kind)

    def __reduce__(self) -> tuple[type["Refused"], tuple[str, str]]:
        return Refused, (self.kind, self.detail)


@dataclass(frozen=True)
class Facts:
    """The facts of a file; empty or None if unknown.

    Attributes:
        view: PA, AP, AP supine, L.
        sex: F, M.
        age_band: as in the cache's index.
        spacing_mm: millimetres a pixel of the original.
        patient: the patient's identifier as written; it is hashed before anything is stored.
        body_part: as written.
        grey_range: the source of black and white.
        warnings: doubts, each a few words.
    """

    view: str = ""
    sex: str = ""
    age_band: str = ""
    spacing_mm: float | None = None
    patient: str = ""
    body_part: str = ""
    grey_range: str = ""
    warnings: tuple[str, ...] = ()


# Decubitus and oblique views, as words or by DICOM's codes; BRAX writes "AP LLD" and "LT-DECUB".
_NEITHER = {"decubitus", "decub", "oblique", "lld", "rld", "llo", "rlo"}


def normal_view(text: str, *, supine: bool = False) -> str:
    """Return PA, AP, AP supine, L, or empty for any other view.

    Reads DICOM's View Position (PS3.3 C.8.11.1: AP, PA, LL, RL; obliques and decubitus views are left unknown),
    the manifests' words, and series descriptions such as "Thorax a.p. liegend".

    Args:
        text: the view as written.
        supine: whether the patient is known to lie on the back.
    """
    words = re.sub(r"\b([ap])\W{1,2}([ap])\b\.?", r"\1\2", text.lower())
    tokens = set(re.split(r"[^a-z0-9]+", words))
    if tokens & {"antero", "anteroposterior"}:
        tokens.add("ap")
    if tokens & {"postero", "posteroanterior"}:
        tokens.add("pa")
    lateral = tokens & {"l", "ll", "rl", "lat", "lateral", "lateralis", "seitlich"}
    frontal = tokens & {"ap", "pa"}
    if tokens & _NEITHER or len(frontal) + bool(lateral) != 1:
        return ""
    if lateral:
        return "L"
    lying = supine or bool(tokens & {"supine", "recumbent", "liegend", "lying", "bedside"})
    return "PA" if frontal == {"pa"} else "AP supine" if lying else "AP"


def normal_sex(text: str) -> str:
    """Return F, M, or empty: unknown or other."""
    letter = text.strip().upper()
    return {"F": "F", "FEMALE": "F", "W": "F", "M": "M", "MALE": "M"}.get(letter, "")


def age_band(years: float) -> str:
    """Return the index's band of an age in years; empty outside 0..130."""
    if not 0 <= years < AGE_BANDS[-1][0]:
        return ""
    return next(band for below, band in AGE_BANDS if years < below)


def dicom_age(text: str) -> float | None:
    """Return years from DICOM's Age String (PS3.5 6.2: nnnD, nnnW, nnnM, nnnY) or a bare number of years."""
    match = re.fullmatch(r"\s*(\d{1,3})\s*([DWMY]?)\s*", text.upper())
    if match is None:
        return None
    per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]
    return int(match[1]) / per_year


def is_placeholder(patient: str) -> bool:
    """Return whether an identifier, in any script, means that none is known."""
    plain = unicodedata.normalize("NFKC", patient).casefold()
    bare = "".join(letter for letter in plain if letter.isalnum())
    zeros = all(unicodedata.decimal(letter, None) == 0 for letter in bare)
    return bare in PLACEHOLDER_IDS or zeros or set(bare) <= {"x"}


def normal_id(patient: str) -> str:
    """Normalise an identifier in Unicode form, case, and what spreadsheets do to numbers.

    This removes surrounding blanks, leading zeros, a trailing ".0" ("00012", "12.0": "12") and thousands
    separators. Two patients with the same normalised id count as one, which is safer than one patient who counts
    as two.
    """
    plain = " ".join(unicodedata.normalize("NFKC", patient).casefold().split())
    if re.fullmatch(r"\d{1,3}(?:[,.' \u2019]\d{3})+", plain):
        plain = re.sub(r"\D", "", plain)
    plain = re.sub(r"^(\d+)[.,]0{1,2}$", r"\1", plain)
    if plain.isdecimal():
        plain = "".join(str(unicodedata.decimal(digit)) for digit in plain).lstrip("0") or "0"
    return plain
