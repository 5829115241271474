"""DICOM files nobody vouches for: refused with a reason, at little cost, and without a word about the patient."""

import importlib.util
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from dicom_files import CANARY, LOSSLESS, UNCOMPRESSED, film, jpeg_lossless, lut, noise, saved
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import filewriter, uid
from pydicom.dataset import FileMetaDataset

from repgls_jax.data import dicom, images

# The module turns them off, and pytest on again.
pytestmark = pytest.mark.filterwarnings(r"ignore:::pydicom\.")
NO_NUMBER = "is missing or no number"

SMALL = noise(8, shape=(8, 8))
J2K = saved(noise(8, shape=(64, 64)), "JPEG2000", no_jp2=True)
JPEG = saved(noise(8, shape=(64, 64)), "JPEG")
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
    content = film(SMALL, 8, syntax=uid.JPEGLossless, frame=jpeg_lossless(SMALL, 8))
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
        "RecursionError|OSError": _with_data_set(endless + nested * 5000),
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
