"""The search for canaries finds what is planted in every place, in every encoding."""

import base64
import gzip
import io
import json
import os
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from canaries import Canaries
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from leaks import Search
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "utf-8": lambda text: "Jörg^".encode() + text,
    "latin-1": lambda text: "Jörg^".encode("latin-1") + text,
    "lower case": bytes.lower,
    "cut": lambda text: text[:8],
    "utf-16-le": lambda text: text.decode().encode("utf-16-le"),
    "utf-16-be": lambda text: text.decode().encode("utf-16-be"),
    "utf-16, odd": lambda text: b"\1" + text.decode().encode("utf-16-le"),
    "utf-32": lambda text: text.decode().encode("utf-32-le"),
    "base64": base64.b64encode,
    "base64 + 1": lambda text: base64.b64encode(b"1" + text),
    "base64 + 2": lambda text: base64.b64encode(b"12" + text),
    "base64 within": lambda text: b"x" + base64.urlsafe_b64encode(b"\xff\xfe" * 9 + text),
    "base64 lines": lambda text: base64.encodebytes(b"a line of many " * 6 + text),
    "hex": lambda text: text.hex().encode(),
    "HEX, odd": lambda text: b"0" + text.hex().upper().encode(),
    "gzip": gzip.compress,
    "zlib": lambda text: zlib.compress(b"a text that is long enough to shrink " * 9 + text, 9),
    "zlib, cut": lambda text: zlib.compress(text + os.urandom(9000))[:6000],
    "base64 of gzip": lambda text: base64.b64encode(gzip.compress(text)),
    "hex of utf-16": lambda text: text.decode().encode("utf-16").hex().encode(),
    "base64 of base64": lambda text: base64.b64encode(base64.b64encode(text)),
}


def _log(folder: Path, leak: bytes) -> None:
    (folder / "superlink.log").write_bytes(b"2026-11-22 18:00:00 INFO round 1\nERROR " + leak + b"\nINFO\n")


def _table(folder: Path, leak: bytes, *, blob: bool) -> None:
    with sqlite3.connect(folder / "link.db") as database:
        database.execute("CREATE TABLE message (id INTEGER, content)")
        value = "?" if blob else "CAST(? AS TEXT)"
        database.execute(f"INSERT INTO message VALUES (1, {value})", (leak,))
    database.close()


def _long_cell(folder: Path, leak: bytes) -> None:
    """In a cell over several pages, across the seam of two."""
    with sqlite3.connect(folder / "link.db") as database:
        database.execute("CREATE TABLE objects (content BLOB)")
        for at in range(4080, 4100):
            database.execute("INSERT INTO objects VALUES (?)", (os.urandom(2 * at) + leak,))
    database.close()


def _deleted_row(folder: Path, leak: bytes) -> None:
    """Deleted, and still in the write-ahead log: the state of a SuperLink's database after a run."""
    database = sqlite3.connect(folder / "own.db")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE objects (content BLOB)")
    database.execute("INSERT INTO objects VALUES (?)", (leak,))
    database.commit()
    database.execute("DELETE FROM objects")
    database.commit()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(folder / f"own.db{suffix}", folder / f"link.db{suffix}")
    database.close()
    (folder / "own.db").unlink()


def _release(folder: Path, leak: bytes, *, name: str) -> None:
    (folder / "encoder").mkdir()
    (folder / "encoder" / name).write_bytes(b'{"architecture": "' + leak + b'"}')


def _tensor(folder: Path, leak: bytes) -> None:
    values = np.frombuffer(leak, np.uint8)
    safetensors.numpy.save_file({"w": np.zeros(9, np.float32), "x": values}, folder / "model.safetensors")


def _array(folder: Path, leak: bytes) -> None:
    np.save(folder / "update.npy", np.frombuffer(leak, np.uint8))


def _report(folder: Path, leak: bytes) -> None:
    (folder / "report.html").write_bytes(b"<html><td>" + leak + b"</td></html>")


