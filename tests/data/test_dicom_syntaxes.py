"""Every compression against none: the same greys, however the samples are stored and the file is written."""

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from dicoms import LOSSLESS, LOSSY, SYNTAXES, chest, dataset, read, save
from pydicom import dcmread

from sscxr.data.pixels import dicom, parsing
from sscxr.data.pixels.facts import Refused


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
        data, all_of_it = parsing.inflate(BytesIO(stream), limit)
        assert (len(data), all_of_it) == (min(limit, 3 << 20), limit >= 3 << 20)
