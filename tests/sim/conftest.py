"""What several tests of simulations begin with."""

from pathlib import Path

import pytest
from simulations import small_cache


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache, which runs read and leave as it is."""
    return small_cache(tmp_path_factory.mktemp("small"))
