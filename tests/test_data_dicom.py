"""DICOM films: each step from bits to grey against a plain computation per pixel, and files nobody vouches for."""

import importlib.util
import io
import itertools
import pathlib
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import encaps, filewriter, pixels, uid
from pydicom.dataset import Dataset, FileMetaDataset

from repgls_jax.data import dicom, images

# The module turns them off, and pytest on again.
pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")
CANARY = "Zebedee^Quince"
NO_NUMBER = "is missing or no number"


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


def shown(values, padding, voi, inverted):
    """The grey of each pixel, pixel by pixel; ``voi`` is None, a window (kind, centre, width) or a LUT."""
    grey = np.zeros(values.shape)
    low, high = np.percentile(values[~padding], [0.5, 99.5], method="inverted_cdf")
    for at, value in np.ndenumerate(values):
        if voi is None:
            y = min(max((value - low) / (high - low), 0), 1)
        elif voi[0] == "LUT":
            _, entries, first, bits = voi
            y = entries[int(min(max(value - first, 0), len(entries) - 1))] / (2**bits - 1)
        else:
            kind, centre, width = voi
            if kind == "SIGMOID":
                y = 1 / (1 + np.exp(-4 * (value - centre) / width))
            elif kind == "LINEAR_EXACT":
                y = min(max((value - centre) / width + 0.5, 0), 1)
            else:  # the standard's form, C.11.2.1.2
                y = min(max((value - (centre - 0.5)) / (width - 1) + 0.5, 0), 1)
        grey[at] = 1 - y if inverted else y
    return np.where(padding, 0, grey)


def same(content, expected):
    """The file decodes to ``expected`` and reads as its integers of 8 bits, exactly."""
    grey = dicom.decode(content, 1)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, expected, rtol=0, atol=2e-7)
    return grey


CURVE = {bits: (np.linspace(0, 1, 700) ** 2 * (2**bits - 1)).astype(int) for bits in (8, 12, 16)}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_pixels_are_what_the_standard_says(bits, signed):
    stored = noise(bits, signed)
    middle = 0 if signed else 2 ** (bits - 1)
    centre, width = middle + 0.03 * 2**bits, round(0.41 * 2**bits)
    vois = [None, ("LINEAR", centre, width), ("LINEAR_EXACT", centre, width), ("SIGMOID", centre, width)]
    vois += [("LUT", CURVE[depth], middle - 300 if signed else max(0, middle - 300), depth) for depth in (8, 12, 16)]
    pads = [(), (int(stored[3, 3]),), (int(stored.min()), int(stored.min()) + 2**bits // 5)]
    for voi, pad, (photometric, shape, inverted) in itertools.product(
        *(vois, pads),
        [("MONOCHROME2", None, False), ("MONOCHROME1", "INVERSE", True), ("MONOCHROME2", "INVERSE", True)],
    ):
        elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
        if voi and voi[0] == "LUT":
            elements["VOILUTSequence"] = lut(*voi[1:], signed)
            elements |= {"WindowCenter": 1, "WindowWidth": 2}  # the LUT comes first
        elif voi:
            elements |= {"VOILUTFunction": voi[0], "WindowCenter": [voi[1], 1], "WindowWidth": [voi[2], 2]}
        padding = np.zeros(stored.shape, bool)
        if pad:
            padding = (stored >= pad[0]) & (stored <= pad[-1])
            elements |= dict(zip(["PixelPaddingValue", "PixelPaddingRangeLimit"], pad, strict=False))
        same(film(stored, bits, **elements), shown(stored.astype(float), padding, voi, inverted))


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1000), (-1, 4095), (0.25, 7)])
def test_rescaled_values_are_what_the_window_is_about(slope, intercept):
    stored = noise(12)
    values = stored.astype(float) * slope + intercept
    voi = ("LINEAR", float(np.median(values)), 777.0)
    window = {"WindowCenter": voi[1], "WindowWidth": voi[2]}
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    none = np.zeros(stored.shape, bool)
    same(film(stored, 12, **rescale, **window), shown(values, none, voi, False))
    same(film(stored, 12, **rescale), shown(values, none, None, False))


