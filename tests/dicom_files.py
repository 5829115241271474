"""DICOM files made in memory for the tests: uncompressed ones, and ones of every lossless compression."""

import importlib.util
import io
import struct

import numpy as np
import pytest
from PIL import Image
from pydicom import encaps, uid
from pydicom.dataset import Dataset, FileMetaDataset

CANARY = "Zebedee^Quince"


def film(stored, bits, *, syntax=uid.ExplicitVRLittleEndian, frame=None, meta=None, **elements):
    """The bytes of a DICOM file with the pixels ``stored``, or with the compressed ``frame``; None leaves one out."""
    allocated = 8 * stored.dtype.itemsize
    defaults = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": stored.shape[0]}
    defaults |= {"Columns": stored.shape[1], "BitsAllocated": allocated, "BitsStored": bits, "HighBit": bits - 1}
    defaults |= {"PixelRepresentation": int(stored.dtype.kind == "i"), "PatientName": CANARY, "PatientID": CANARY}
    ds = Dataset()
    for name, value in (defaults | elements).items():
        if value is not None:
            setattr(ds, name, value)
    pixel_data = encaps.encapsulate([frame]) if frame else stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    if not syntax.is_little_endian:
        pixel_data = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    if "PixelData" not in elements:
        ds.add_new("PixelData", "OW" if allocated == 16 and not frame else "OB", pixel_data)
        ds["PixelData"].is_undefined_length = frame is not None
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = meta or uid.DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def lut(entries, first, bits, signed=False, vr="OW", order="<"):
    """A sequence of one lookup table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) % 65536, first, bits])
    item.add_new(
        "LUTData", vr, np.asarray(entries, f"{order}u2").tobytes() if vr == "OW" else [int(e) for e in entries]
    )
    return [item]


def noise(bits, signed=False, shape=(24, 24), seed=0):
    """Pixels over the whole range of ``bits``, its ends included."""
    low = -(2 ** (bits - 1)) if signed else 0
    dtype = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    stored = np.random.default_rng(seed).integers(low, low + 2**bits, shape).astype(dtype)
    stored.flat[:2] = low, low + 2**bits - 1
    return stored


UNCOMPRESSED = [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]


def saved(stored, format, **options):
    file = io.BytesIO()
    Image.fromarray(stored).save(file, format, **options)
    return file.getvalue()


def jpeg_lossless(stored, bits):
    """JPEG process 14 with the left neighbour as the predictor, every difference coded in 17 categories of 5 bits."""
    rows, columns = stored.shape
    header = struct.pack(">BBHBHHBBBB", 0xFF, 0xC3, 11, bits, rows, columns, 1, 1, 0x11, 0)
    table = struct.pack(">BBHB16B", 0xFF, 0xC4, 19 + 17, 0, *([0] * 4 + [17] + [0] * 11)) + bytes(range(17))
    scan = struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, 1, 0, 0)
    values = stored.astype(int) % 2**bits  # there is no sign in a JPEG
    before = np.empty_like(values)
    before[:, 1:], before[1:, 0], before[0, 0] = values[:, :-1], values[:-1, 0], 2 ** (bits - 1)
    code = ""
    for difference in ((values - before + 2**15 - 1) % 2**16 - 2**15 + 1).ravel():
        size = int(abs(difference)).bit_length()
        extra = difference if difference > 0 else difference + 2**size - 1
        code += f"{size:05b}" + (f"{extra:0{size}b}" if 0 < size < 16 else "")
    code += "1" * (-len(code) % 8)
    data = int(code, 2).to_bytes(len(code) // 8, "big").replace(b"\xff", b"\xff\x00")
    return b"\xff\xd8" + header + table + scan + data + b"\xff\xd9"


def rle(stored, bits):
    """PackBits in literal runs, one segment for each byte of a pixel, the most significant first."""
    planes = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    segments = []
    for at in range(stored.itemsize):
        plane = planes[at :: stored.itemsize]
        runs = [plane[i : i + 128] for i in range(0, len(plane), 128)]
        packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(packed + b"\0" * (len(packed) % 2))
    starts = [64, 64 + len(segments[0])][: len(segments)]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(starts))) + b"".join(segments)


def jpeg_ls(stored, bits):
    import imagecodecs

    return imagecodecs.jpegls_encode(stored.view(f"u{stored.itemsize}"))


# syntax: (module of its decoder, bits and sign of the pixels, encoder)
LOSSLESS = {
    uid.RLELossless: ("pydicom", [(8, False), (12, False), (16, True)], rle),
    uid.JPEG2000Lossless: ("PIL", [(8, False), (16, False)], lambda s, _: saved(s, "JPEG2000", no_jp2=True)),
    uid.JPEGLSLossless: ("imagecodecs", [(8, False), (16, True), (12, False), (16, False)], jpeg_ls),
    uid.JPEGLossless: ("imagecodecs", [(8, True), (12, True), (16, True), (12, False), (16, False)], jpeg_lossless),
    uid.JPEGLosslessSV1: ("imagecodecs", [(8, False), (12, False), (16, False)], jpeg_lossless),
}


def encoded(syntax, stored, bits, **elements):
    """A file compressed as ``syntax``; skips where what decodes it is not installed."""
    module, _, encode = LOSSLESS[syntax]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return film(stored, bits, syntax=syntax, frame=encode(stored, bits), **elements)
