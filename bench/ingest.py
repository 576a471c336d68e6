"""`sscxr prepare` from DICOM, compared with the usual loop and with decoders alone.

    python bench/ingest.py --files 24 --json ingest.json

Phantoms of a hospital's size (2048 x 2048 px, 12 bits) are written uncompressed, as lossless JPEG and as JPEG 2000.
Timed in turn: `prepare` with a worker per core; a loop in one process that reads with pydicom, windows, resizes
with Pillow and saves a PNG; `pydicom`, its `pixel_array` alone in one process, with the plug-in that it chooses;
`decoder`, the same with a worker's plug-in; `decoder_pool`, that one in as many processes as there are workers,
started before; a worker's work in one worker process alone. Then the peak memory of a worker at two numbers of
files.

Goals: compressed files at least 0.85 of the decoder's rate times the cores; uncompressed ones at least twice the
loop's rate on two cores; memory by workers and not by files. Both shares are reported: pydicom takes GDCM, which
uses several cores for one JPEG 2000 image, and which is slow to return lossless JPEG. Two simultaneous decoders may
slow each other: `share of decoder_pool` compares `prepare` with that. `start_s` is the first file in a fresh
program, with the start of the fork server and a worker; the rates, by least times, exclude the fork server's start.
`cpu` compares CPU seconds with that worker's, which is valid on a shared machine.
"""

import zlib  # noqa: F401, I001 - before gdcm: its own zlib, if it is loaded first, breaks Python's
import argparse
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import gdcm
import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import apply_windowing, pixel_array
from pydicom.uid import ExplicitVRLittleEndian
from timing import in_turn, report

from sscxr.data.pixels import gdcm_jpeg
from sscxr.data.phantoms import phantom
from sscxr.data.prepare import pool
from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.dicom import MAX_PIXELS
from sscxr.data.phantoms.anatomy import draw_patient
from sscxr.data.prepare.prepare import prepare

SYNTAXES = {  # and the plug-in that `dicom.read` has pydicom decode by
    "uncompressed": (None, ""),
    "jpeg lossless": (gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm_jpeg.NAME),
    "jpeg 2000": (gdcm.TransferSyntax.JPEG2000Lossless, "pylibjpeg"),
}
SIDE, SIZE = 2048, 256  # px: of a file, of the cache


def write(folder: Path, syntax: int | None, files: int) -> list[Path]:
    """Write phantoms as DICOM of `SIDE` px, each with its own detector noise."""
    folder.mkdir()
    rng, written = np.random.default_rng(0), []
    site = phantom.draw_site(rng, "bench")
    patient = draw_patient(rng, child=False)
    picture, _, facts = phantom.draw(rng, style=site.style, patient=patient, label="normal", size=512)
    large = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    for number in range(files):
        grey = np.clip(large + rng.normal(0, 0.004, large.shape), 0, 1).astype(np.float32)
        data = phantom.to_dicom(grey, facts, site, patient, f"patient-{number}", f"key-{number}", rng)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = folder / f"{number}.dcm"
        data.save_as(file, enforce_file_format=True)
        if syntax is not None:
            _compress(file, syntax)
        written.append(file)
    return written


def _compress(file: Path, syntax: int) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change(), "gdcm does not encode this"
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def prepared(files: list[Path], out: Path, workers: int) -> None:
    """Prepare the files into a fresh cache."""
    shutil.rmtree(out, ignore_errors=True)
    cache = prepare(files, out, size=SIZE, workers=workers, progress=False)
    assert len(cache) == len(files), (out / "quarantine.csv").read_text()


