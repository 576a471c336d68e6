"""Fixtures that any test may use."""

import gc
import os
from pathlib import Path

import pytest

# Tests run side by side, one a core; read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sscxr  # noqa: F401  makes timm importable beside a CPU-only torch, before a test imports it

# Finding the tests imports all there is to import, and nothing of it is ever thrown away: to look for garbage among
# it takes a quarter of that time, and time again in each test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real chest X-rays beside the project; tests that want it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "cxr").is_dir():
        pytest.skip(f"no real chest X-rays at {folder}")
    return folder


@pytest.fixture
def any_posture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let made pictures pass, which are no thorax that the posture detector knows; real ones are looked at."""
    from sscxr.data.pixels import decode
    from sscxr.predict import reading

    if "data" not in request.keywords:
        monkeypatch.setattr(decode, "_check_posture", lambda content, frontal: [])
        monkeypatch.setattr(reading, "WORKERS", 0)  # processes of their own would look all the same
