"""What is typed to a simulation: settings, and paths of data, which may have an equals sign as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sscxr.config import ConfigError

Data = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH ...", help="Caches, manifests, folders, or corpora (NAME:FOLDER); none: phantoms."
    ),
]


def sorted_out(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return settings (KEY=VALUE) and paths; what exists, or has `/` or `:` before the first `=`, is a path."""
    settings = [item for item in arguments if _is_setting(item)]
    return settings, [Path(item) for item in arguments if item not in settings]


def check_there(paths: Sequence[Path], *, begun: bool) -> None:
    """Refuse a path that is not there, unless the work has `begun` and has its own copy of the data."""
    from sscxr.data import corpora  # pandas takes a while to import, which `--help` does not need

    for path in paths:
        if corpora.named(path) is None and not path.exists() and not begun:
            raise ConfigError(f"--data {path}: no such cache, manifest or folder")


def _is_setting(item: str) -> bool:
    key, equals, _ = item.partition("=")
    return bool(equals) and not {"/", ":"} & set(key) and not Path(item).exists()