def loop(files: list[Path], out: Path) -> None:
    """Convert one file after another to PNG, the usual way."""
    out.mkdir(exist_ok=True)
    for file in files:
        data = dcmread(file)
        pixels = apply_windowing(data.pixel_array, data).astype(np.float32)
        pixels = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-6) * 255
        if data.PhotometricInterpretation == "MONOCHROME1":
            pixels = 255 - pixels
        image = Image.fromarray(pixels.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        image.save(out / f"{file.stem}.png")


def decoder(files: list[Path], plugin: str) -> None:
    """Run a decoder alone; without a name, pydicom's choice."""
    for file in files:
        pixel_array(dcmread(file), decoding_plugin=plugin)


def decoder_pool(files: list[Path], plugin: str, processes: ProcessPoolExecutor) -> None:
    """Run a decoder alone, in several processes."""
    for done in [processes.submit(decoder, [file], plugin) for file in files]:
        done.result()


def work(files: list[Path]) -> float:
    """Do a worker's whole work, and return its CPU seconds."""
    began = process_time()
    for file in files:
        result = attempt(Task(file, None, "", SIZE, MAX_PIXELS))
        assert isinstance(result, Prepared), result
    return process_time() - began


def start(file: Path) -> float:
    """Return the seconds to the first result of a program's first pool."""
    began = perf_counter()
    list(pool.decode([(file, Task(file, None, "", SIZE, MAX_PIXELS))], 1))
    return perf_counter() - began


def memory_of_workers(files: list[Path], few: int) -> dict[str, float]:
    """Return the peak resident memory of a worker, MB, for `few` files and for all."""
    return {f"{count} files": _peak(files[:count]) for count in (few, len(files))}


def _peak(files: list[Path]) -> float:
    tasks = ((file, Task(file, None, "", SIZE, MAX_PIXELS)) for file in files)
    peak = 0.0
    for _ in pool.decode(tasks, 1):
        for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            peak = max([peak, *(_high_water(int(pid)) for pid in _descendants(child))])
    return peak


def _descendants(children: Path) -> list[int]:
    pids = [int(pid) for pid in children.read_text().split()]
    below = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [*pids, *(pid for file in below for pid in _descendants(file))]


def _high_water(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(files: int, repetitions: int, workers: int) -> dict[str, object]:
    """Return all figures, by transfer syntax."""
    found: dict[str, object] = {"files": f"{files} of {SIDE} x {SIDE} px", "workers": workers}
    with tempfile.TemporaryDirectory() as folder:
        for name, (syntax, plugin) in SYNTAXES.items():
            place = Path(folder) / name.replace(" ", "-")
            written = write(place, syntax, files)
            few = written[: max(2, files // 4)]
            if syntax is None:
                found["start_s"] = start(written[0])
                found["peak MB of a worker"] = memory_of_workers(written, len(few))
            found[name] = _compared(written, few, plugin, place, repetitions, workers)
            shutil.rmtree(place)
    return found


def _compared(
    written: list[Path], few: list[Path], plugin: str, place: Path, repetitions: int, workers: int
) -> dict[str, float]:
    cpu: list[float] = []
    decoders = ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))
    with decoders, pool._pool(1) as worker:
        things: dict[str, Any] = {
            "prepare": partial(prepared, written, place / "cache", workers),
            "loop": partial(loop, few, place / "png"),
            "pydicom": partial(decoder, few, ""),
            "decoder": partial(decoder, few, plugin),
            "decoder_pool": partial(decoder_pool, written, plugin, decoders),
            "worker": lambda: cpu.append(worker.submit(work, few).result()),
        }
        for name in ("pydicom", "decoder", "decoder_pool"):  # all processes up, all libraries loaded
            things[name]()
        worker.submit(work, few).result()
        times = in_turn(things, repetitions)
    rate = {name: len(few) / min(times[name].wall) for name in ("loop", "pydicom", "decoder")}
    rate |= {name: len(written) / min(times[name].wall) for name in ("prepare", "decoder_pool")}
    least = {name: min(times[name].cpu) for name in ("loop", "pydicom", "decoder")}
    return {
        **{f"{name}_files_per_s": value for name, value in rate.items()},
        "times the loop": rate["prepare"] / rate["loop"],
        "share of pydicom x cores": rate["prepare"] / rate["pydicom"] / workers,
        "share of decoder x cores": rate["prepare"] / rate["decoder"] / workers,
        "share of decoder_pool": rate["prepare"] / rate["decoder_pool"],
        "decoder_pool / decoder x cores": rate["decoder_pool"] / rate["decoder"] / workers,
        **{f"cpu: {name} / worker": value / min(cpu) for name, value in least.items()},
        "cpu_ms_a_file": min(cpu) / len(few) * 1e3,
    }


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=24, help="of each transfer syntax")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", help="where to write the figures")
    given = parser.parse_args()
    report(measure(given.files, given.repetitions, given.workers), given.json)


if __name__ == "__main__":
    main()
