"""The pixel pipeline against its formulas, every compression against none, every refusal by its reason."""

import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import LOSSLESS, LOSSY, SYNTAXES, chest, dataset, save
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence

from sscxr.data import dicom
from sscxr.data.decode import Prepared, Task, attempt
from sscxr.data.facts import Facts, Refused
from sscxr.data.greyscale import turn, upright

Grey = npt.NDArray[np.float32]


def read(data: Dataset, folder: Path, syntax: str = "explicit") -> tuple[Grey, Facts]:
    grey, facts, _ = dicom.read(save(data, folder / "image.dcm", syntax))
    assert grey.dtype == np.float32
    assert 0 <= grey.min() <= grey.max() <= 1
    return grey, facts


def refusal(data: Dataset, folder: Path) -> str:
    with pytest.raises(Refused) as caught:
        dicom.read(save(data, folder / "image.dcm"))
    return str(caught.value)


def lut(entries: npt.NDArray[Any], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % (1 << 16), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_lossless_transfer_syntax_decodes_to_the_same_greys(
    tmp_path: Path, bits: int, signed: bool
) -> None:
    stored = chest(bits=bits) - (2 ** (bits - 1) if signed else 0)
    plain, _ = read(dataset(stored, bits=bits, signed=signed), tmp_path)
    assert plain.std() > 0.1
    for syntax in [*SYNTAXES, *LOSSLESS]:
        grey, _ = read(dataset(stored, bits=bits, signed=signed), tmp_path, syntax)
        np.testing.assert_array_equal(grey, plain, err_msg=syntax)


@pytest.mark.parametrize(("syntax", "bits"), [(name, 8) for name in LOSSY] + [("jpeg extended", 12)])
def test_lossy_transfer_syntaxes_decode_to_nearly_the_same_greys(
    tmp_path: Path, syntax: str, bits: int
) -> None:
    plain, _ = read(dataset(chest(bits=bits), bits=bits), tmp_path)
    grey, _ = read(dataset(chest(bits=bits), bits=bits), tmp_path, syntax)
    assert np.abs(grey - plain).max() < 0.03


@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_may_lie_anywhere_and_the_others_hold_anything(tmp_path: Path, signed: bool) -> None:
    stored = chest(bits=10) - (512 if signed else 0)
    plain, _ = read(dataset(stored, bits=10, signed=signed), tmp_path)
    noise = np.random.default_rng(1).integers(0, 4, stored.shape)
    shifted = dataset((stored << 3) & 0x1FFF | noise | noise << 13, bits=16, signed=False)
    shifted.BitsStored, shifted.HighBit, shifted.PixelRepresentation = 10, 12, int(signed)
    grey, _ = read(shifted, tmp_path)
    np.testing.assert_array_equal(grey, plain)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_windows_follow_their_function(tmp_path: Path, function: str | None) -> None:
    stored = chest()
    tags = {"VOILUTFunction": function} if function else {}
    grey, facts = read(
        dataset(
            stored,
            RescaleSlope=2,
            RescaleIntercept=-1000,
            WindowCenter=[3000, 1],
            WindowWidth=[4000, 2],
            **tags,
        ),
        tmp_path,
    )
    x = stored * 2.0 - 1000
    expected = {
        "LINEAR": np.clip((x - 2999.5) / 3999 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - 3000) / 4000 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - 3000) / 4000)),
    }[function or "LINEAR"]
    np.testing.assert_allclose(grey, expected, atol=2e-5)
    assert facts.grey_range == "window"


@pytest.mark.parametrize(("first", "bits"), [(0, 8), (0, 12), (0, 16), (500, 12)])
def test_a_voi_lut_maps_values_and_wins_over_a_window(tmp_path: Path, first: int, bits: int) -> None:
    stored = chest()
    table = np.rint(np.sqrt(np.arange(3000) / 2999) * (2**bits - 1))
    tags = {"VOILUTSequence": lut(table, first, bits), "WindowCenter": 100, "WindowWidth": 10}
    grey, facts = read(dataset(stored, **tags), tmp_path)
    expected = table[np.clip(stored - first, 0, 2999)] / (2**bits - 1)
    np.testing.assert_allclose(grey, expected, atol=1e-6)
    assert facts.grey_range == "voi lut"


