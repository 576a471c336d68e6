"""DICOM files for tests: a picture like a radiograph, wrapped and compressed in any way; what reading one gives."""

import zlib  # noqa: F401 - before gdcm: its own zlib, if it is loaded first, breaks Python's
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from sscxr.data.pixels import dicom
from sscxr.data.pixels.facts import Facts, Refused

Grey = npt.NDArray[np.float32]

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
}
LOSSLESS = {
    "jpeg lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "jpeg lossless sv1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless,
    "jpeg 2000": gdcm.TransferSyntax.JPEG2000Lossless,
}
LOSSY = {
    "jpeg baseline": gdcm.TransferSyntax.JPEGBaselineProcess1,
    "jpeg extended": gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    "jpeg-ls near": gdcm.TransferSyntax.JPEGLSNearLossless,
    "jpeg 2000 lossy": gdcm.TransferSyntax.JPEG2000,
}


def chest(height: int = 120, width: int = 100, *, bits: int = 12, seed: int = 0) -> npt.NDArray[np.int64]:
    """int64 [H, W] in 0..2^bits - 1: two dark lungs in a bright body, the heart on the right; noise on top."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    grey = 0.65 - 0.25 * y
    for centre in (0.3, 0.7):
        grey -= 0.4 * np.exp(-(((x - centre) / 0.13) ** 2) - ((y - 0.45) / 0.25) ** 2)
    grey += 0.3 * np.exp(-(((x - 0.58) / 0.1) ** 2) - ((y - 0.65) / 0.12) ** 2)
    grey += np.random.default_rng(seed).normal(0, 0.02, grey.shape)
    return np.rint(np.clip(grey, 0.02, 0.98) * (2**bits - 1)).astype(np.int64)


def dataset(stored: npt.NDArray[Any], *, bits: int = 12, signed: bool = False, **tags: Any) -> Dataset:
    """A digital X-ray of `stored` samples [H, W]; tags by keyword are added, those of None removed."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    data.Modality, data.BodyPartExamined, data.PresentationIntentType = "DX", "CHEST", "FOR PRESENTATION"
    data.PatientID, data.PatientName, data.PatientSex, data.PatientAge = "MRN-4711", "Doe^Jane", "F", "045Y"
    data.ViewPosition = "PA"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, int(signed)
    kind = f"<{'i' if signed else 'u'}{data.BitsAllocated // 8}"
    data.PixelData = stored.astype(kind).tobytes()
    data["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def save(data: Dataset, path: Path, syntax: str = "explicit") -> Path:
    """Write a dataset in any transfer syntax of `SYNTAXES`, `LOSSLESS` or `LOSSY`."""
    if syntax in SYNTAXES:
        data.file_meta.TransferSyntaxUID = SYNTAXES[syntax] if syntax != "rle" else ExplicitVRLittleEndian
        if syntax == "rle":
            data.compress(RLELossless)
        if syntax == "big endian" and data.BitsAllocated == 16:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data.save_as(path, enforce_file_format=True, little_endian=None)
        return path
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax((LOSSLESS | LOSSY)[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change(), f"gdcm does not encode {syntax}"
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def read(data: Dataset, folder: Path, syntax: str = "explicit") -> tuple[Grey, Facts]:
    """What our reader makes of a dataset, written into a folder: greys in 0..1 and the header's facts."""
    grey, facts, _ = dicom.read(save(data, folder / "image.dcm", syntax))
    assert grey.dtype == np.float32
    assert 0 <= grey.min() <= grey.max() <= 1
    return grey, facts


def refusal(data: Dataset, folder: Path) -> str:
    """Why our reader refuses a dataset."""
    with pytest.raises(Refused) as caught:
        dicom.read(save(data, folder / "image.dcm"))
    return str(caught.value)
