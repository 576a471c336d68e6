"""The pixel pipeline against its formulas: rescale, windows and tables, polarity, padding, shutters."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import chest, dataset, read
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from sscxr.data.pixels import greyrange, greyscale


def lut(entries: npt.NDArray[Any], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % (1 << 16), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return Sequence([item])


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


@pytest.mark.parametrize("low", [-700, 0, 5, 60_000, 70_000])
@pytest.mark.parametrize("span", [40, 5_000, 90_000])
def test_greys_are_those_of_plain_arithmetic_wherever_the_stored_values_lie(low: int, span: int) -> None:
    stored = np.random.default_rng(span).integers(low, low + span, (60, 50), dtype=np.int32)
    stored[0, :2] = low, low + span - 1
    true_pixels = np.ones(stored.shape, bool)
    true_pixels[:, 7:20] = False
    header = dataset(chest(), bits=16, signed=low < 0)
    grey, grey_range, _ = greyscale.displayed(stored, true_pixels, header)
    assert grey_range == "percentiles"
    shown = stored[true_pixels].astype(np.float64)
    black, white = (np.percentile(shown, share, method="inverted_cdf") for share in greyrange.PERCENTILES)
    expected = np.where(true_pixels, np.clip((stored - black) / (white - black), 0, 1), 0)
    np.testing.assert_array_equal(grey, expected.astype(np.float32))
