"""A search for canaries: in bytes as they lie, and in whatever they decode to, several layers deep.

Texts are found in ASCII, Latin-1, UTF-8, UTF-16 and UTF-32 of either byte order, in any case of letters; within
base64, hexadecimal digits, gzip, zlib, zip archives, chunked and compressed HTTP bodies, pictures' text, NumPy
arrays and SQLite cells. Numbers are found as texts, as protobuf's varints and doubles, and in NumPy arrays. Not
found: less than eight characters of a text token, another compression, encryption, a picture of a text.
"""

import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import decoding
import h11
from canaries import CENTURY, MARK, MINUTE, NUMBER, WHOLE, Canaries

_DEEP = 4  # layers of encoding
_SMALL = 1 << 16  # bytes
_WATCHED = ("message_ins", "message_res", "message", "task", "task_logs", "task_message", "run_series")
# After a mark: what makes a token of it. A cut text token counts from eight characters on.
_TOKENS = {
    MARK: rb"QXZK[A-Z2-7]{4,6}",
    NUMBER: rb"8675309\.?\d{6,10}",
    WHOLE: rb"18675\d{5}",
    MINUTE: rb"2357\d\d[.]?\d{6}",
    "23:57:": rb"23:57:\d\d[.]\d{6}",
} | dict.fromkeys(CENTURY, rb"17[5-8]\d[-./]?\d\d[-./]?\d\d")
_MARKS = {mark.encode(): re.compile(token) for mark, token in _TOKENS.items()}
_AMID = re.compile(rb"[0-9A-F]{16,}")  # a date amid so many digits is a part of a hash or of a long number


@dataclass(frozen=True)
class Hit:
    """A canary that was found.

    Attributes:
        token: it, or as much of it as was there.
        place: the file, connection or table.
        way: the layers above it, outermost first; empty: it lay open.
    """

    token: str
    place: str
    way: str