def test_a_modality_lut_comes_before_the_window():
    stored = noise(10)
    table = np.random.default_rng(3).permutation(1024) * 3
    voi = ("LINEAR", 1500.0, 1024.0)
    content = film(stored, 10, ModalityLUTSequence=lut(table, 0, 16), WindowCenter=voi[1], WindowWidth=voi[2])
    same(content, shown(table[stored].astype(float), np.zeros(stored.shape, bool), voi, False))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shift", [0, 3, 4])
def test_only_the_stored_bits_count(signed, shift):
    stored = noise(12, signed)
    rubbish = np.random.default_rng(5).integers(0, 2**16, stored.shape).astype("u2")
    mask = np.uint16(0xFFF << shift)
    words = (stored.astype("u2") << shift & mask) | (rubbish & ~mask)
    content = film(words, 12, HighBit=11 + shift, PixelRepresentation=int(signed))
    same(content, shown(stored.astype(float), np.zeros(stored.shape, bool), None, False))


def test_a_padding_value_given_with_the_wrong_sign_is_understood():
    stored = noise(16, signed=True)
    stored[5:9] = -2000
    content = film(stored, 16, PixelPaddingValue=0)
    tag, wrong = struct.pack("<HH2sHh", 0x28, 0x120, b"SS", 2, 0), struct.pack("<HH2sHH", 0x28, 0x120, b"US", 2, 63536)
    assert content.count(tag) == 1
    same(content.replace(tag, wrong), shown(stored.astype(float), stored == -2000, None, False))


def test_marks_and_dead_pixels_do_not_set_the_range():
    stored = np.tile(np.arange(1000, 1100, dtype="u2"), (100, 1))
    stored[:2, :10] = 65535
    grey = dicom.decode(film(stored, 16), 1)
    assert np.ptp(grey[50]) == 1
    stored[:] = 7
    stored[4, 4] = 9  # a range of no width falls back on what differs
    stored[4, 5], stored[4, 6] = 5, 11
    np.testing.assert_array_equal(dicom.decode(film(stored, 16), 1), ((stored - 5.0) / 6).astype(np.float32))


UNCOMPRESSED = [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("syntax", UNCOMPRESSED, ids=lambda s: s.name)
@pytest.mark.parametrize("bits", [8, 12])
def test_every_uncompressed_syntax_says_the_same(syntax, bits):
    stored = noise(bits)
    assert film(stored, bits, syntax=syntax) != film(stored, bits)
    elements = {"PixelPaddingValue": 3, "PhotometricInterpretation": "MONOCHROME1"}
    order = "<" if syntax.is_little_endian else ">"
    expected = dicom.decode(film(stored, bits, VOILUTSequence=lut(np.arange(200), 30, 8), **elements), 1)
    for vr in ("US", "OW"):
        elements["VOILUTSequence"] = lut(np.arange(200), 30, 8, vr=vr, order=order)
        np.testing.assert_array_equal(dicom.decode(film(stored, bits, syntax=syntax, **elements), 1), expected)


def _saved(stored, format, **options):
    file = io.BytesIO()
    Image.fromarray(stored).save(file, format, **options)
    return file.getvalue()


def _jpeg_lossless(stored, bits):
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


def _rle(stored, bits):
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


def _jpeg_ls(stored, bits):
    import imagecodecs

    return imagecodecs.jpegls_encode(stored.view(f"u{stored.itemsize}"))


# syntax: (module of its decoder, bits and sign of the pixels, encoder)
LOSSLESS = {
    uid.RLELossless: ("pydicom", [(8, False), (12, False), (16, True)], _rle),
    uid.JPEG2000Lossless: ("PIL", [(8, False), (16, False)], lambda s, _: _saved(s, "JPEG2000", no_jp2=True)),
    uid.JPEGLSLossless: ("imagecodecs", [(8, False), (16, True), (12, False), (16, False)], _jpeg_ls),
    uid.JPEGLossless: ("imagecodecs", [(8, True), (12, True), (16, True), (12, False), (16, False)], _jpeg_lossless),
    uid.JPEGLosslessSV1: ("imagecodecs", [(8, False), (12, False), (16, False)], _jpeg_lossless),
}


def encoded(syntax, stored, bits, **elements):
    """A file compressed as ``syntax``; skips where what decodes it is not installed."""
    module, _, encode = LOSSLESS[syntax]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return film(stored, bits, syntax=syntax, frame=encode(stored, bits), **elements)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
def test_lossless_compression_loses_nothing(syntax):
    for bits, signed in LOSSLESS[syntax][1]:
        stored = noise(bits, signed, shape=(20, 28))
        elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 60, "WindowWidth": 177}
        expected = dicom.decode(film(stored, bits, **elements), 1)
        np.testing.assert_array_equal(dicom.decode(encoded(syntax, stored, bits, **elements), 1), expected)


