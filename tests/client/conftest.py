"""A site for any test of the client."""

from pathlib import Path

import federation as fed
import pytest


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return fed.make_site(tmp_path / "anna", "anna", images=10)
