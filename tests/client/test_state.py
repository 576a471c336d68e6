"""A site's state: kept whole or lost, only what is named, at once or while another site trains."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from client.settings import SiteError
from client.site import StateStore, writes
from sscxr.federation.wire import WireError

TENSORS = {"head.weight": torch.arange(6.0).reshape(2, 3), "exp_avg.encoder.norm.bias": torch.ones(4)}


def stored(folder: Path, *generations: str) -> StateStore:
    store = StateStore(folder)
    for number, name in enumerate(generations):
        store.save("run", name, {key: tensor + number for key, tensor in TENSORS.items()})
    return store


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    tensors, state = stored(tmp_path, "r00000-a00").load("run", "r00000-a00")
    assert state == "kept"
    assert tensors is not None
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_where_no_generation_is_named_there_is_none(tmp_path: Path) -> None:
    assert stored(tmp_path, "r00000-a00").load("run", "") == (None, "new")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def flipped_last(file: Path) -> None:
    flip(file, -1)


def flipped_first_value(file: Path) -> None:
    flip(file, -40)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def without_digest(file: Path) -> None:
    safetensors.torch.save_file(TENSORS, file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, truncated, emptied, flipped_last, flipped_first_value, without_digest, a_folder],
)
def test_what_is_missing_or_damaged_is_lost(tmp_path: Path, damage: Any) -> None:
    store = stored(tmp_path, "r00000-a00")
    damage(tmp_path / "run" / "r00000-a00.safetensors")
    assert store.load("run", "r00000-a00") == (None, "lost")


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00")
    file = tmp_path / "run" / "r00000-a00.safetensors"
    good = file.read_bytes()
    for place in range(0, len(good), 3):
        flip(file, place)
        tensors, state = store.load("run", "r00000-a00")
        # A bit of white space or of the header's own layout may change nothing of what is read.
        assert state == "lost" or all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)  # type: ignore[index]
        file.write_bytes(good)


@pytest.mark.parametrize(
    "names", [("../run", "a"), ("run", "../a"), ("run", "/a"), ("", "a"), ("run", "a b")]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    store = stored(tmp_path / "store", "r00000-a00")
    with pytest.raises(WireError):
        store.save(*names, TENSORS)
    assert store.load(*names) == (None, "lost")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_only_what_is_named_is_kept(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00", "r00001-a00", "r00001-a01")
    stored(tmp_path / "other", "r00000-a00")
    (tmp_path / "run" / "r00001-a02.tmp").write_bytes(b"half")
    (tmp_path / "run" / "r00001-a00.tmp").write_bytes(b"half")
    store.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["r00001-a00.safetensors"]
    assert (tmp_path / "other" / "run" / "r00000-a00.safetensors").exists()
    store.keep_only("run", "")
    assert not list((tmp_path / "run").iterdir())
    store.keep_only("a-run-that-never-was", "")


def test_another_run_of_the_same_site_is_left_alone(tmp_path: Path) -> None:
    store = stored(tmp_path, "r00000-a00")
    store.save("second", "r00000-a00", TENSORS)
    store.keep_only("second", "")
    assert store.load("run", "r00000-a00")[1] == "kept"


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_save_that_is_killed_leaves_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = stored(tmp_path, "r00000-a00")

    def killed(*args: Any, **named: Any) -> None:
        if where == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    target = {"save_file": safetensors.torch, "fsync": os, "replace": Path}[where]
    with monkeypatch.context() as patch:
        patch.setattr(target, where, killed)
        with pytest.raises(KeyboardInterrupt):
            store.save("run", "r00000-a00", {"head.weight": torch.zeros(1)})
    tensors, state = store.load("run", "r00000-a00")
    assert state == "kept"
    assert tensors is not None
    assert torch.equal(tensors["head.weight"], TENSORS["head.weight"])
    store.save("run", "r00001-a00", TENSORS)
    store.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["r00001-a00.safetensors"]


# ---- states that are written while another site trains


@pytest.fixture
def behind() -> Iterator[None]:
    writes.behind = True
    yield
    writes.behind = False


def test_a_state_written_behind_is_there_for_its_own_site(tmp_path: Path, behind: None) -> None:
    a, b = stored(tmp_path / "a", "r00000-a00"), stored(tmp_path / "b", "r00000-a00", "r00001-a00")
    for store, name in ((b, "r00001-a00"), (a, "r00000-a00")):
        assert store.load("run", name)[1] == "kept"
    b.keep_only("run", "r00001-a00")
    assert [file.name for file in (tmp_path / "b" / "run").iterdir()] == ["r00001-a00.safetensors"]


def test_the_same_bytes_behind_or_not(tmp_path: Path, behind: None) -> None:
    stored(tmp_path / "behind", "r00000-a00")
    writes.settle()
    writes.behind = False
    stored(tmp_path / "at-once", "r00000-a00")
    one, other = (
        (tmp_path / n / "run" / "r00000-a00.safetensors").read_bytes() for n in ("behind", "at-once")
    )
    assert one == other


def test_what_could_not_be_written_is_told_before_a_round_is_committed(tmp_path: Path, behind: None) -> None:
    (tmp_path / "a").write_text("no folder")
    stored(tmp_path / "a", "r00000-a00")
    stored(tmp_path / "b", "r00000-a00", "r00001-a00")  # the next ones do not hide it
    with pytest.raises(SiteError, match="could not be written") as error:
        writes.settle()
    assert error.value.failure == "disk"
    assert (tmp_path / "b" / "run" / "r00001-a00.safetensors").exists()
    writes.settle()  # told once