def test_a_modality_lut_comes_before_the_window(tmp_path: Path) -> None:
    stored = chest()
    table = np.arange(4096)[::-1]
    tags = {"ModalityLUTSequence": lut(table, 0, 12), "WindowCenter": 2048, "WindowWidth": 4096}
    grey, _ = read(dataset(stored, **tags), tmp_path)
    np.testing.assert_allclose(grey, (4095 - stored - 2047.5) / 4095 + 0.5, atol=2e-5)


def test_monochrome1_and_the_inverse_shape_turn_the_greys_once(tmp_path: Path) -> None:
    stored = chest()
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain, _ = read(dataset(stored, **window), tmp_path)
    for tags in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        grey, _ = read(dataset(4095 - stored, **window, **tags), tmp_path)
        np.testing.assert_allclose(grey, plain, atol=1e-5)


def test_without_a_window_percentiles_of_the_true_pixels_set_the_range(tmp_path: Path) -> None:
    stored = chest()
    stored[:40] = 0  # padding
    stored[60, 50] = 4095  # one dead pixel
    grey, facts = read(dataset(stored, PixelPaddingValue=0), tmp_path)
    assert facts.grey_range == "percentiles"
    low, high = np.percentile(stored[40:], (0.5, 99.5))
    inside = grey[45:58]
    np.testing.assert_allclose(inside, np.clip((stored[45:58] - low) / (high - low), 0, 1), atol=0.01)
    assert not grey[:40].any()


def test_eight_bits_without_a_window_keep_their_range(tmp_path: Path) -> None:
    stored = chest(bits=8)
    grey, facts = read(dataset(stored, bits=8), tmp_path)
    np.testing.assert_allclose(grey, stored / 255, atol=1e-6)
    assert facts.grey_range == "8 bit"


@pytest.mark.parametrize("signed", [False, True])
def test_padding_is_black_under_either_polarity(tmp_path: Path, signed: bool) -> None:
    stored = chest(bits=16) // 2 + 8000 - (32768 if signed else 0)
    low = -32768 if signed else 0
    stored[:20], stored[20:30] = low, low + 7
    for polarity in ("MONOCHROME1", "MONOCHROME2"):
        tags = {
            "PixelPaddingValue": low,
            "PixelPaddingRangeLimit": low + 10,
            "PhotometricInterpretation": polarity,
        }
        grey, _ = read(dataset(stored, bits=16, signed=signed, **tags), tmp_path)
        assert not grey[:30].any()
        assert grey[30:].std() > 0.1


RECTANGLE: dict[str, Any] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 11,
    "ShutterRightVerticalEdge": 90,
    "ShutterUpperHorizontalEdge": 21,
    "ShutterLowerHorizontalEdge": 100,
}
CIRCLE: dict[str, Any] = {
    "ShutterShape": "CIRCULAR",
    "CenterOfCircularShutter": [60, 50],
    "RadiusOfCircularShutter": 40,
}
POLYGON: dict[str, Any] = {
    "ShutterShape": "POLYGONAL",
    "VerticesOfThePolygonalShutter": [21, 11, 21, 90, 100, 90, 100, 11],
}


