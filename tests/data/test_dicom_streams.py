"""Code streams against their header: what decodes them gives pydicom's bits, and no decoder sees what lies."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import chest, dataset, save
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEG2000, JPEG2000Lossless

from sscxr.data.pixels import codestream, dicom
from sscxr.data.pixels.facts import Refused

SIZ = {"across": 8, "down": 12, "left": 16, "top": 20, "tiles left": 32, "tiles top": 36}  # ISO 15444-1 A.5.1


def wrapped(stored: npt.NDArray[Any], stream: bytes, bits: int, **tags: Any) -> Dataset:
    """A JPEG 2000 code stream of `stored`, [H, W] or [H, W, 3], as DICOM."""
    data = dataset(
        stored[:, :, 0] if stored.ndim == 3 else stored, bits=bits, signed=stored.dtype.kind == "i"
    )
    if stored.ndim == 3:
        data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    for name, value in tags.items():
        setattr(data, name, value)
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", JPEG2000Lossless)
    data.PixelData = encapsulate([stream])
    return data


def encoded(bits: int, *, signed: bool = False, **options: Any) -> tuple[npt.NDArray[Any], bytes]:
    stored = chest(bits=bits) - (2 ** (bits - 1) if signed else 0)
    pixels = stored.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    return pixels, encode_array(pixels, bits_stored=bits, **options)


def colour(**options: Any) -> tuple[npt.NDArray[Any], bytes]:
    grey = chest(bits=8).astype(np.uint8)
    pixels = np.stack([grey, 255 - grey, np.roll(grey, 9)], axis=2)
    return pixels, encode_array(pixels, bits_stored=8, **options)


def decoded(data: Dataset) -> npt.NDArray[Any]:
    return dicom._decode(data, codestream.checked(data))


def renumbered(stream: bytes, **numbers: int) -> bytes:
    changed = bytearray(stream)
    for name, number in numbers.items():
        at = SIZ[name.replace("_", " ")]
        changed[at : at + 4] = number.to_bytes(4, "big")
    return bytes(changed)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg_2000_is_decoded_to_the_bits_of_pydicoms_first_choice(bits: int, signed: bool) -> None:
    for ratios in ([], [5], [40]):  # none: 5/3, reversible; else 9/7
        pixels, stream = encoded(bits, signed=signed, compression_ratios=ratios)
        data = wrapped(pixels, stream, bits, syntax=JPEG2000 if ratios else JPEG2000Lossless)
        np.testing.assert_array_equal(decoded(data), pixel_array(data, decoding_plugin="gdcm"))
        assert ratios or (decoded(data) == pixels).all()
        data.PixelRepresentation = int(not signed)  # the header has the last word
        np.testing.assert_array_equal(decoded(data), pixel_array(data, decoding_plugin="gdcm"))


@pytest.mark.parametrize("ratios", [[], [10]])
def test_colour_and_tiles_too(ratios: list[int]) -> None:
    for options, interpretation in (
        ({"photometric_interpretation": 1}, "YBR_ICT" if ratios else "YBR_RCT"),
        ({"photometric_interpretation": 1, "use_mct": False}, "RGB"),
        ({"photometric_interpretation": 3}, "YBR_FULL"),
    ):
        pixels, stream = colour(compression_ratios=ratios, **options)
        data = wrapped(pixels, stream, 8, PhotometricInterpretation=interpretation)
        np.testing.assert_array_equal(decoded(data), pixel_array(data, decoding_plugin="gdcm"))
    tiled = io.BytesIO()
    lossy: dict[str, Any] = {"irreversible": True, "quality_layers": ratios} if ratios else {}
    Image.fromarray(pixels[:, :, 0].copy()).save(tiled, "JPEG2000", no_jp2=True, tile_size=(64, 48), **lossy)
    data = wrapped(pixels[:, :, 0], tiled.getvalue(), 8)
    np.testing.assert_array_equal(decoded(data), pixel_array(data, decoding_plugin="gdcm"))


def test_an_image_away_from_its_origin_is_read() -> None:
    pixels, stream = encoded(12)
    by = 2048  # whole code blocks at every resolution, so that the samples stay as they are
    moved = renumbered(stream, across=100 + by, down=120 + by, left=by, top=by, tiles_left=by, tiles_top=by)
    np.testing.assert_array_equal(decoded(wrapped(pixels, moved, 12)), pixels)


def test_a_jp2_file_is_unwrapped_and_its_colours_are_the_headers() -> None:
    pixels, stream = encoded(12, photometric_interpretation=2, codec_format=1)
    at = stream.index(b"jp2c") - 4
    for file in (stream, stream + b"\0\0", stream[:at] + bytes(4) + stream[at + 4 :]):
        np.testing.assert_array_equal(decoded(wrapped(pixels, file, 12)), pixels)
    colours, file = colour(photometric_interpretation=3, codec_format=1)  # sYCC, by its box
    np.testing.assert_array_equal(decoded(wrapped(colours, file, 8)), colours)


GREY, STREAM = encoded(12)
COLOURS, COLOUR_STREAM = colour(use_mct=False)
FILE = encoded(12, codec_format=1)[1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            wrapped(GREY, renumbered(STREAM, across=1 << 30, down=1 << 30), 12),
            "100 x 120 px in the header, 1",
        ),
        (wrapped(GREY, renumbered(STREAM, left=1), 12), "100 x 120 px in the header, 99 x 120 in"),
        (wrapped(GREY, STREAM[:40] + b"\x40\0" + STREAM[42:], 12), "1 samples a pixel in the header, 16384"),
        (wrapped(COLOURS[:, :, 0], COLOUR_STREAM, 8), "1 samples a pixel in the header, 3"),
        (wrapped(COLOURS, encoded(8)[1], 8), "3 samples a pixel in the header, 1"),
        (wrapped(COLOURS, COLOUR_STREAM[:45] + b"\x0f" + COLOUR_STREAM[46:], 8), "components of several"),
        (wrapped(COLOURS, COLOUR_STREAM[:46] + b"\2\2" + COLOUR_STREAM[48:], 8), "components of several"),
        (wrapped(GREY, STREAM, 12, BitsAllocated=8, BitsStored=8), "8 bits allocated in the header, 12 in"),
        (wrapped(GREY, bytes(100), 12), "no JPEG 2000 code stream"),
        (wrapped(GREY, STREAM[:30] + b"\xff\xd9", 12), "no JPEG 2000 code stream"),
        (wrapped(GREY, FILE[:12] + bytes(4) + b"free" + FILE[12:], 12), "a JP2 file without a code stream"),
        (wrapped(GREY, FILE[:12] + b"\0\0\0\4free" + FILE[12:], 12), "a JP2 file without a code stream"),
        (wrapped(GREY, STREAM[: len(STREAM) // 2] + b"\xff\xd9", 12), "pixels not decodable"),
    ],
)
def test_jpeg_2000_that_is_not_what_its_header_says_reaches_no_decoder(
    tmp_path: Path, data: Dataset, reason: str
) -> None:
    data.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    with pytest.raises(Refused, match=f"unreadable: {reason}"):
        dicom.read(tmp_path / "image.dcm")


@pytest.mark.parametrize(
    "syntax", ["jpeg lossless", "jpeg lossless sv1", "jpeg extended", "jpeg-ls", "jpeg-ls near"]
)
def test_jpeg_is_decoded_to_the_bits_of_gdcms_own_way(tmp_path: Path, syntax: str) -> None:
    import gdcm

    for bits, signed in ((8, False), (10, False), (12, False), (12, True), (14, True), (16, False)):
        if syntax == "jpeg extended" and (bits in (14, 16) or signed):
            continue
        path = save(dataset(chest(bits=bits), bits=bits, signed=signed), tmp_path / "image.dcm", syntax)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        data = dcmread(path)
        pixels = decoded(data)
        text = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
        np.testing.assert_array_equal(pixels.ravel(), np.frombuffer(text, pixels.dtype))


@pytest.mark.parametrize(
    ("syntax", "bits", "allocated", "stored", "reason"),
    [
        ("jpeg lossless sv1", 12, 8, 8, "8 bits allocated in the header, 16 in the image"),
        ("jpeg extended", 8, 16, 12, "12 bits stored in the header, 8 in the image"),
        ("jpeg lossless sv1", 12, 32, 20, "32 bits allocated"),
        ("jpeg extended", 12, 32, 20, "32 bits allocated"),
    ],
)
def test_jpeg_of_another_depth_than_its_header_says_is_refused(
    tmp_path: Path, syntax: str, bits: int, allocated: int, stored: int, reason: str
) -> None:
    data = dcmread(save(dataset(chest(bits=bits), bits=bits), tmp_path / "image.dcm", syntax))
    data.BitsAllocated, data.BitsStored = allocated, stored
    data.save_as(tmp_path / "other.dcm")
    with pytest.raises(Refused, match=f"unreadable: .*{reason}"):
        dicom.read(tmp_path / "other.dcm")
