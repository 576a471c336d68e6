"""What `prepare` found of a run's files: how many could not be used and why, and doubts about those that are used.

Counts by kinds, which are fixed words: nothing names a file.
"""

from collections.abc import Mapping

from sscxr.data.cache.cache import Cache
from sscxr.data.cache.tables import doubts, unusable
from sscxr.release.card import count

MOST = 8  # kinds that are named


def printed(cache: Cache) -> list[str]:
    """Lines for the terminal of who owns the files."""
    lost, odd = unusable(cache), doubts(cache)
    files = f"{sum(lost.values()):,} of {sum(lost.values()) + len(cache):,} files are not used"
    return [
        *([f"{files} ({_kinds(lost, 0)})"] if lost else []),
        *([f"of {len(cache):,} images, with a warning: {_kinds(odd, 0)}"] if odd else []),
    ]


def notes(cache: Cache, min_cell: int) -> list[str]:
    """Lines for the report and the model card: no count below `min_cell`, and no total that would give one away."""
    lost, odd = unusable(cache), doubts(cache)
    return [
        *([f"Files that could not be used: {_kinds(lost, min_cell)}."] if lost else []),
        *([f"Images that are used, with a warning: {_kinds(odd, min_cell)}."] if odd else []),
    ]


def _kinds(found: Mapping[str, int], min_cell: int) -> str:
    """Kinds and their counts, the most frequent first."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{kind}: {count(number, min_cell)}" for kind, number in ordered[:MOST]]
    return ", ".join([*told, *([f"{len(ordered) - MOST} other kinds"] if len(ordered) > MOST else [])])