class Search:
    """A search for one set of canaries.

    Attributes:
        bytes_read: that were looked at, decoded ones too.
    """

    def __init__(self, canaries: Canaries) -> None:
        self._canaries = canaries
        self._found: dict[bytes, set[tuple[str, str]]] = {}
        self._clean: dict[bytes, int] = {}  # runs that held nothing, and how deep they lay
        self.bytes_read = 0

    # ---- bytes

    def blob(self, data: bytes, place: str) -> set[Hit]:
        """What is in some bytes, however deep."""
        key = hashlib.sha256(data).digest()
        if key not in self._found:  # the same model crosses many times
            self._found[key] = set(self._within(data, "", 0))
        return {Hit(token, place, way) for token, way in self._found[key]}

    def _within(self, data: bytes, way: str, deep: int) -> Iterator[tuple[str, str]]:
        self.bytes_read += len(data)
        for token in self._open(data):
            yield token, way
        for step in (2, 4):
            for start in range(step):
                for token in self._open(data[start::step]):
                    yield token, f"{way} utf-{8 * step}".strip()
        for value in decoding.numbers(data):
            if token := self._figure(value):
                yield token, f"{way} number".strip()
        runs = {run for run in decoding.runs(data) if self._clean.get(run, _DEEP + 1) > deep}
        hits = [(token, way) for run in runs for token in self._hashes(run)]
        if deep < _DEEP:
            for kind, inner in decoding.decoded(data, runs):
                hits += self._within(inner, f"{way} {kind}".strip(), deep + 1)
        if not hits:
            self._clean |= dict.fromkeys(runs, deep)
        yield from hits

    def _open(self, data: bytes) -> Iterator[str]:
        """Tokens as they lie in bytes."""
        data = data.upper()
        for mark, token in _MARKS.items():
            at = data.find(mark)
            while at >= 0:
                match = token.match(data, at)
                known = self._known(match[0]) if match else ""
                # A date behind a digit is part of a longer number, such as a time in seconds.
                alone = not data[max(0, at - 1) : at].isdigit()
                if len(known) > 8 or (known and alone and not _AMID.search(data[max(0, at - 8) : at + 16])):
                    yield known
                at = data.find(mark, at + 1)

    def _known(self, found: bytes) -> str:
        """The canary that a match is; empty: none."""
        text = found.decode()
        if text.startswith(MARK):  # a cut one too; by chance, the mark stands among the bytes of weights
            return text if text[:8] in self._canaries.heads else ""
        bare = re.sub(r"\D", "", text)
        for length in (17, 13, 12, 10, 8):
            if bare[:length] in self._canaries.places:
                return bare[:length]
        return ""

    def _figure(self, value: int | float) -> str:
        """The canary that a number is: the digits of an integer or a decimal; empty: none."""
        if not (8_675_309 <= value < 8_675_310 or 1_867_500_000 <= value < 1_867_600_000):
            return ""
        whole = isinstance(value, int) or value.is_integer()
        digits = str(int(value)) if whole else repr(value).replace(".", "")
        return digits if len(digits) in (10, 13) and digits in self._canaries.places else ""

    def _hashes(self, run: bytes) -> Iterator[str]:
        for digits in decoding.HEX.findall(run.lower()):
            text = digits.decode()
            for at in range(len(text) - 15):
                if text[at : at + 16] in self._canaries.hashes:
                    yield text[at : at + 16]

    # ---- places

    def folder(self, folder: Path, *, skip: tuple[str, ...] = ()) -> set[Hit]:
        """What is in a folder's files, in their names, and in the tables of its databases.

        Args:
            skip: names of files, and of folders, that are left out.
        """
        hits: set[Hit] = set()
        for file in sorted(folder.rglob("*")):
            place = str(file.relative_to(folder.parent))
            if set(file.relative_to(folder).parts) & set(skip):
                continue
            hits |= self.blob(file.name.encode("utf-8", "surrogateescape"), f"the name of {place}")
            if file.is_file() and not file.is_symlink():
                with suppress(FileNotFoundError):  # a temporary one
                    hits |= self.file(file, place)
        return hits

    def file(self, file: Path, place: str) -> set[Hit]:
        """What is in a file."""
        data = file.read_bytes()
        hits = self.blob(data, place)
        if data.startswith(b"SQLite format 3\0"):
            hits |= self.database(file, place)
        if file.name.endswith("-wal"):
            hits |= self.blob(decoding.overflowing(data), f"{place} (pages)")
        return hits

    def database(self, file: Path, place: str) -> set[Hit]:
        """What is in a database's cells: each by itself, and a row as a whole."""
        hits: set[Hit] = set()
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as database:
            database.text_factory = bytes
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                table = name.decode()
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    hits |= self.row(row, f"{place} {table}")
        return hits

    def row(self, row: tuple[object, ...], place: str) -> set[Hit]:
        """What is in a table's row."""
        cells = [cell if isinstance(cell, bytes) else str(cell).encode() for cell in row if cell is not None]
        hits = self.blob(b" ".join(cells), place) if sum(map(len, cells)) < _SMALL else set()
        for cell in cells:
            hits |= self.blob(cell, place)
        return hits

    def record(self, folder: Path) -> set[Hit]:
        """What is in the streams of a recorded wire, raw, and in the messages that they carried.

        Raises:
            AssertionError: a stream is no HTTP, or is compressed in a way that is not understood.
        """
        hits: set[Hit] = set()
        for up in sorted(folder.rglob("*-up")):
            down = up.with_name(up.name.replace("-up", "-down"))
            for file, role in ((up, h11.SERVER), (down, h11.CLIENT)):
                if file.exists():
                    data = file.read_bytes()
                    hits |= self.blob(data, file.name)
                    for body in decoding.messages(data, role):
                        hits |= self.blob(body, f"{file.name} (message)")
        return hits


class Watch:
    """What passes through a database while a run goes on: Flower deletes a message once it is read.

    Attributes:
        rows: each with its table, once.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._ended = file, threading.Event()
        self.rows: set[tuple[str, tuple[object, ...]]] = set()
        self._objects: set[object] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=20)) as database:
            database.text_factory = bytes
            while not self._ended.wait(0.2):
                with suppress(sqlite3.OperationalError):  # locked: at the next look
                    self._look(database)

    def _look(self, database: sqlite3.Connection) -> None:
        for table in _WATCHED:
            self.rows |= {(table, row) for row in database.execute(f"SELECT * FROM {table}")}
        there = database.execute("SELECT object_id FROM objects WHERE length(content) > 0").fetchall()
        for (identifier,) in there:
            if identifier not in self._objects:
                ask = "SELECT * FROM objects WHERE object_id = ?"
                for row in database.execute(ask, (identifier.decode(),)):
                    self._objects.add(identifier)
                    self.rows.add(("objects", row))
