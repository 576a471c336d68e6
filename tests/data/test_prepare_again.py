"""A site cache that is prepared again, added to, taken from; and runs that are killed or have no room."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dicoms import chest, dataset, save
from exports import contents, picture, quarantine, run, write
from marks import slow

from sscxr.data.cache import assemble, store
from sscxr.data.cache.cache import CacheError, open_cache
from sscxr.data.corpora.manifest import ManifestError
from sscxr.data.phantoms import phantom
from sscxr.data.pixels import decode
from sscxr.data.pixels.facts import Refused
from sscxr.data.prepare import pool
from sscxr.data.prepare.listing import SourceError
from sscxr.data.prepare.pool import WorkerError
from sscxr.data.prepare.pool import decode as decode_in_pool
from sscxr.data.prepare.prepare import PrepareError

pytestmark = pytest.mark.usefixtures("any_posture")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom.write(tmp_path_factory.mktemp("phantoms"), images=16, sites=2, seed=1, size=96)


def test_a_second_run_is_quick_and_changes_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(export / "copy.png", picture(0))
    (export / "notes.txt").write_text("x")
    cache = run(export, tmp_path / "cache")
    before = contents(cache.folder)
    stamps = {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir() if path.name != "lock"}

    def forbidden(task: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("sscxr.data.prepare.pool.attempt", forbidden)
    run(export, tmp_path / "cache")
    assert contents(cache.folder) == before
    assert {
        path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir() if path.name != "lock"
    } == stamps


def test_a_later_export_is_appended_and_inherits_group_and_split(export: Path, tmp_path: Path) -> None:
    old = run(export, tmp_path / "cache")
    images, index = old.images.copy(), old.index.copy()
    later = tmp_path / "later"
    later.mkdir()
    save(dataset(chest(seed=20), PatientID="P-1"), later / "new.dcm")
    write(later / "again.png", picture(0))
    cache = run(later, tmp_path / "cache", source="later")
    assert len(cache) == len(images) + 1
    np.testing.assert_array_equal(cache.images[: len(images)], images)
    assert cache.index["image"][: len(images)].equals(index["image"])
    assert quarantine(cache.folder) == {
        "again.png": "duplicate: same pixels as an image that is in the cache already"
    }
    patient = index[index["group"].duplicated(keep=False)]
    new = cache.index.iloc[-1]
    assert (new["group"], new["split"]) == (patient["group"].iloc[0], patient["split"].iloc[0])
    assert cache.summary["sources"] == ["local", "later"]


def test_new_labels_for_old_files_update_their_rows(export: Path, tmp_path: Path) -> None:
    old = run(export, tmp_path / "cache")
    images, order = old.images.copy(), list(old.index["image"])
    (tmp_path / "labels.csv").write_text("file,Mass\n2.png,1\n3.png,0\n")
    cache = run(export, tmp_path / "cache", labels=tmp_path / "labels.csv")
    assert cache.labels == ["Mass"]
    assert sorted(cache.label("Mass")[~np.isnan(cache.label("Mass"))]) == [0, 1]
    assert list(cache.index["image"]) == order
    np.testing.assert_array_equal(cache.images, images)
    assert quarantine(cache.folder) == {}


def test_a_removed_patient_is_gone_and_stays_so(export: Path, tmp_path: Path) -> None:
    cache = run(export, tmp_path / "cache")
    images, index = cache.images.copy(), cache.index.copy()
    theirs = index["group"].duplicated(keep=False).to_numpy()
    assert assemble.remove(cache.folder, patients=["P-1"]) == 2
    left = open_cache(cache.folder)
    np.testing.assert_array_equal(left.images, images[~theirs])
    assert list(left.index["image"]) == list(index["image"][~theirs])
    again = run(export, tmp_path / "cache")
    assert len(again) == 6
    assert [reason.split(":")[0] for reason in quarantine(cache.folder).values()] == [
        "removed on request"
    ] * 2
    before = contents(cache.folder)
    run(export, tmp_path / "cache")
    assert contents(cache.folder) == before
    save(dataset(chest(seed=30), PatientID="P-1"), export / "later.dcm")
    assert len(run(export, tmp_path / "cache")) == 6
    back = run(export, tmp_path / "cache", readd_removed=True)
    assert len(back) == 9
    assert quarantine(cache.folder) == {}
    with pytest.raises(CacheError, match="nothing was removed"):
        assemble.remove(cache.folder, patients=["nobody"])
    assert assemble.remove(cache.folder, groups=list(back.index["group"])) == 9
    assert len(open_cache(cache.folder)) == 0


@pytest.mark.parametrize("moves", [n if n in (0, 4, 8) else slow(n) for n in range(9)])
def test_a_commit_is_all_or_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed after any number of moves, the cache is the old one or, after the next start, the new one."""
    run(export, tmp_path / "cache")
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "cache", whole)
    old = contents(tmp_path / "cache")
    assemble.remove(whole, patients=["P-1"])
    new = contents(whole)
    done = 0
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    try:
        assemble.remove(tmp_path / "cache", patients=["P-1"])
    except KeyboardInterrupt:
        with pytest.raises(CacheError, match="interrupted"):
            open_cache(tmp_path / "cache")
    monkeypatch.setattr(Path, "replace", real)
    with store.writing(tmp_path / "cache"):
        pass
    assert contents(tmp_path / "cache") == new != old


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    tmp_path: Path, phantoms: list[Path], seed: int
) -> None:
    manifests = [str(path) for path in phantoms]
    whole = run(manifests, tmp_path / "whole")
    script = (
        "import sys; from sscxr.data.prepare.prepare import prepare\n"
        "prepare(sys.argv[2:], sys.argv[1], size=64, workers=0, progress=False, salt=bytes(range(32)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), *manifests]
    process = subprocess.Popen(command)
    journal = tmp_path / "cache" / "work" / "journal.jsonl"
    lines = (9, 17)[seed]
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if journal.exists() and seed == 0:
        with journal.open("ab") as file:
            file.write(b'{"key": "half a li')
    cache = run(manifests, tmp_path / "cache")
    assert contents(cache.folder) == contents(whole.folder)
    assert not (cache.folder / "work").exists()


@pytest.mark.slow
def test_workers_give_the_same_bytes(tmp_path: Path, phantoms: list[Path]) -> None:
    one = run(phantoms, tmp_path / "one")
    two = run(phantoms, tmp_path / "two", workers=2)
    assert contents(one.folder) == contents(two.folder)


def test_a_file_that_kills_its_worker_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import killing

    files = [write(tmp_path / f"{number}.png", picture(number)) for number in range(12)]
    monkeypatch.setattr("sscxr.data.prepare.pool._limited", killing.limited)
    tasks = [(file.name, decode.Task(file, None, "L", 64, 10**6)) for file in files]
    results = dict(decode_in_pool(tasks, 2))
    assert set(results) == {file.name for file in files}
    refused = {name: str(result) for name, result in results.items() if isinstance(result, Exception)}
    assert list(refused) == ["7.png"]
    assert refused["7.png"].startswith("kills its reader")


def test_a_refused_file_is_tried_anew_where_its_line_is_deleted_or_it_is_touched(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, refused = tmp_path / "cache", export / "pictures" / "0.png"
    tried: list[str] = []

    def kills(task: decode.Task) -> decode.Prepared | Refused:
        tried.append(task.file.name)
        return Refused("kills its reader") if task.file == refused else decode.attempt(task)

    def again() -> list[str]:
        tried.clear()
        run(export, out)
        return list(tried)

    monkeypatch.setattr("sscxr.data.prepare.pool.attempt", kills)
    assert refused.name in again()
    assert again() == []
    (out / "quarantine.csv").write_text("file,reason\n")
    assert again() == [refused.name]
    os.utime(refused)
    assert again() == [refused.name]
    assert list(quarantine(out)) == [refused.name]


def test_a_folder_that_can_be_read_again_is_no_longer_refused(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    run(export, out)
    refused = {f"{export / name},not readable: folder: Permission denied\n" for name in ("pictures", "shut")}
    with (out / "quarantine.csv").open("a") as file:
        file.writelines(sorted(refused))
    assert {"pictures", "shut"} <= set(quarantine(out))
    run(export, out)
    assert "shut" in quarantine(out)
    assert "pictures" not in quarantine(out)


def test_workers_share_the_memory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import killing

    monkeypatch.setattr(pool, "physical_memory", lambda: 8 << 30)
    assert pool.default_workers() <= 4
    assert [pool.memory_share(workers) >> 30 for workers in (1, 2, 8)] == [8, 4, 1]
    monkeypatch.setattr(pool, "physical_memory", lambda: 1 << 40)
    assert pool.memory_share(8) == pool.MEMORY_LIMIT
    monkeypatch.setattr(pool, "physical_memory", lambda: 1 << 30)
    assert pool.default_workers() == 1
    monkeypatch.setattr(pool, "_limited", killing.greedy)
    tasks = [(size, decode.Task(tmp_path / str(size << 20), None, "L", 64, 10**6)) for size in (100, 600)]
    results = {size: str(result) for size, result in decode_in_pool(tasks, 2)}
    assert results == {100: "fits", 600: "too large"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_worker_keeps_memory_from_one_file_to_the_next() -> None:
    import killing

    with pool._pool(1) as workers:
        assert workers.submit(killing.faults).result() < 100


def test_workers_that_do_not_start_are_no_fault_of_the_files(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import killing

    monkeypatch.setattr("sscxr.data.prepare.pool._start_worker", killing.die)
    with pytest.raises(WorkerError, match="die as they start"):
        run(export, tmp_path / "cache", workers=1)
    assert not (tmp_path / "cache" / "quarantine.csv").exists()


def test_bad_input_is_one_line_and_loses_nothing(export: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    write(other / "mine.png", picture(0))
    with pytest.raises(SourceError, match="no such file or folder"):
        run(tmp_path / "nowhere", tmp_path / "cache")
    with pytest.raises(PrepareError, match="no files in"):
        run(empty, tmp_path / "cache")
    with pytest.raises(CacheError, match="is not a cache"):
        run(export, other)
    (tmp_path / "labels.csv").write_text("file,Mass\nx.png,1\n")
    with pytest.raises(ManifestError, match="none of its 1 rows"):
        run(export, tmp_path / "cache", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "cache").exists()
    (empty / "notes.txt").write_text("x")
    with pytest.raises(PrepareError, match="none of 1 files"):
        run(empty, tmp_path / "cache")
    assert quarantine(tmp_path / "cache")["notes.txt"].startswith("not an image")
    with pytest.raises(CacheError, match="not a finished cache"):
        open_cache(tmp_path / "cache")
    cache = run(export, tmp_path / "cache")
    before = contents(cache.folder)
    with pytest.raises(CacheError, match="holds images of 64 px"):
        run(export, tmp_path / "cache", size=96)
    with pytest.raises(CacheError, match="another salt"):
        run(export, tmp_path / "cache", salt=b"x" * 32)
    with store.writing(cache.folder), pytest.raises(CacheError, match="another process"):
        run(export, tmp_path / "cache")
    assert contents(cache.folder) == before


def test_a_full_disk_is_told_and_nothing_is_lost(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(export, tmp_path / "whole")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_images", full)
        with pytest.raises(PrepareError, match=r"disk of .* is full"):
            run(export, tmp_path / "cache")
    monkeypatch.setattr("sscxr.data.prepare.pool.attempt", full)  # nothing is decoded a second time
    cache = run(export, tmp_path / "cache")
    assert contents(cache.folder) == contents(whole.folder)


def test_two_that_begin_one_cache_at_once_do_not_have_two_salts(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first draws its salt."""
    drawn: list[bytes] = []

    def draw(count: int) -> bytes:
        drawn.append(bytes([len(drawn)]) * count)
        if len(drawn) == 1:
            with pytest.raises(CacheError, match="another process is writing"):
                run(export, tmp_path / "cache", salt=None)
        return drawn[0]

    monkeypatch.setattr(store.secrets, "token_bytes", draw)
    run(export, tmp_path / "cache", salt=None)
    assert (tmp_path / "cache" / "salt").read_bytes() == drawn[0]
    assert len(drawn) == 1


def test_a_disk_that_is_full_from_the_start_leaves_a_folder_to_go_on_with(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(PrepareError, match=r"disk of .* is full"):
            run(export, tmp_path / "cache")
    assert len(run(export, tmp_path / "cache")) == 8


@pytest.mark.parametrize("name", ["images.npy", "summary.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]"])
def test_a_damaged_cache_is_one_line(export: Path, tmp_path: Path, name: str, content: bytes) -> None:
    cache = run(export, tmp_path / "cache").folder
    (cache / name).write_bytes(content)
    for again in (lambda: open_cache(cache), lambda: run(export, cache)):
        with pytest.raises(CacheError, match=f"{name}|format version None|is damaged"):
            again()
