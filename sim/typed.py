"""Separates typed settings from paths, which may have an equals sign as well."""

from collections.abc import Sequence
from pathlib import Path


def sorted_out(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return settings (KEY=VALUE) and paths; what exists, or has `/` or `:` before the first `=`, is a path."""
    settings = [item for item in arguments if _is_setting(item)]
    return settings, [Path(item) for item in arguments if item not in settings]


def _is_setting(item: str) -> bool:
    key, equals, _ = item.partition("=")
    return bool(equals) and not {"/", ":"} & set(key) and not Path(item).exists()