def test_jpeg_gives_what_its_decoder_gives():
    stored = noise(8, shape=(32, 40))
    jpeg = _saved(stored, "JPEG", quality=60)
    content = film(stored, 8, syntax=uid.JPEGBaseline8Bit, frame=jpeg)
    expected = dicom.decode(film(np.asarray(Image.open(io.BytesIO(jpeg))), 8), 1)
    np.testing.assert_array_equal(dicom.decode(content, 1), expected)


def test_jpeg_of_12_bits_is_read():
    imagecodecs = pytest.importorskip("imagecodecs")
    stored = np.add.outer(np.arange(64) * 40, np.arange(48) * 30).astype("u2")
    jpeg = imagecodecs.jpeg8_encode(stored, level=100, bitspersample=12)
    content = film(stored, 12, syntax=uid.JPEGExtended12Bit, frame=jpeg)
    expected = dicom.decode(film(stored, 12), 1)
    np.testing.assert_allclose(dicom.decode(content, 1), expected, rtol=0, atol=4 / 4095)


def _shipped():
    """Files in pydicom's package that hold one grey film of at most 16 bits, and are not known to be broken."""
    broken = {"MR_truncated.dcm", "JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}
    broken |= {"JPGExtended.dcm"}  # whole, but pydicom has no decoder for its 12 bits that we could compare with
    root = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name not in broken):
        if path.read_bytes()[128:132] != b"DICM":
            continue
        ds = pydicom.dcmread(path)
        grey = ds.get("SamplesPerPixel") == 1 and "MONOCHROME" in ds.get("PhotometricInterpretation", "")
        if grey and "PixelData" in ds and ds.get("BitsAllocated") in (8, 16) and ds.get("NumberOfFrames", 1) == 1:
            yield path


@pytest.mark.parametrize("path", list(_shipped()), ids=lambda p: p.name)
def test_the_files_of_pydicom_look_as_in_pydicom(path):
    ds = pydicom.dcmread(path)
    if ds.file_meta.TransferSyntaxUID in dicom._BY_IMAGECODECS:
        pytest.importorskip("imagecodecs")
        pytest.importorskip("jpeg_ls", reason="pydicom decodes JPEG-LS with it")
    stored = ds.pixel_array
    values = pixels.apply_modality_lut(stored, ds).astype(float)
    picture = pixels.apply_voi_lut(values, ds)
    padding = stored == ds.get("PixelPaddingValue", np.inf)
    if ds.get("WindowWidth"):
        ends = np.array([-1e9, 1e9])
        low, high = pixels.apply_voi_lut(ends, ds)
    else:
        low, high = np.percentile(values[~padding], [0.5, 99.5], method="inverted_cdf")
    expected = np.clip((picture - low) / (high - low), 0, 1)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    if np.ptp(expected[~padding]) == 0:
        with pytest.raises(dicom.UnusableDicomError, match="a blank film"):
            dicom.decode(path.read_bytes(), 1)
    else:
        same(path.read_bytes(), np.where(padding, 0, expected))


