"""The progress of a `prepare` on disk, so that it resumes where it was killed.

`work/pixels.bin` has one image after another (each followed by its mask, if any), `work/journal.jsonl` one line
per file. The pixels are written first, so a complete line implies complete pixels. Reasons of refusal, which may
quote headers, are in `work/quarantine.csv` alone: key, reason.
"""

import csv
import json
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sscxr import printable
from sscxr.data.cache.cache import CacheError
from sscxr.data.cache.tables import with_kind

Bytes = npt.NDArray[np.uint8]


class Journal:
    """The journal of one `prepare`.

    Attributes:
        entries: the result for each file, by the file's key.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Open the journal in `folder`; one with another header is discarded.

        Args:
            folder: the cache's `work/`.
            header: what the entries depend on; it has the images' `size`.
        """
        self._folder, self._size = folder, int(header["size"])
        self.entries: dict[str, dict[str, Any]] = {}
        lines_end, pixels_end = self._read(header)
        if not lines_end:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)  # for its owner alone: it has quoted headers and patients' pixels
        reasons = {key: entry["reason"] for key, entry in self.entries.items() if entry.get("reason")}
        self._reasons = (folder / "quarantine.csv").open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        )
        self._write_reasons(reasons.items())
        self._reasons.flush()
        self._pixels = (folder / "pixels.bin").open("ab")
        self._lines = (folder / "journal.jsonl").open("ab")
        self._pixels.truncate(pixels_end)
        self._lines.truncate(lines_end)
        self._pixels.seek(pixels_end)
        if not lines_end:
            self._write_line(header)

    def _read(self, header: dict[str, Any]) -> tuple[int, int]:
        """Read complete entries of an earlier process; return up to where both files are valid."""
        try:
            lines = (self._folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
            there = (self._folder / "pixels.bin").stat().st_size
        except OSError:
            return 0, 0
        reasons = self._read_reasons()
        lines_end = pixels_end = 0
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None or (number == 0 and entry != header):
                break
            if number:
                end = int(entry.get("end", 0))
                if end > there:
                    break
                pixels_end = max(pixels_end, end)
                if not entry.get("reason"):
                    self.entries[entry["key"]] = entry
                elif entry["key"] in reasons:  # without its reason, the file is read again
                    self.entries[entry["key"]] = entry | {"reason": reasons[entry["key"]]}
            lines_end += len(line)
        return lines_end, pixels_end

    def _read_reasons(self) -> dict[str, str]:
        """Return the reasons by key, from complete lines."""
        try:
            text = (self._folder / "quarantine.csv").read_bytes().decode("utf-8", "replace")
            whole = text.split("\n")[:-1]
            return {row[0]: printable.plain(row[1]) for row in csv.reader(whole) if len(row) == 2}
        except (OSError, csv.Error):
            return {}

    def add(self, entry: dict[str, Any], image: Bytes | None = None, mask: Bytes | None = None) -> None:
        """Record the result for the file `entry["key"]`."""
        if image is not None:
            data = image.tobytes() + (b"" if mask is None else mask.tobytes())
            self._pixels.write(data)
            self._pixels.flush()
            entry = {**entry, "end": self._pixels.tell(), "bytes": len(data), "crc": zlib.crc32(data)}
        if entry.get("reason"):
            self._write_reasons([(entry["key"], entry["reason"])])
            self._reasons.flush()
        self._write_line(with_kind(entry))
        self.entries[entry["key"]] = entry

    def _write_reasons(self, rows: Iterable[tuple[str, str]]) -> None:
        writer = csv.writer(self._reasons, lineterminator="\n")
        writer.writerows((key, printable.cell(reason)) for key, reason in rows)

    def _write_line(self, entry: dict[str, Any]) -> None:
        self._lines.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._lines.flush()

    def pixels(self, entry: dict[str, Any]) -> tuple[Bytes, Bytes | None]:
        """Return the image and the mask of an entry, each uint8 [S, S].

        Raises:
            CacheError: the disk returned other bytes than were written (after a power failure).
        """
        with (self._folder / "pixels.bin").open("rb") as file:
            file.seek(entry["end"] - entry["bytes"])
            data = file.read(entry["bytes"])
        if zlib.crc32(data) != entry["crc"]:
            self.discard()
            raise CacheError(
                "the files of an earlier, interrupted run are damaged and were discarded; run it again"
            )
        parts = np.frombuffer(data, dtype=np.uint8).reshape(-1, self._size, self._size)
        return parts[0], parts[1] if len(parts) == 2 else None

    def close(self) -> None:
        self._reasons.close()
        self._pixels.close()
        self._lines.close()

    def discard(self) -> None:
        """Delete the journal."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
