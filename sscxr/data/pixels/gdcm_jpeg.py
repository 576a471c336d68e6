"""Decodes JPEG and JPEG-LS by GDCM and copies the pixels, which GDCM's Python binding would return as text.

This is a plug-in for pydicom's decoders, beside pydicom's own for GDCM; pydicom does the rest of the decoding.
"""

import zlib  # noqa: F401, I001 - before gdcm: its own zlib, if it is loaded first, breaks Python's
import ctypes

import gdcm
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
)

NAME = "gdcm-jpeg"
SYNTAXES = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("gdcm",))  # required by pydicom of a plug-in


def is_available(uid: str) -> bool:
    """Return whether this plug-in decodes a transfer syntax."""
    return uid in SYNTAXES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Return the pixels of one code stream, as `runner` describes them.

    Raises:
        ValueError: it is not decodable, or not to that many bytes.
    """
    stored, signed = runner.bits_stored, runner.pixel_representation
    if runner.transfer_syntax in JPEGLSTransferSyntaxes:
        codec = gdcm.JPEGLSCodec()  # interleaves samples by pixel, in the code stream's width
        stored = runner.get_option("jls_precision", stored)
        runner.set_option("planar_configuration", 0)
        runner.set_option("bits_allocated", 8 if stored <= 8 else 16)
        codec.SetBufferLength(int(runner.frame_length(unit="bytes")))
    elif runner.bits_allocated > 16:  # GDCM ends the process on some of these
        raise ValueError(f"{runner.bits_allocated} bits allocated, JPEG has at most 16")
    else:
        codec = gdcm.JPEGCodec()
    codec.SetNumberOfDimensions(2)
    codec.SetDimensions((runner.columns, runner.rows, 1))
    if runner.samples_per_pixel > 1:
        codec.SetPlanarConfiguration(runner.planar_configuration)
    colours = gdcm.PhotometricInterpretation.GetPIType(runner.photometric_interpretation)
    codec.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(colours))
    codec.SetPixelFormat(
        gdcm.PixelFormat(runner.samples_per_pixel, runner.bits_allocated, stored, stored - 1, signed)
    )
    decoded = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    if not codec.Decode(_element(src), decoded):
        raise ValueError("not decodable")
    value = decoded.GetByteValue()  # lives as long as `decoded`
    length, expected = int(str(value.GetLength())), int(runner.frame_length(unit="bytes"))
    if not expected <= length <= expected + 1:  # one of padding
        raise ValueError(f"{length} bytes of pixels, the header states {expected}")
    return ctypes.string_at(int(value.GetVoidPointer()), expected)


def _element(stream: bytes) -> gdcm.DataElement:
    """Return pixel data of one fragment."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    return element


for _syntax in SYNTAXES:
    get_decoder(_syntax).add_plugin(NAME, (__name__, "decode_frame"))