def test_there_are_files_to_compare_with():
    assert len(list(_shipped())) >= 40


SMALL = noise(8, shape=(8, 8))
J2K = _saved(noise(8, shape=(64, 64)), "JPEG2000", no_jp2=True)
JPEG = _saved(noise(8, shape=(64, 64)), "JPEG")
TWO_HEADERS = JPEG.replace(
    b"\xff\xda", struct.pack(">10B", 255, 192, 0, 11, 8, 250, 0, 250, 0, 1) + b"\1\x11\0\xff\xda", 1
)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, "several frames"),
        ({"meta": uid.MediaStorageDirectoryStorage}, "a DICOMDIR"),
        ({"PixelData": None}, "no PixelData"),
        ({"PixelData": b"\0" * 62}, "cut off: 62 bytes of pixels, not 64"),
        ({"Rows": 60000, "Columns": 60000}, "claims more than 1 megapixels"),
        ({"Rows": None}, f"Rows {NO_NUMBER}"),
        ({"Rows": [8, 8]}, f"Rows {NO_NUMBER}"),
        ({"Columns": 0}, "Columns is 0; expected 1"),
        ({"BitsAllocated": 32}, "BitsAllocated is 32"),
        ({"BitsStored": 9}, "BitsStored is 9; expected 1 to 8"),
        ({"HighBit": 3}, "HighBit is 3; expected 7 to 7"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "PhotometricInterpretation is RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation is PALETTE COLOR"),
        ({"PhotometricInterpretation": CANARY}, "is missing or unknown"),
        ({"VOILUTFunction": CANARY, "WindowCenter": 1, "WindowWidth": 9}, "a window that cannot be applied"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "a window that cannot be applied"),
        ({"WindowCenter": 9000, "WindowWidth": 10}, "a blank film"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "a blank film"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "slope or intercept that is not finite"),
        ({"WindowCenter": "1e999", "WindowWidth": 9, "VOILUTFunction": "SIGMOID"}, "a blank film"),
        ({"WindowCenter": 7, "WindowWidth": "nan", "VOILUTFunction": "SIGMOID"}, "a window that is not finite"),
        ({"VOILUTSequence": lut([1, 2, 900], 0, 8)}, "a VOI LUT of 3 entries"),
        ({"VOILUTSequence": lut(range(65536), 0, 16) * 5}, "VOILUTSequence has more than 524288 bytes"),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 255}, "nothing but pixel padding"),
        ({"syntax": uid.HTJ2K, "frame": b"\0" * 64}, "High-Throughput JPEG 2000.*not supported; decompress"),
        ({"syntax": uid.JPEGBaseline8Bit, "frame": JPEG}, "another size or depth"),
        ({"syntax": uid.JPEGBaseline8Bit, "frame": J2K}, "another size or depth"),
        ({"syntax": uid.JPEG2000, "frame": J2K}, "another size or depth"),
        (
            {"syntax": uid.JPEGBaseline8Bit, "frame": b"\xff\xd8" + b"\xff\xe0\0\2" * 2000 + b"\xff\xd9"},
            "another size or depth",
        ),
        (
            {"syntax": uid.JPEGBaseline8Bit, "frame": TWO_HEADERS, "Rows": 64, "Columns": 64},
            "another size or depth",
        ),
        ({"syntax": uid.JPEGBaseline8Bit, "frame": JPEG[:-1]}, "cut off"),
    ],
)
def test_what_is_no_usable_film_is_refused_with_a_reason(tmp_path, elements, reason):
    (tmp_path / "a.dcm").write_bytes(film(SMALL, 8, **elements))
    with pytest.raises(images.UnusableImageError, match=reason) as caught:
        images.read(tmp_path / "a.dcm", 8, 1)
    assert CANARY not in str(caught.value)


