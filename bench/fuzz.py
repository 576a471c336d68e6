"""Damages image files and reads them as `sscxr prepare` does: `python bench/fuzz.py FOLDER --mutants 3000`.

Each mutant is a file of the folder with some bytes changed, cut, repeated or moved. The bench counts mutants that
end their reader or hang it, that return nothing, or whose refusal or warnings repeat the patient's name, which each
DICOM file gets first. Of the accepted ones it counts those whose image differs from the original's (correlation
below 0.5): most often damage in compressed pixels, which nothing reveals.
"""

import argparse
import collections
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom

from sscxr.data.pixels import parsing
from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.facts import Refused
from sscxr.data.prepare import pool

NAME = "QUILLFEATHER"  # the patient's, in no file by chance
SIZE = 128
ALIKE = 0.5
KINDS = ("bytes", "header", "cut", "repeat", "zeros", "move")


def task(file: Path) -> Task:
    """Return the task of reading a file as `prepare` does without a manifest."""
    return Task(file, None, "", SIZE, 50_000_000)


def seeds(folder: Path, scratch: Path) -> dict[str, tuple[bytes, np.ndarray]]:
    """Return the readable files of a folder by name: bytes, with the name in a DICOM's header, and image."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if parsing.is_dicom(file):
            try:
                image = pydicom.dcmread(file, force=True)
                image.PatientName = f"{NAME}^{NAME}"
                image.save_as(scratch / "named.dcm")
                data = (scratch / "named.dcm").read_bytes()
            except Exception:  # pydicom raises anything on the files that are broken on purpose
                continue
        plain = scratch / f"seed{file.suffix}"
        plain.write_bytes(data)
        outcome = attempt(task(plain))
        if isinstance(outcome, Prepared):
            found[str(file.relative_to(folder))] = (data, outcome.image)
    return found


def mutant(data: bytes, source: np.random.Generator) -> tuple[str, bytes]:
    """Return a kind of damage, and a file with it."""
    kind = str(source.choice(KINDS))
    changed = bytearray(data)
    length = int(2 ** source.uniform(0, 12))
    at, to = (int(source.integers(len(data))) for _ in range(2))
    if kind in ("bytes", "header"):
        end = len(data) if kind == "bytes" else min(len(data), 2048)
        for place in source.integers(end, size=int(2 ** source.uniform(0, 6))):
            changed[place] = source.integers(256)
    elif kind == "cut":
        del changed[at : at + length if source.random() < 0.5 else None]  # amid, or the whole end
    elif kind == "repeat":
        changed[to:to] = data[at : at + length]
    elif kind == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    else:
        piece = changed[at : at + length]
        del changed[at : at + length]
        changed[to:to] = piece
    return kind, bytes(changed)


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two images; 0 if one has a single grey level."""
    if not (one.std() and other.std()):
        return 0.0
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


def words(outcome: Prepared | Refused) -> str:
    """Return the refusal or the warnings of a file."""
    return str(outcome) if isinstance(outcome, Refused) else "; ".join(outcome.facts.warnings)


def fuzz(folder: Path, mutants: int, seed: int, workers: int) -> collections.Counter[str]:
    """Read damaged files, and return counts of their outcomes.

    Raises:
        SystemExit: the folder has no readable file.
    """
    source, counts = np.random.default_rng(seed), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        known = seeds(folder, scratch)
        if not known:
            raise SystemExit(f"{folder} has no file that can be read")
        names = sorted(known)
        counts["files"], counts["mutants"] = len(names), mutants
        drawn: dict[int, tuple[str, str]] = {}

        def tasks() -> Iterator[tuple[int, Task]]:
            for number in range(mutants):
                name = names[number % len(names)]
                kind, data = mutant(known[name][0], source)
                drawn[number] = (name, kind)
                file = scratch / f"{number}{Path(name).suffix}"
                file.write_bytes(data)
                yield number, task(file)

        heard = set()
        for number, outcome in pool.decode(tasks(), workers):
            heard.add(number)
            (scratch / f"{number}{Path(drawn[number][0]).suffix}").unlink()
            counts.update(_judged(outcome, *drawn[number], known[drawn[number][0]][1]))
        counts["nothing came back"] = mutants - len(heard)
    return counts


def _judged(outcome: Prepared | Refused, name: str, kind: str, original: np.ndarray) -> Sequence[str]:
    text = words(outcome)
    found = ["the name was told"] if NAME.lower() in text.lower() else []
    if isinstance(outcome, Refused):
        return [*found, "ended or hung its reader" if "kills its reader" in text else "refused"]
    found.append("accepted")
    if alike(outcome.image, original) < ALIKE:
        found.append("accepted, another image" + (", with a warning" if text else ""))
        print(f"{name}: {kind}: {text or 'no warning'}")
    return found


def main() -> None:
    """Print accepted images that differ, and the counts; exit 1 if a reader ended or repeated the name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutants", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=pool.default_workers())
    given = parser.parse_args()
    counts = fuzz(given.folder, given.mutants, given.seed, given.workers)
    print(*(f"{count:6} {what}" for what, count in counts.items()), sep="\n")
    bad = ("the name was told", "ended or hung its reader", "nothing came back")
    raise SystemExit(1 if any(counts[what] for what in bad) else 0)


if __name__ == "__main__":
    main()
