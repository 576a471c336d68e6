"""Reports on a run's files from `prepare`: how many could not be used and why, and doubts about used ones.

Counts are by kind, in fixed words that do not name a file.
"""

from collections.abc import Mapping

from sscxr.data.cache.cache import Cache
from sscxr.data.cache.tables import doubts, unusable
from sscxr.release.card import count

MOST = 8  # the most kinds to name


def printed(cache: Cache) -> list[str]:
    """Return lines for the terminal of the files' owner."""
    lost, odd = unusable(cache), doubts(cache)
    files = f"{sum(lost.values()):,} of {sum(lost.values()) + len(cache):,} files are not used"
    return [
        *([f"{files} ({_kinds(lost, 0)})"] if lost else []),
        *([f"of {len(cache):,} images, with a warning: {_kinds(odd, 0)}"] if odd else []),
    ]


def notes(cache: Cache, min_cell: int) -> list[str]:
    """Return lines for the report and the model card, without counts below `min_cell` or totals that reveal one."""
    lost, odd = unusable(cache), doubts(cache)
    return [
        *([f"Files that could not be used: {_kinds(lost, min_cell)}."] if lost else []),
        *([f"Images that are used, with a warning: {_kinds(odd, min_cell)}."] if odd else []),
    ]


def _kinds(found: Mapping[str, int], min_cell: int) -> str:
    """Return kinds and their counts, the most frequent first."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{kind}: {count(number, min_cell)}" for kind, number in ordered[:MOST]]
    return ", ".join([*named, *([f"{len(ordered) - MOST} other kinds"] if len(ordered) > MOST else [])])
