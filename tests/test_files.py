"""Files: a file where a folder is to be written, who may read what, and accounts without a home."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file
from simulations import ROOT

from client import settings
from server import status
from sim import asked, plan
from sscxr import api, files, runs
from sscxr.data.cache import tables
from sscxr.data.cache.cache import open_cache
from sscxr.files import ExistsError
from sscxr.finetuning import finetuned
from sscxr.models import checkpoint
from sscxr.release import fetch, release

WRITERS: dict[str, Callable[[Path], object]] = {
    "sim.plan": lambda out: plan.main(data=[], out=out),
    "sim.run": lambda out: asked.locked(out).__enter__(),
    "site init": lambda out: settings.init(out, name="a"),
    "a server": lambda out: status.held(out).__enter__(),
}


@pytest.mark.parametrize("program", WRITERS)
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_place_of_a_folder_is_named(program: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "FILE"
    file.write_text("kept")
    with pytest.raises(ExistsError, match=rf"{file} is a file; name a folder"):
        WRITERS[program](file / below)
    assert file.read_text() == "kept"


# ---- who may read what


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another account reaches, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def another_account(*unreadable: Path) -> Iterator[None]:
    """Work as somebody who may not read some files."""
    modes = {path: path.stat().st_mode for path in unreadable}
    root = os.geteuid() == 0
    for path in unreadable:
        path.chmod(0o700 if root and path.is_dir() else 0o600 if root else 0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_weights_are_as_readable_as_the_files_beside_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.save_tensors({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"format": "pt"})
        (tmp_path / "beside").touch()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {mode}
    assert torch.equal(load_file(tmp_path / "w.safetensors")["a"], torch.ones(2))


def test_nothing_else_writes_weights_that_are_shared() -> None:
    own = {"files.py", "site.py", "columns.py", "alone.py"}  # a site's state and its cache are its owner's
    for package in ("sscxr", "client", "server", "sim"):
        for file in (ROOT / package).rglob("*.py"):
            assert file.name in own or "save_file(" not in file.read_text(), file


def test_a_private_folder_is_so_with_all_that_is_made_above_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.private_folder(tmp_path / "a" / "b")
        with files.privately():
            (tmp_path / "c").touch()
        (tmp_path / "d").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "c", "d")]
    assert modes == [0o700, 0o700, 0o600, 0o666]


def test_what_may_not_be_read_is_said_to_be_so_and_not_damaged(place: Path) -> None:
    for name in (release.WEIGHTS, release.CONFIG, "summary.json", "ledger.jsonl", "start.pth"):
        (place / name).write_text("{}")
    readers: dict[str, Callable[[], object]] = {
        release.WEIGHTS: lambda: release.load_encoder(place),
        release.CONFIG: lambda: finetuned.load(place),
        "summary.json": lambda: open_cache(place),
        "ledger.jsonl": lambda: tables.load(place),
        "start.pth": lambda: checkpoint._weights_of(place / "start.pth"),
        "": lambda: open_cache(place),
    }
    for name, read in readers.items():
        with another_account(place / name), pytest.raises(files.NotReadableError) as error:
            read()
        assert f"{place / name}" in str(error.value)
        assert "not readable by this account" in str(error.value)
        assert "damaged" not in str(error.value)
    files.check_readable(place, ["absent"])


def test_an_account_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "SSCXR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    wanted: dict[str, Callable[[], object]] = {
        "a slash in it": lambda: runs.find("nosuch"),
        "absolute path": lambda: status.folder_of("nosuch"),
        "SSCXR_CACHE": fetch.cache_folder,
        "without '~'": lambda: api.Run("~/run"),
    }
    for words, call in wanted.items():
        with pytest.raises(files.HomeError, match="set HOME") as error:
            call()
        assert words in str(error.value)
    monkeypatch.setenv("SSCXR_CACHE", "/somewhere")
    assert fetch.cache_folder() == Path("/somewhere")


# ---- folders that appear whole


def test_a_folder_appears_whole_in_the_place_of_an_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "half").touch()  # of a writer that was killed
    for text in ("one", "two"):
        with files.whole_folder(folder, 0o700) as fresh:
            assert not any(fresh.iterdir())
            (fresh / text).write_text(text)
            assert not (folder / text).exists()
        assert {path.name for path in tmp_path.rglob("*")} == {"folder", text}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    def write(name: str, error: BaseException | None = None) -> None:
        with files.whole_folder(tmp_path / "folder") as fresh:
            (fresh / name).touch()
            if error:
                raise error

    write("kept")
    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "kept"}


# ---- locks


HOLDER = """
import pathlib, sys, time
from sscxr.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_while_it_is_held_and_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    file, refusal = tmp_path / "lock", ExistsError("held")
    assert not files.is_locked(file)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert files.is_locked(file)
        with pytest.raises(ExistsError, match="held"):
            files.locked(file, refusal).__enter__()
        holder.kill()
    assert not files.is_locked(file)
    with files.locked(file, refusal, patience=1.0):
        assert files.is_locked(file)


def test_a_lock_file_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with files.locked(tmp_path / "shared"), files.privately(), files.locked(tmp_path / "own"):
            pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("shared", "own")] == [0o664, 0o600]