@pytest.mark.parametrize(
    "tags", [RECTANGLE, CIRCLE, POLYGON, RECTANGLE | CIRCLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"]}]
)
def test_shutters_are_black_and_out_of_the_statistics(tmp_path: Path, tags: dict[str, Any]) -> None:
    stored = chest()
    rows, columns = np.mgrid[1:121, 1:101]
    inside = np.ones(stored.shape, dtype=bool)
    if "ShutterLeftVerticalEdge" in tags or tags["ShutterShape"] == "POLYGONAL":
        inside &= (columns >= 11) & (columns <= 90) & (rows >= 21) & (rows <= 100)
    if "RadiusOfCircularShutter" in tags:
        inside &= (rows - 60) ** 2 + (columns - 50) ** 2 <= 40**2
    bright = np.where(inside, stored, 4095)
    grey, _ = read(dataset(bright, **tags), tmp_path)
    assert not grey[~inside].any()
    low, high = np.percentile(stored[inside], (0.5, 99.5))
    np.testing.assert_allclose(grey[inside], np.clip((stored[inside] - low) / (high - low), 0, 1), atol=0.01)


def test_what_hides_the_image_is_left_out_with_a_warning(tmp_path: Path) -> None:
    plain, _ = read(dataset(chest()), tmp_path)
    for tags in (
        {"WindowCenter": 60000, "WindowWidth": 10},
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"WindowCenter": 2000, "WindowWidth": 4000, "VOILUTFunction": "MAGIC"},
        RECTANGLE | {"ShutterRightVerticalEdge": 12},
        {"ShutterShape": "CIRCULAR"},
    ):
        grey, facts = read(dataset(chest(), **tags), tmp_path)
        np.testing.assert_array_equal(grey, plain)
        assert any("not usable" in warning for warning in facts.warnings)


@pytest.mark.parametrize(
    ("orientation", "back"),
    [
        (["L", "F"], lambda a: a),
        (["R", "F"], lambda a: a[:, ::-1]),
        (["L", "H"], lambda a: a[::-1]),
        (["R", "H"], lambda a: a[::-1, ::-1]),
        (["F", "L"], lambda a: a.T),
        (["F", "R"], lambda a: np.rot90(a, 1)),
        (["H", "L"], lambda a: np.rot90(a, -1)),
        (["LF", "FR"], lambda a: a),
        (["P", "F"], lambda a: a),
        (["A", "F"], lambda a: a),
        (["A", "H"], lambda a: a[::-1, ::-1]),
        (["F", "A"], lambda a: np.rot90(a, 1)),
        (["H", "A"], lambda a: np.rot90(a, -1)),
        (["X", "Y"], lambda a: a),
        (["L", "R"], lambda a: a),
    ],
)
def test_patient_orientation_is_undone(tmp_path: Path, orientation: list[str], back: Any) -> None:
    """`back` turns the upright picture into the stored one; reading turns it back."""
    upright_picture = chest()
    plain, _ = read(dataset(upright_picture), tmp_path)
    grey, _ = read(
        dataset(np.ascontiguousarray(back(upright_picture)), PatientOrientation=orientation), tmp_path
    )
    np.testing.assert_array_equal(grey, plain)


def test_laterals_are_rotated_and_never_mirrored() -> None:
    marker = np.array([[1, 2], [3, 4]])
    rotations = [np.rot90(marker, quarter).tolist() for quarter in range(4)]
    for rows in "AP":
        for columns in "HF":
            assert turn(marker, upright([rows, columns])).tolist() in rotations
            assert turn(marker, upright([columns, rows])).tolist() in rotations


def test_the_header_tells_the_facts_and_no_more(tmp_path: Path) -> None:
    _, facts = read(dataset(chest(), ImagerPixelSpacing=[0.143, 0.143]), tmp_path)
    assert facts == Facts("PA", "F", "40-59", 0.143, "MRN-4711", "CHEST", "percentiles", ())


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "AP", "PatientPosition": "HFS"}, "AP supine"),
        ({"ViewPosition": "LL"}, "L"),
        ({"ViewPosition": "RL"}, "L"),
        ({"ViewPosition": "LATERAL"}, "L"),
        ({"ViewPosition": "LLD"}, ""),
        ({"ViewPosition": None, "PatientPosition": "PA"}, "PA"),
        ({"ViewPosition": None, "PatientPosition": "XX"}, ""),
        ({"ViewPosition": "", "SeriesDescription": "Thorax a.p. liegend"}, "AP supine"),
        ({"ViewPosition": "", "SeriesDescription": "CHEST LAT"}, "L"),
        ({"ViewPosition": "", "SeriesDescription": "Chest PA and lateral"}, ""),
    ],
)
def test_views(tmp_path: Path, tags: dict[str, Any], view: str) -> None:
    assert read(dataset(chest(), **tags), tmp_path)[1].view == view