def test_a_value_of_an_impossible_length_is_damage():
    whole = film(SMALL, 8)
    rows = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 8)
    assert whole.count(rows) == 1
    with pytest.raises(dicom.UnusableDicomError, match="BytesLengthException"):
        dicom.decode(whole.replace(rows, struct.pack("<HH2sH3s", 0x28, 0x10, b"US", 3, b"\x08\0\0")), 1)


def test_the_missing_decoder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    content = film(SMALL, 8, syntax=uid.JPEGLossless, frame=_jpeg_lossless(SMALL, 8))
    with pytest.raises(dicom.UnusableDicomError, match=r"JPEG Lossless.*install imagecodecs"):
        dicom.decode(content, 1)


def test_files_without_preamble_or_syntax_are_refused(tmp_path):
    whole = film(SMALL, 8)
    (tmp_path / "a.dcm").write_bytes(whole[132:])
    with pytest.raises(images.UnusableImageError, match="nor a DICOM file with its preamble"):
        images.read(tmp_path / "a.dcm", 8, 1)
    with pytest.raises(images.UnusableImageError, match="the file cannot be read"):
        images.read(tmp_path, 8, 1)
    for syntax in (b"1.2.840.10008.1.2.77", CANARY.encode() + b"aaaaa"):
        with pytest.raises(dicom.UnusableDicomError, match="an unknown transfer syntax") as caught:
            dicom.decode(whole.replace(b"1.2.840.10008.1.2.1\0", syntax[:20].ljust(20, b"\0")), 1)
        assert CANARY not in str(caught.value)