def _picture(folder: Path, leak: bytes, *, zipped: bool) -> None:
    """A picture's text, the picture within the report."""
    chunks, file = PngInfo(), io.BytesIO()
    chunks.add(
        b"zTXt" if zipped else b"tEXt", b"Comment\0" + (b"\0" + zlib.compress(leak) if zipped else leak)
    )
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(file, "png", pnginfo=chunks)
    text = base64.b64encode(file.getvalue())
    (folder / "report.html").write_bytes(b'<img src="data:image/png;base64,' + text + b'">')


def _archive(folder: Path, leak: bytes) -> None:
    with zipfile.ZipFile(folder / "state.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first", b"nothing")
        archive.writestr("data.pkl", b"a text that is long enough to shrink " * 9 + leak)


def _stream(folder: Path, leak: bytes, *, how: str) -> None:
    """A recorded connection: a first message and its answer, then the leak in the second's or its answer's."""
    plain = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc"
    fine = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 2\r\n\r\nok"
    head, body = b"content-length: %d" % len(leak), leak
    if how == "chunked":
        head, half = b"transfer-encoding: chunked", len(leak) // 2
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (leak[:half], leak[half:]) if part)
        body += b"0\r\n\r\n"
    elif how != "plain":
        packer = zlib.compressobj(wbits={"gzip": 31, "deflate": -15}[how])
        body = packer.compress(leak) + packer.flush()
        head = b"content-encoding: %s\r\ncontent-length: %d" % (how.encode(), len(body))
    up, down = plain + plain, fine + b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body
    if how == "plain":
        ask = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: localhost\r\n"
        up, down = plain + ask + head + b"\r\n\r\n" + body, fine + fine
    (folder / "00001-up").write_bytes(up)
    (folder / "00001-down").write_bytes(down)


def _message(folder: Path, leak: bytes) -> None:
    """Flower's own form of a record of bytes."""
    (folder / "message").write_bytes(ConfigRecord({"note": "x", "leak": leak}).deflate())


PLACES: dict[str, Callable[[Path, bytes], None]] = {
    "log": _log,
    "table, text": lambda folder, leak: _table(folder, leak, blob=False),
    "table, blob": lambda folder, leak: _table(folder, leak, blob=True),
    "table, long cell": _long_cell,
    "table, deleted row": _deleted_row,
    "release, card": lambda folder, leak: _release(folder, leak, name="README.md"),
    "release, config": lambda folder, leak: _release(folder, leak, name="config.json"),
    "release, tensor": _tensor,
    "array": _array,
    "report": _report,
    "report, picture": lambda folder, leak: _picture(folder, leak, zipped=False),
    "report, zipped text": lambda folder, leak: _picture(folder, leak, zipped=True),
    "archive": _archive,
    "wire": lambda folder, leak: _stream(folder, leak, how="plain"),
    "wire, chunked": lambda folder, leak: _stream(folder, leak, how="chunked"),
    "wire, gzip": lambda folder, leak: _stream(folder, leak, how="gzip"),
    "wire, deflate": lambda folder, leak: _stream(folder, leak, how="deflate"),
    "Flower's record": _message,
}


def found_in(folder: Path, canaries: Canaries) -> set[str]:
    search = Search(canaries)
    return {hit.token for hit in search.folder(folder) | search.record(folder)}


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_text_is_found(tmp_path: Path, place: str) -> None:
    """In every encoding."""
    canaries, missed = Canaries(), []
    token = canaries.text("planted")
    for encoding, encode in ENCODINGS.items():
        folder = tmp_path / encoding
        folder.mkdir()
        PLACES[place](folder, encode(token.encode()))
        found = found_in(folder, canaries)
        assert all(token.startswith(part) for part in found)
        missed += [] if found else [encoding]
    assert not missed


