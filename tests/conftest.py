"""Fixtures that any test may use."""

import os
from pathlib import Path

import pytest

# Tests run side by side, one a core; read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sscxr  # noqa: F401  makes timm importable beside a CPU-only torch, before a test imports it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real chest X-rays beside the project; tests that want it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cxr").is_dir():
        pytest.skip(f"no real chest X-rays at {folder}")
    return folder