def _with_data_set(data_set, syntax=uid.ImplicitVRLittleEndian):
    """A file with a proper meta group and any bytes after it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.CTImageStorage, "1.2.3"
    file = io.BytesIO()
    filewriter.write_file_meta_info(file, meta)
    return bytes(128) + b"DICM" + file.getvalue() + data_set


def test_bombs_cost_little_memory(monkeypatch):
    monkeypatch.setattr(dicom, "MAX_BYTES", 2**20)
    monkeypatch.setattr(dicom, "_MAX_READS", 5000)
    squeezed = zlib.compressobj(9, wbits=-15)
    bomb = squeezed.compress(bytes(2**26)) + squeezed.flush()
    item, endless = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0x8, 0x1140, 2**32 - 1)
    nested = struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1) + endless
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 20_000
    large = struct.pack("<HHI", 0x7FE0, 0x10, 2**31)
    cases = {
        "inflates to more than": _with_data_set(bomb, uid.DeflatedExplicitVRLittleEndian),
        "OSError": _with_data_set(endless + item * 2**19),
        "more than 5000 elements": _with_data_set(b"".join(struct.pack("<HHI", 9, i, 0) for i in range(9000))),
        "RecursionError": _with_data_set(endless + nested * 5000),
        "no PixelData": _with_data_set(struct.pack("<HHI", 0x10, 0x10, 2**31)),
        "missing or unknown": _with_data_set(large + bytes(100)),
        "another size": film(SMALL, 8, syntax=uid.RLELossless, frame=runs),
        "more room": film(SMALL, 8, syntax=uid.RLELossless, frame=runs * 2),
        "cut off": film(SMALL, 8, Rows=1000, Columns=1000),
    }
    for reason, content in cases.items():
        tracemalloc.start()
        with pytest.raises(dicom.UnusableDicomError, match=reason):
            dicom.decode(content, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(content) + 8 * 2**20, (reason, peak)


def _seeds():
    """One small file of every kind."""
    rich = {"WindowCenter": 90, "WindowWidth": 120, "PixelPaddingValue": 3, "PresentationLUTShape": "IDENTITY"}
    rich |= {"VOILUTSequence": lut(np.arange(256), 0, 8, vr="US"), "RescaleSlope": 1, "RescaleIntercept": 0}
    for syntax in (uid.ExplicitVRLittleEndian, *UNCOMPRESSED):
        yield film(SMALL, 8, syntax=syntax, **rich)
    yield film(noise(8, shape=(64, 64)), 8, syntax=uid.JPEGBaseline8Bit, frame=JPEG)
    for syntax, (module, kinds, encode) in LOSSLESS.items():
        if importlib.util.find_spec(module):
            stored = noise(*kinds[-1], shape=(16, 16))
            yield film(stored, kinds[-1][0], syntax=syntax, frame=encode(stored, kinds[-1][0]))


SEEDS = list(_seeds())


def unharmed(content):
    """Decodes, or refuses as the builder expects."""
    try:
        grey = dicom.decode(content, 0.1)
    except dicom.UnusableDicomError as error:
        assert CANARY not in str(error)
    else:
        assert grey.size <= 1e5 and grey.min() >= 0 and grey.max() <= 1


def mutated(whole, rng):
    """A file cut off, or with bytes changed, doubled, removed or inserted."""
    damaged = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
        at, n = int(rng.integers(len(damaged))), int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind < 3:
            damaged[at] = rng.integers(256)
        elif kind == 3:
            damaged[at : at + n] = rng.choice([b"\xff", b"\0", b"\x80", b"\x7f"]) * n
        elif kind == 4:
            damaged[at:at] = damaged[at : at + n]
        else:
            del damaged[at : at + n]
    return bytes(damaged[: int(rng.integers(1, len(damaged) + 1))] if rng.random() < 0.1 else damaged)


def test_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    for whole in SEEDS:
        dicom.decode(whole, 0.1)
        for _ in range(40):
            unharmed(mutated(whole, rng))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(UNCOMPRESSED))
@example(b"", uid.ImplicitVRLittleEndian)
def test_any_bytes_after_the_preamble_are_survived(tail, syntax):
    unharmed(bytes(128) + b"DICM" + tail)
    unharmed(_with_data_set(tail, syntax))


def test_nothing_about_the_patient_is_said(tmp_path):
    stored = noise(12)
    good = film(stored, 12, StudyDescription=CANARY, AccessionNumber=CANARY)
    assert "PatientName" in pydicom.dcmread(io.BytesIO(good)) and "PatientName" not in dicom._parse(good)
    contents = [good, good[:-10], good.replace(b"MONOCHROME2", CANARY.encode()[:11]), film(stored, 12, Rows=23)]
    contents += [good.replace(b"1.2.840.10008.1.2.1\0", CANARY.encode().ljust(20, b"\0"))]
    contents += [film(stored, 12, WindowCenter=1, WindowWidth=2).replace(b"1 ", CANARY[:2].encode())]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.dcm").write_bytes(content)
    script = """
import logging, pathlib, sys
from repgls_jax.data import images
logging.basicConfig(level=logging.DEBUG)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        print(images.read(path, 24, 1).shape)
    except images.UnusableImageError as error:
        print(error)
"""
    command = [sys.executable, "-W", "always", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.splitlines()) == len(contents) and "(24, 24)" in done.stdout
    assert CANARY[:7] not in done.stdout + done.stderr and "pydicom" not in done.stderr


def test_reading_resizes_what_is_shown_and_keeps_16_bits_on_request(tmp_path):
    stored = noise(12, shape=(24, 24))
    (tmp_path / "renamed.png").write_bytes(film(stored, 12, WindowCenter=2000, WindowWidth=3004))
    grey = dicom.decode((tmp_path / "renamed.png").read_bytes(), 1).astype(float)
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        image = images.read(tmp_path / "renamed.png", 24, 1, bits)
        assert image.dtype == dtype and len(np.unique(image)) > (250 if bits == 16 else 100)
        np.testing.assert_allclose(image, np.rint(grey * (2**bits - 1)), rtol=0, atol=int(bits == 16))
    half = images.read(tmp_path / "renamed.png", 12, 1).astype(float) / 255
    assert abs(half.mean() - grey.mean()) < 0.01 and half.std() < grey.std() / 1.5
    Image.fromarray(noise(8)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(images.read(tmp_path / "b.png", 24, 1, 16), noise(8).astype(int) * 257)
