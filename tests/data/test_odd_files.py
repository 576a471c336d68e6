"""Files that viewers show although the standard has them otherwise: read, with a warning where it was guessed."""

import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import chest, dataset, read, refusal, save
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from sscxr.data.pixels import decode, dicom, luts, pictures, quiet
from sscxr.data.pixels.decode import Prepared, Task, attempt
from sscxr.data.pixels.facts import Refused

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
JPEGS = ("jpeg baseline", "jpeg lossless sv1", "jpeg-ls", "jpeg 2000")


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def plain(tmp_path: Path, **tags: Any) -> npt.NDArray[np.float32]:
    return read(dataset(chest(), **WINDOW | tags), tmp_path)[0]


@pytest.mark.parametrize("syntax", JPEGS)
def test_anything_may_stand_behind_the_end_of_a_code_stream(tmp_path: Path, syntax: str) -> None:
    path = save(dataset(chest(bits=8), bits=8), tmp_path / "image.dcm", syntax)
    grey, _, _ = dicom.read(path)
    data = dcmread(path)
    frame = next(generate_frames(data.PixelData, number_of_frames=1)).rstrip(b"\0")
    for behind in (b"", b"\0", b"\xff", b" ", b"\r\n", b"\xff\0", b"\0\0\xff\xff", bytes(300)):
        data.PixelData = encapsulate([frame + behind])
        data.save_as(path)
        np.testing.assert_array_equal(dicom.read(path)[0], grey)
    data.PixelData = encapsulate([frame[:-40]])
    data.save_as(path)
    with pytest.raises(Refused, match="truncated"):
        dicom.read(path)


@pytest.mark.parametrize("syntax", JPEGS)
def test_a_code_stream_of_three_samples_is_not_read_as_grey(tmp_path: Path, syntax: str) -> None:
    grey = chest(bits=8).astype(np.uint8)
    data = dataset(grey, bits=8)
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.PixelData = np.stack([grey] * 3, axis=2).tobytes()
    path = save(data, tmp_path / "image.dcm", syntax)
    assert same(dicom.read(path)[0], grey) > 0.95  # GDCM writes RGB as if it were YBR in the baseline process
    data = dcmread(path)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.save_as(path)
    with pytest.raises(Refused, match="1 samples a pixel in the header, 3 in the image"):
        dicom.read(path)
    data = dcmread(save(dataset(grey, bits=8), tmp_path / "image.dcm", syntax))
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.save_as(path)
    with pytest.raises(Refused, match="3 samples a pixel in the header, 1 in the image"):
        dicom.read(path)


# ---- tables


def table(data: bytes, entries: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries, 0, bits])
    item.add_new("LUTData", "OW", data)
    return Sequence([item])


IDENTITY = np.arange(4096).astype("<u2").tobytes()


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("there", "usable"),
    [
        (8192, True),
        (8190, True),
        (8000, True),
        (7999, True),
        (4096, False),
        (4097, False),
        (100, False),
        (0, False),
    ],
)
def test_a_table_shorter_than_described_is_read_by_its_words_or_left_out(
    tmp_path: Path, name: str, there: int, usable: bool
) -> None:
    grey, facts = read(dataset(chest(), **WINDOW, **{name: table(IDENTITY[:there], 4096, 12)}), tmp_path)
    assert same(grey, plain(tmp_path)) > 0.999
    words = {"ModalityLUTSequence": "modality LUT", "VOILUTSequence": "voi lut"}[name]
    said = f"{words} shorter than described" if usable else f"{words} not usable"
    assert facts.warnings == (() if there == 8192 else (said,))


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_a_table_of_bytes_has_at_most_8_bits(tmp_path: Path, padding: bytes) -> None:
    stored = chest(bits=8)
    entries = bytes(range(254, -1, -1)) + padding
    grey, facts = read(dataset(stored, bits=8, VOILUTSequence=table(entries, 255, 8)), tmp_path)
    np.testing.assert_allclose(grey, (254 - np.clip(stored, 0, 254)) / 255, atol=1e-6)
    assert not facts.warnings
    for data in (entries, np.frombuffer(entries.ljust(256, b"\0"), "<u2").tolist()):  # as words, too
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [255, 0, 8], data
        mapped, _, _ = luts.lookup(np.array([0.0, 254.0]), item, Dataset(), "voi lut")
        assert mapped.tolist() == [254, 0]


