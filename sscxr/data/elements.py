"""Single elements of a DICOM header, which may hold anything."""

import math
from typing import Any

from pydicom.dataset import Dataset


def get(dataset: Dataset, keyword: str) -> Any:
    """An element's value, or None where it is absent, empty or does not parse."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts values on access, and may raise anything on hostile ones
        return None
    return None if value is None or value == "" else value


def word(dataset: Dataset, keyword: str) -> str:
    """An element as upper-case text; empty where it is absent."""
    return str(get(dataset, keyword) or "").strip().upper()


def numbers(dataset: Dataset, keyword: str, doubts: list[str] | None = None) -> list[float]:
    """The finite numbers of an element; none where it is absent or blank. A decimal comma counts as a point.

    Args:
        dataset: the header.
        keyword: the element's.
        doubts: where a decimal comma is noted.

    Raises:
        ValueError: it holds anything else.
    """
    if keyword not in dataset:
        return []
    try:
        value = dataset.get(keyword)
    except Exception:  # as written, where pydicom does not read it as numbers
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
