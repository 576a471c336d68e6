"""Corpora in their folders and a hospital's export, for any test of the data."""

from collections.abc import Callable
from pathlib import Path

import exports
import pytest
from layouts import LAYOUTS
from layouts.base import Truth


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Truth]]:
    """The folder of a corpus by its name, laid out once and only read, and what it holds."""
    laid: dict[str, tuple[Path, Truth]] = {}

    def get(name: str) -> tuple[Path, Truth]:
        if name not in laid:
            root = tmp_path_factory.mktemp(name)
            laid[name] = root, LAYOUTS[name](root)
        return laid[name]

    return get


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A hospital's folder of a few made files."""
    return exports.make(tmp_path / "export")