EMPTY = Dataset()
EMPTY.LUTDescriptor = None
EMPTY.add_new("LUTData", "OW", None)


@pytest.mark.parametrize(
    ("tags", "warning"),
    [
        ({"ModalityLUTSequence": Sequence([EMPTY])}, "modality LUT not usable"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "modality LUT not usable"),
        ({"ModalityLUTSequence": Sequence([])}, ""),
        ({"VOILUTSequence": Sequence([EMPTY])}, "voi lut not usable"),
        ({"RescaleSlope": " ", "RescaleIntercept": ""}, ""),
        ({"RescaleSlope": "1,0", "RescaleIntercept": "0,0"}, "decimal comma in RescaleSlope"),
        ({"RescaleSlope": "1\\2", "RescaleIntercept": "0"}, "rescale not usable"),
        ({"RescaleSlope": "1\\1", "RescaleIntercept": "0\\0"}, ""),
        ({"RescaleSlope": "0", "RescaleIntercept": "5"}, "rescale not usable"),
        ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "rescale not usable"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "0"}, "rescale not usable"),
        ({"RescaleSlope": "one", "RescaleIntercept": "0"}, "rescale not usable"),
        ({"WindowCenter": "2048,0", "WindowWidth": "4096"}, "decimal comma in WindowCenter"),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "padding not usable"),
        ({"ShutterShape": "RECTANGULAR"}, "shutter not usable"),
        ({"PatientOrientation": "LF"}, ""),
        ({"PixelSpacing": "0,2"}, ""),
        ({"NumberOfFrames": " "}, ""),
    ],
)  # fmt: skip
def test_an_optional_element_that_cannot_be_used_is_a_warning(
    tmp_path: Path, tags: dict[str, Any], warning: str
) -> None:
    data = dataset(chest(), **WINDOW)
    for name, value in tags.items():
        if isinstance(value, str):  # past pydicom's checks
            data.add_new(name, "LO", value.ljust(len(value) + len(value) % 2))
        else:
            setattr(data, name, value)
    path = save(data, tmp_path / "odd.dcm")
    raw = path.read_bytes()
    for name, value in tags.items():
        if isinstance(value, str) and name != "PatientOrientation":
            tag = data[name].tag
            at = raw.index(struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, b"LO"))
            raw = (
                raw[: at + 4]
                + (b"IS" if name == "NumberOfFrames" else b"CS" if "Shape" in name else b"DS")
                + raw[at + 6 :]
            )
    path.write_bytes(raw)
    with quiet.quiet():
        grey, facts, _ = dicom.read(path)
    np.testing.assert_allclose(grey, plain(tmp_path), atol=1e-4)
    assert warning in facts.warnings if warning else not facts.warnings


# ---- the range that is used


@pytest.mark.parametrize("bits", [12, 10])
def test_a_table_that_says_16_bits_and_holds_fewer_is_scaled_by_what_it_holds(
    tmp_path: Path, bits: int
) -> None:
    stored = chest(bits=bits)
    entries = np.arange(1 << bits).astype("<u2").tobytes()
    grey, facts = read(dataset(stored, VOILUTSequence=table(entries, 1 << bits, 16)), tmp_path)
    np.testing.assert_allclose(grey, stored / (2**bits - 1), atol=1e-6)
    assert (facts.grey_range, facts.warnings) == ("voi lut", ("voi lut of fewer bits than it states",))


def test_a_window_that_leaves_the_image_nearly_black_is_left_out(tmp_path: Path) -> None:
    grey, facts = read(dataset(chest(), WindowCenter=32768, WindowWidth=65535), tmp_path)
    assert grey.std() > 0.1
    assert (facts.grey_range, facts.warnings) == ("percentiles", ("window not usable (hides the image)",))