@pytest.mark.parametrize(
    ("tags", "band"),
    [
        ({"PatientAge": "010M"}, "0-4"),
        ({"PatientAge": "81"}, "80+"),
        ({"PatientAge": "414Y"}, ""),
        ({"PatientAge": None}, ""),
        ({"PatientAge": None, "PatientBirthDate": "20100701", "StudyDate": "20240630"}, "5-17"),
    ],
)
def test_ages(tmp_path: Path, tags: dict[str, Any], band: str) -> None:
    assert read(dataset(chest(), **tags), tmp_path)[1].age_band == band


@pytest.mark.parametrize("identity", ["", "ANONYMOUS", "anon", "0000", "Unknown"])
def test_placeholders_are_nobodys_identity(tmp_path: Path, identity: str) -> None:
    assert read(dataset(chest(), PatientID=identity), tmp_path)[1].patient == ""


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "not a radiograph: modality CT"),
        ({"Modality": "MR"}, "not a radiograph: modality MR"),
        ({"BodyPartExamined": "RIBCAGE"}, "not a chest: body part RIBCAGE"),
        ({"BodyPartExamined": "KNEE"}, "not a chest: body part KNEE"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for processing"),
        ({"NumberOfFrames": 3}, "multi-frame: 3 frames"),
        ({"Rows": 60000, "Columns": 60000}, "too large: 60000 x 60000 px"),
        ({"Rows": 119}, "unreadable: 24000 bytes"),
        ({"Columns": 101}, "truncated: 24000 bytes"),
        ({"PixelData": None}, "unreadable: no pixel data"),
        ({"Rows": None}, "not an image"),
        ({"BitsStored": 17}, "unreadable: 17 bits"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "odd pixel values"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour picture"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refusals(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    assert refusal(dataset(chest(), **tags), tmp_path).startswith(reason)


@pytest.mark.parametrize("part", [None, "", "THORAX", "Chest PA", "LUNG", "UNKNOWN"])
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


def test_a_file_without_preamble_is_read_by_its_name(tmp_path: Path) -> None:
    path = save(dataset(chest()), tmp_path / "image.dcm", "implicit")
    plain, _, _ = dicom.read(path)
    data = dcmread(path)
    data.remove_private_tags()
    data.save_as(path, implicit_vr=True, little_endian=True)
    body = path.read_bytes()
    path.write_bytes(body[body.index(b"\x08\x00\x16\x00") :])
    grey, _, _ = dicom.read(path)
    np.testing.assert_array_equal(grey, plain)
    path.write_bytes(b"no DICOM at all, whatever the name says")
    with pytest.raises(Refused):
        dicom.read(path)


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
        "import resource, sys; from pathlib import Path; from sscxr.data import dicom, facts\n"
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


def test_a_deflated_file_may_have_its_end_anywhere(tmp_path: Path) -> None:
    path = save(dataset(chest()), tmp_path / "image.dcm", "deflated")
    plain, facts, _ = dicom.read(save(dataset(chest()), tmp_path / "plain.dcm"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")  # padded to an even length (PS3.5 A.5)
    grey, same, _ = dicom.read(path)
    np.testing.assert_array_equal(grey, plain)
    assert same == facts
    path.write_bytes(whole[:-1000])
    with pytest.raises(Refused, match="truncated: the deflated data have no end"):
        dicom.read(path)
    body = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    stream = body.compress(bytes(3 << 20)) + body.flush()
    for limit in (1, (3 << 20) - 1, 3 << 20, (3 << 20) + 1):
        data, all_of_it = dicom._inflate(BytesIO(stream), limit)
        assert (len(data), all_of_it) == (min(limit, 3 << 20), limit >= 3 << 20)


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
