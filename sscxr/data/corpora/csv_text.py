"""The reader for all CSV files from others, which spreadsheets save in many ways.

It reads UTF-8 with or without a byte order mark, UTF-16 with one, packed (.gz, .zip); commas, semicolons or tabs;
a first line `sep=;`; empty rows. A file in another encoding is refused: guessing would change names silently.
"""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from sscxr.errors import SscxrError


@contextmanager
def reading(path: Path, refusal: type[SscxrError]) -> Iterator[None]:
    """Turn any error about a missing or damaged file into a `refusal` of one line."""
    try:
        yield
    except SscxrError:
        raise
    except FileNotFoundError:
        raise refusal(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise refusal(f"{path}: not a CSV in UTF-8; save it as 'CSV UTF-8'") from None
    except (OSError, ValueError, EOFError, csv.Error, zlib.error, zipfile.BadZipFile) as error:
        raise refusal(f"{path}: not readable as CSV: {' '.join(str(error).split())}") from None


def names(path: Path, *, header: int = 0) -> list[str]:
    """Return the columns as written, without surrounding blanks; errors as in `frame`."""
    _, separator, lines, _ = _opened(path, header)
    row = next(csv.reader(lines[header:], delimiter=separator), [])
    return [name.strip() for name in row]


def frame(
    path: Path, *, header: int = 0, wanted: Callable[[str], bool] | None = None, blanks: bool = False
) -> pd.DataFrame:
    """Read the rows as text, with missing cells empty and empty rows left out.

    Args:
        path: the file.
        header: lines above the header's.
        wanted: columns by name; None: all.
        blanks: leave out blanks before a cell.

    Returns:
        A table whose index is each row's line number, provided that no cell spans several lines.

    Raises:
        OSError, ValueError, EOFError, csv.Error, zlib.error, BadZipFile: not a readable CSV; see `reading`.
    """
    text, separator, _, above = _opened(path, header)
    table = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        dtype=str,
        keep_default_na=False,
        header=header,
        skipinitialspace=blanks,
        skip_blank_lines=False,
        usecols=None if wanted is None else lambda name: wanted(str(name).strip()),
    )
    if table.index.nlevels > 1 or not isinstance(table.index, pd.RangeIndex):
        raise ValueError("rows have more cells than the header has columns")
    table.columns = table.columns.map(str).str.strip()
    table.index = pd.RangeIndex(above + header + 2, above + header + 2 + len(table))
    table = table.fillna("")  # in rows that are too short
    empty = (table.map(str.strip) == "").all(axis=1) if len(table.columns) else table.index < 0
    return table[~empty]


def _opened(path: Path, header: int) -> tuple[str, str, list[str], int]:
    """Return the text below a line `sep=;`, the separator, the first lines, and how many lines were removed."""
    text = _decoded(_unpacked(path))
    first, _, rest = text.partition("\n")
    stated = re.fullmatch(r'"?sep=(.|\\t)"?[\s,;]*', first.strip("\r"), re.IGNORECASE)
    if stated:
        text = rest
    lines = text[: 1 << 20].splitlines()[: header + 2]
    head = lines[header] if len(lines) > header else ""
    best = max(",;\t", key=head.count)
    return text, (stated[1].replace("\\t", "\t") if stated else best), lines, int(stated is not None)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            members = [name for name in packed.namelist() if not name.endswith("/")]
            if len(members) != 1:
                raise ValueError(f"{len(members)} files in one .zip; a table is packed alone")
            return packed.read(members[0])
    return content


def _decoded(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")
