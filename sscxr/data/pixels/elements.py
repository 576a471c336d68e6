"""Single elements of a DICOM header, which may hold anything."""

import math
import re
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset

_LONGEST = 64
_NO_CODE = re.compile(r"[\x00-\x1f\x7f^]")


def get(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, or None if it is absent, empty or does not parse."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts values on access, and may raise anything on hostile ones
        return None
    return None if value is None or value == "" else value


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as text, several values separated by backslashes; empty if absent."""
    value = get(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, bytes):  # of a kind that is not known
        value = value.decode("latin-1")
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")


def word(dataset: Dataset, keyword: str) -> str:
    """Return an element as upper-case text; empty if absent."""
    return text(dataset, keyword).upper()


def told(code: str) -> str:
    """Return a code of a header, if it is safe to repeat.

    A damaged header may have anything in its place, and a wrong length includes the elements that follow, such as
    the patient's name. So a text is not repeated if it has what no code has: control characters, the ^ between
    the parts of a name, more than 64 characters (PS3.5 6.2).
    """
    return code if len(code) <= _LONGEST and not _NO_CODE.search(code) else "that is damaged"


def numbers(dataset: Dataset, keyword: str, doubts: list[str] | None = None) -> list[float]:
    """Return the finite numbers of an element; none if absent or blank. A decimal comma counts as a point.

    Args:
        dataset: the header.
        keyword: the element's.
        doubts: a decimal comma is recorded here.

    Raises:
        ValueError: it has anything else.
    """
    if keyword not in dataset:
        return []
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom cannot read it as numbers: take it as written
        value = getattr(dataset.get_item(keyword), "value", None)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        value = [part for part in value.replace("\0", " ").split("\\") if part.strip()]
    if value is None:
        return []
    several = list(value) if hasattr(value, "__iter__") else [value]
    if doubts is not None and any("," in str(one) for one in several):
        doubts.append(f"decimal comma in {keyword}")
    found = [float(str(one).strip().replace(",", ".")) for one in several]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{keyword} is not finite")
    return found
