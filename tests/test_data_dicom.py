"""DICOM films: each step from bits to grey against a plain computation per pixel, every compression against none."""

import io
import itertools
import pathlib
import struct

import numpy as np
import pydicom
import pytest
from dicom_files import LOSSLESS, UNCOMPRESSED, encoded, film, lut, noise, saved
from PIL import Image
from pydicom import pixels, uid

from repgls_jax.data import dicom, images

# The module turns them off, and pytest on again.
pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")


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


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda s: s.name)
def test_lossless_compression_loses_nothing(syntax):
    for bits, signed in LOSSLESS[syntax][1]:
        stored = noise(bits, signed, shape=(20, 28))
        elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 60, "WindowWidth": 177}
        expected = dicom.decode(film(stored, bits, **elements), 1)
        np.testing.assert_array_equal(dicom.decode(encoded(syntax, stored, bits, **elements), 1), expected)


def test_jpeg_gives_what_its_decoder_gives():
    stored = noise(8, shape=(32, 40))
    jpeg = saved(stored, "JPEG", quality=60)
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