VALUES = {
    "AE": str, "PN": str, "UR": str, "DA": str, "TM": str, "DT": str, "DS": str, "IS": str, "UI": str,
    "CS": lambda value: f"CHEST {value}", "date": lambda value: f"{value[:4]}-{value[4:6]}-{value[6:]}",
    "time": lambda value: f"{value[:2]}:{value[2:4]}:{value[4:]}",
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_a_planted_value_is_found(tmp_path: Path, kind: str) -> None:
    canaries = Canaries()
    value = VALUES[kind](canaries.value({"date": "DA", "time": "TM"}.get(kind, kind), "planted"))
    for number, place in enumerate(("log", "table, blob", "report, zipped text", "wire, chunked")):
        folder = tmp_path / str(number)
        folder.mkdir()
        PLACES[place](folder, b"a value: " + base64.b64encode(f"it is {value}, so".encode()))
        assert found_in(folder, canaries) == set(canaries.places), place


def test_planted_names_numbers_and_hashes_are_found(tmp_path: Path) -> None:
    canaries = Canaries()
    texts = [canaries.text("planted") for _ in range(7)]
    whole, decimal = canaries.value("IS", "planted"), canaries.value("DS", "planted")
    more = [canaries.value(kind, "planted") for kind in ("IS", "DS", "IS", "DS", "IS", "DS", "UI")]
    canaries.identifier("4711", "a patient")
    canaries.hashes["0123456789abcdef"] = "an image"
    (tmp_path / f"{texts[0]}.txt").touch()
    safetensors.numpy.save_file(
        {texts[1]: np.zeros(1)},
        tmp_path / "a.safetensors",
        metadata={"from": base64.b64encode(texts[2].encode()).decode()},
    )
    np.save(tmp_path / "a.npy", np.array([texts[3], "other"]))
    (tmp_path / "record").write_bytes(ArrayRecord({texts[4]: Array(np.array([texts[5]]))}).deflate())
    (chunk,) = (Array(np.array([texts[5]])).children or {}).values()
    (tmp_path / "chunk").write_bytes(chunk.deflate())
    (tmp_path / "figures").write_bytes(MetricRecord({"n": int(whole), "x": float(decimal)}).deflate())
    lists = {"n": [1, int(more[0])], "x": [0.5, float(more[1])]}
    (tmp_path / "lists").write_bytes(MetricRecord(lists).deflate())  # type: ignore[arg-type]
    np.save(tmp_path / "b.npy", np.array([int(more[2]), 5]))
    np.save(tmp_path / "c.npy", np.array([float(more[3]), 0.5]))
    with sqlite3.connect(tmp_path / "link.db") as database:
        database.execute("CREATE TABLE t (n, x)")
        database.execute("INSERT INTO t VALUES (?, ?)", (int(more[4]), float(more[5])))
    database.close()
    head = f"GET /{texts[6]} HTTP/1.1\r\nhost: localhost\r\nx-uid: ".encode() + base64.b64encode(
        more[6].encode()
    )
    (tmp_path / "00001-up").write_bytes(head + b"\r\n\r\n")
    (tmp_path / "hash").write_text(json.dumps({"id": f"x0123456789abcdef-{next(iter(canaries.hashes))}00"}))
    found = found_in(tmp_path, canaries)
    assert found == {*canaries.places, "0123456789abcdef", next(iter(canaries.hashes))}


def test_what_looks_like_a_canary_is_none(tmp_path: Path) -> None:
    """Dates amid the digits of a hash or of a long number, and noise."""
    canaries = Canaries()
    day = canaries.value("DA", "")
    (tmp_path / "log").write_text(f"object ab{day}01234567 is node 12{day}345678, 0.12345{day}9876")
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(3 << 20))
    (tmp_path / "wide").write_bytes(np.random.default_rng(0).normal(size=1 << 18).astype("f4").tobytes())
    assert found_in(tmp_path, canaries) == set()
