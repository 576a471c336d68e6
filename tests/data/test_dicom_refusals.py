"""Every refusal by its reason; what is damaged, truncated or inflates without end crashes nothing."""

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import LOSSLESS, chest, dataset, read, refusal, save
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames

from sscxr.data.pixels import dicom
from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.facts import Refused


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "not a radiograph: modality CT"),
        ({"Modality": "MR"}, "not a radiograph: modality MR"),
        ({"BodyPartExamined": "RIBCAGE"}, "not a chest: body part RIBCAGE"),
        ({"BodyPartExamined": "KNEE"}, "not a chest: body part KNEE"),
        ({"BodyPartExamined": "THORACIC SPINE"}, "not a chest: body part THORACIC SPINE"),
        (
            {"BodyPartExamined": "GAMBA"},
            "body part not known: GAMBA; where that is a chest, give --chest-word",
        ),
        ({"BitsAllocated": None}, "unreadable: the header does not state how many bits"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for processing"),
        ({"NumberOfFrames": 3}, "multi-frame: 3 frames"),
        ({"Rows": 60000, "Columns": 60000}, "too large: 60000 x 60000 px"),
        ({"Rows": 118}, "unreadable: 24000 bytes"),
        ({"Columns": 101}, "truncated: 24000 bytes"),
        ({"PixelData": None}, "unreadable: no pixel data"),
        ({"Rows": None}, "not an image"),
        ({"BitsStored": 17}, "unreadable: 17 bits"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour picture"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refusals(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    assert refusal(dataset(chest(), **tags), tmp_path).startswith(reason)


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined", "PhotometricInterpretation"])
@pytest.mark.parametrize(
    "value",
    [
        "KNEE\x10\x00\x10\x00PN\x10\x00QUILL^ANNA",
        ["KNEE", "\x10\x00\x10\x00QUILL"],
        "QUILL^ANNA",
        "CHEST" * 20,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_code_is_refused_and_not_repeated(tmp_path: Path, keyword: str, value: Any) -> None:
    """A length that is wrong brings the patient's name into the element before it; `bench/fuzz.py` found it."""
    said = refusal(dataset(chest(), **{keyword: value}), tmp_path)
    assert "damaged" in said or keyword == "PhotometricInterpretation"  # which decodes nothing then
    assert "QUILL" not in said.upper()


@pytest.mark.parametrize("part", [None, "", "THORAX", "Chest PA", "LUNG", "UNKNOWN", "N/A"])
@pytest.mark.filterwarnings("ignore")
def test_body_parts_that_are_chests_or_unknown(tmp_path: Path, part: str | None) -> None:
    assert read(dataset(chest(), BodyPartExamined=part), tmp_path)[0].max() > 0


def test_a_code_stream_of_another_size_than_the_header_says_is_refused(tmp_path: Path) -> None:
    for syntax in LOSSLESS:
        data = dcmread(save(dataset(chest()), tmp_path / "image.dcm", syntax))
        data.Rows = 60
        data.save_as(tmp_path / "lying.dcm")
        with pytest.raises(Refused, match="in the header"):
            dicom.read(tmp_path / "lying.dcm")


def test_grey_in_colour_is_taken_and_colour_is_refused(tmp_path: Path) -> None:
    grey = chest(bits=8).astype(np.uint8)
    data = dataset(grey, bits=8, Modality="OT")
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = np.stack([grey] * 3, axis=2).tobytes()
    decoded, facts = read(data, tmp_path)
    np.testing.assert_allclose(decoded, grey / 255, atol=1e-6)
    assert "modality OT" in facts.warnings
    data.PixelData = np.stack([grey, 255 - grey, grey], axis=2).tobytes()
    assert refusal(data, tmp_path).startswith("colour picture")


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated", "rle", *LOSSLESS, "jpeg baseline"])
def test_damaged_files_are_refused_or_read_and_never_crash(tmp_path: Path, syntax: str) -> None:
    whole = save(dataset(chest(bits=8), bits=8), tmp_path / "image.dcm", syntax).read_bytes()
    rng = np.random.default_rng(len(syntax))
    for number in range(24):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: rng.integers(0, len(whole))]
        else:
            for at in rng.integers(0, len(whole), 8):
                damaged[at] ^= 1 << rng.integers(8)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(damaged)
        assert isinstance(attempt(Task(path, None, "", 64, 1_000_000)), Prepared | Refused)


def peak_of_reading(path: Path) -> tuple[str, int]:
    """The refusal of a file in a fresh process, and the MB that reading it took there."""
    program = (
        "import resource, sys; from pathlib import Path; from sscxr.data.pixels import dicom, facts\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "try: dicom.read(Path(sys.argv[1]))\n"
        "except facts.Refused as refusal: print(refusal)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    reason, grown = done.stdout.splitlines()
    return reason, int(grown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("pixels", "too large: inflates to more than 64 MB"),
        ("private", "too large: its header inflates to more than 64 MB"),
        ("no preamble", "too large: inflates to more than 64 MB"),
    ],
)
def test_a_small_file_that_inflates_to_a_large_one_is_refused_before_it_is_one(
    tmp_path: Path, where: str, reason: str
) -> None:
    path = save(dataset(chest(bits=8), bits=8), tmp_path / "image.dcm", "deflated")
    whole = path.read_bytes()
    meta = 144 + int.from_bytes(whole[140:144], "little")  # PS3.10 7.1: the group length is the first element
    inside = zlib.decompress(whole[meta:], -zlib.MAX_WBITS)
    at = inside.index(b"\xe0\x7f\x10\x00OB") if where != "private" else inside.index(b"\x08\x00\x60\x00CS")
    tag = b"\xe0\x7f\x10\x00OB\0\0" if where != "private" else b"\x08\x00\x61\x00OB\0\0"
    size = 390 << 20
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflate.compress(inside[:at] + tag + size.to_bytes(4, "little"))
    bomb += b"".join(deflate.compress(bytes(1 << 20)) for _ in range(390)) + deflate.flush()
    path.write_bytes(whole[132 if where == "no preamble" else 0 : meta] + bomb)
    assert path.stat().st_size < 420_000
    said, grown = peak_of_reading(path)
    assert said.startswith(reason)
    assert grown < 250


def test_a_file_above_the_limit_is_not_even_opened(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    with path.open("wb") as file:
        file.truncate(70 << 20)
    with pytest.raises(Refused, match="too large: a file of 70 MB"):
        dicom.read(path, max_pixels=100_000)


def test_truncated_pixels_are_refused(tmp_path: Path) -> None:
    for syntax in ("explicit", "jpeg baseline", "jpeg lossless", "jpeg 2000", "jpeg-ls", "rle"):
        path = save(dataset(chest(bits=8), bits=8), tmp_path / "image.dcm", syntax)
        if syntax == "explicit":
            path.write_bytes(path.read_bytes()[:-2000])
        else:
            data = dcmread(path)
            frame = next(generate_frames(data.PixelData, number_of_frames=1))
            data.PixelData = encapsulate([frame[: len(frame) // 2]])
            data.save_as(path)
        with pytest.raises(Refused):
            dicom.read(path)