def png16(path: Path, samples: npt.NDArray[Any], kind: int, extra: bytes = b"") -> Path:
    """A PNG of 16 bits, [H, W, C] samples of colour type `kind` (ISO 15948 11.2.2)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    head = struct.pack(">LLBBBBB", samples.shape[1], samples.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(pictures.PNG + body)
    return path


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_12_bits_in_a_png_of_16_are_all_read(tmp_path: Path, kind: int, channels: int) -> None:
    stored = chest()
    samples = np.stack([stored] * channels, axis=2)
    if kind in (4, 6):
        samples[..., -1] = 65535
    grey, _, _ = pictures.read(png16(tmp_path / "x.png", samples, kind), max_pixels=10**6)
    low, high = np.percentile(stored, (0.5, 99.5))
    np.testing.assert_allclose(grey, np.clip((stored - low) / (high - low), 0, 1), atol=1e-3)
    if kind in (4, 6):
        samples[:60, :, -1] = 0
        grey, _, _ = pictures.read(png16(tmp_path / "x.png", samples, kind), max_pixels=10**6)
        assert not grey[:60].any()
        assert same(grey[60:], stored[60:]) > 0.99


def test_a_white_border_or_marker_does_not_set_the_range(tmp_path: Path) -> None:
    stored = chest(200, 160)
    for where in ((slice(0, 40), slice(None)), (slice(10, 26), slice(10, 30))):
        framed = stored.copy()
        framed[where] = 65535
        inside = framed < 65535
        low, high = np.percentile(stored[inside], (0.5, 99.5))
        expected = np.where(inside, np.clip((stored - low) / (high - low), 0, 1), 1)
        path = png16(tmp_path / "x.png", framed[..., None], 0)
        for grey, facts in (
            pictures.read(path, max_pixels=10**6)[:2],
            read(dataset(framed, bits=16), tmp_path),
        ):
            np.testing.assert_allclose(grey, expected, atol=0.02)
            assert facts.warnings == ("white border or marker left out of the grey range",)


def test_what_uses_few_grey_levels_is_refused_or_warned_of(tmp_path: Path) -> None:
    def outcome(scale: float) -> Prepared | Refused:
        pixels = (60 + chest(bits=8) * scale).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        return attempt(Task(tmp_path / "x.png", None, "", 64, 10**6))

    dark, doubtful, fine = outcome(0.12), outcome(0.25), outcome(0.6)
    assert isinstance(dark, Refused)
    assert dark.kind == "too dark or too bright"
    assert isinstance(doubtful, Prepared)
    assert "low contrast: few of the grey levels are used" in doubtful.facts.warnings
    assert isinstance(fine, Prepared)
    assert not any("contrast" in warning for warning in fine.facts.warnings)


# ---- files that lack what PS3.10 asks for


def test_files_without_a_transfer_syntax_a_preamble_a_class_or_an_ending(tmp_path: Path) -> None:
    expected = plain(tmp_path)
    for syntax in ("explicit", "implicit", "big endian"):
        data = dataset(chest(), **WINDOW)
        whole = save(data, tmp_path / "image.dcm", syntax).read_bytes()
        at = whole.index(b"\x02\0\x10\0UI")
        length = int.from_bytes(whole[at + 6 : at + 8], "little")
        missing = bytearray(whole[:at] + whole[at + 8 + length :])
        missing[140:144] = (int.from_bytes(whole[140:144], "little") - 8 - length).to_bytes(4, "little")
        body = whole[144 + int.from_bytes(whole[140:144], "little") :]  # without the class, too
        sop = body.index(b"\x08\0\x60\0") if syntax != "big endian" else body.index(b"\0\x08\0\x60")
        for name, content in (("no-syntax", bytes(missing)), ("IM0001", body), ("no-class", body[sop:])):
            (tmp_path / name).write_bytes(content)
            np.testing.assert_array_equal(decode.read(tmp_path / name, 10**6)[0], expected, err_msg=name)
    (tmp_path / "notes").write_bytes(b"\x08\0CS are in this file" * 40)
    (tmp_path / "zeros").write_bytes(bytes(4000))
    for name in ("notes", "zeros"):
        with pytest.raises(Refused, match="not an image"):
            decode.read(tmp_path / name, 10**6)


def test_a_nul_in_the_character_set_and_small_letters(tmp_path: Path) -> None:
    expected = plain(tmp_path)
    path = save(dataset(chest(), **WINDOW, SpecificCharacterSet="ISO_IR 100"), tmp_path / "image.dcm")
    path.write_bytes(
        path.read_bytes().replace(b"ISO_IR 100", b"\0SO_IR 100").replace(b"MONOCHROME2", b"monochrome2")
    )
    np.testing.assert_array_equal(dicom.read(path)[0], expected)


def test_one_row_of_padding_and_what_describes_the_pixels_may_be_missing(tmp_path: Path) -> None:
    expected = plain(tmp_path)
    data = dataset(chest(), **WINDOW)
    data.PixelData += bytes(200)
    grey, facts = read(data, tmp_path)
    np.testing.assert_array_equal(grey, expected)
    assert facts.warnings == ("one row of pixels more than the header states",)
    data.PixelData += bytes(2)
    assert refusal(data, tmp_path) == "unreadable: 24202 bytes of pixels, the header states 24000"
    grey, facts = read(dataset(chest(), **WINDOW, SamplesPerPixel=None, PixelRepresentation=None), tmp_path)
    np.testing.assert_array_equal(grey, expected)
    assert facts.warnings == ("description of the pixels not complete",)


def test_jpeg_of_8_bits_in_16_allocated(tmp_path: Path) -> None:
    path = save(dataset(chest(bits=8), bits=8), tmp_path / "image.dcm", "jpeg baseline")
    grey, _, _ = dicom.read(path)
    data = dcmread(path)
    data.BitsAllocated = 16
    data.save_as(path)
    np.testing.assert_array_equal(dicom.read(path)[0], grey)


def test_a_phones_second_picture_and_long_texts(tmp_path: Path) -> None:
    pixels = chest(bits=8).astype(np.uint8)
    first, second = Image.fromarray(pixels), Image.fromarray(pixels[::2, ::2])
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    grey, facts, _ = pictures.read(tmp_path / "x.jpg", max_pixels=10**6)
    np.testing.assert_allclose(grey, pixels / 255, atol=0.1)
    assert facts.warnings == ("several pictures in one file; the first was read",)
    text = zlib.compress(bytes(2 << 20))
    extra = b"k\0\0" + text
    chunk = struct.pack(">L", len(extra)) + b"zTXt" + extra + struct.pack(">L", zlib.crc32(b"zTXt" + extra))
    grey, _, _ = pictures.read(png16(tmp_path / "x.png", chest()[..., None], 0, chunk), max_pixels=10**6)
    assert grey.std() > 0.1


# ---- bounds, and what is printed


def test_nothing_behind_the_pixels_is_looked_at_and_elements_are_counted(tmp_path: Path) -> None:
    path = save(dataset(chest(), **WINDOW), tmp_path / "image.dcm")
    whole, expected = path.read_bytes(), plain(tmp_path)
    os.truncate(path, 60 << 20)  # sparse
    begun = time.process_time()
    np.testing.assert_array_equal(dicom.read(path)[0], expected)
    at = whole.rindex(b"\xe0\x7f\x10\0")
    for flood in (bytes(8 << 20), b"\xd1\x7f\x01\x10LO\2\0ab" * 200_000):
        path.write_bytes(whole[:at] + flood + whole[at:])
        with pytest.raises(Refused, match="more than 100000 elements"):
            dicom.read(path)
    path.write_bytes(bytes(128) + b"DICM" + bytes(8 << 20))
    with pytest.raises(Refused):
        dicom.read(path)
    assert time.process_time() - begun < 10  # 16 s a flood without the bounds


PLANTED = "PLANTED^CANARY"


def test_no_library_prints_a_word_of_a_header(tmp_path: Path) -> None:
    """In a process of its own, with Python's warnings on and no fork server: C code prints on the descriptor."""
    for number, tags in enumerate(
        (
            {"PatientAge": PLANTED},
            {"WindowCenter": PLANTED},
            {"PatientOrientation": PLANTED},
            {"StudyDate": PLANTED},
        )
    ):
        data = dataset(chest(), PatientID=PLANTED)
        for name, value in tags.items():
            data.add_new(name, "LO", value)
        save(data, tmp_path / f"{number}.dcm")
    path = save(dataset(chest(bits=8), bits=8), tmp_path / "broken.dcm", "jpeg extended")
    data = dcmread(path)
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    frame = bytearray(next(generate_frames(data.PixelData, number_of_frames=1)))
    frame[len(frame) // 2 : len(frame) // 2 + 60] = bytes(60)
    data.PixelData = encapsulate([bytes(frame)])
    data.save_as(path)
    program = (
        "import sys, logging; from pathlib import Path; from sscxr.data.pixels.decode import Task, attempt\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()): attempt(Task(file, None, '', 64, 10**6))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""
