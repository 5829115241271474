"""Turns the bytes of a DICOM file into a grey film: what a viewer would show of it, and nothing about the patient.

The steps, in the order of the standard (PS3.3 C.7.6.3, C.8.11.3, C.11.1, C.11.2):

  1. stored values: decoded, unused bits masked, the sign extended;
  2. modality LUT, or rescale slope and intercept;
  3. VOI LUT, else the window (LINEAR, LINEAR_EXACT or SIGMOID), each the first that the file gives. A file without
     either gets the range between two percentiles of its pixels (:data:`PERCENTILES`);
  4. inverted once for MONOCHROME1 or PresentationLUTShape INVERSE, which say the same thing of a radiograph;
  5. pixel padding, kept out of the range of step 3, becomes black.

Steps 2 to 5 are worked out for each value that a pixel can have, at most 65,536, and then looked up.

Only the elements named in :data:`_ELEMENTS` are parsed: the patient's never leave the file.
"""

import dataclasses
import io
import itertools
import logging
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
from pydicom import encaps, filereader, pixels, uid
from pydicom.errors import BytesLengthException, InvalidDicomError

MAX_BYTES = 256 * 2**20  # of a deflated file once it is inflated
PERCENTILES = (0.5, 99.5)  # step 3 without a VOI: burnt-in marks and dead pixels must not set the range

# fmt: off
_ELEMENTS = (
  "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
  "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence",
  "RescaleIntercept", "RescaleSlope", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
  "PresentationLUTShape", "PixelData",
)
# fmt: on
_TAGS: list[pydicom.tag.BaseTag | int] = [pydicom.tag.Tag(name) for name in _ELEMENTS]
_PIXEL_DATA = 0x7FE00010
_MAX_READS = 50_000  # an element or item costs a read at least; a film has a few hundred
_MAX_LUT_BYTES = 2**19  # of a LUT sequence; its largest table has 2**17
_MAX_SEGMENTS = 1000  # of a JPEG before its first scan
# Masking is done here: pydicom takes the unused bits to be the upper ones, whatever HighBit is.
_OPTIONS: Any = {"index": 0, "raw": True, "correct_unused_bits": False, "allow_excess_frames": False}

# One decoder for each transfer syntax: which pixels come out must not depend on what else is installed. They were
# chosen as those that survive mutated files; GDCM and pylibjpeg-rle do not.
_BY_PYDICOM = {  # what it calls the decoder
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.RLELossless: "pydicom",
}
_BY_IMAGECODECS = {  # the function
    uid.JPEGExtended12Bit: "jpeg8_decode",
    uid.JPEGLossless: "jpeg8_decode",
    uid.JPEGLosslessSV1: "jpeg8_decode",
    uid.JPEGLSLossless: "jpegls_decode",
    uid.JPEGLSNearLossless: "jpegls_decode",
}
_JPEG_FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}  # markers that start a frame's header

# What pydicom and its decoders raise on damaged files, as found by mutating files; RuntimeError stands for
# NotImplementedError and RecursionError too, LookupError for KeyError and IndexError, ArithmeticError for overflows.
_DAMAGED = (
    *(InvalidDicomError, BytesLengthException, AttributeError, TypeError, ValueError, LookupError, ArithmeticError),
    *(OSError, EOFError, RuntimeError, struct.error, zlib.error),
)

# pydicom's complaints quote what it found, which in a damaged file can be anything that stands in it, the patient's
# name too. They belong neither in a log nor on a screen.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\b")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


class UnusableDicomError(Exception):
    """The file cannot be used; the message says why, and of the header it quotes numbers and known terms alone."""


def decode(content: bytes, max_megapixels: float) -> np.ndarray:
    """The film in a DICOM file.

    Args:
      content: the whole file, with its preamble.
      max_megapixels: larger films are refused from the header, before any pixel is decoded.

    Returns:
      float32 [h, w] in [0, 1], 0 black; one grey film of 1 to 16 bits.

    Raises:
      UnusableDicomError: no film (DICOMDIR, report, several frames, colour), too large, blank, damaged, or compressed
        in a way that no decoder installed here can read.
    """
    try:
        header = _parse(content)
        layout = _layout(header, max_megapixels)
        codes = _codes(header, layout)
        with np.errstate(all="ignore"):  # what is not finite is refused
            greys = _greys(header, layout, _count(codes, 2**layout.stored))
    except _DAMAGED as error:
        # The message of a library may quote the header; its type says what kind of damage it is.
        raise UnusableDicomError(f"not a readable DICOM file ({type(error).__name__})") from None
    return greys[codes]


class _CountedReads(io.BytesIO):
    """A file that refuses to be read in ever more pieces: parsed, a byte of header can take hundreds in memory."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise UnusableDicomError(f"more than {_MAX_READS} elements and fragments; a film has a few hundred")
        return super().read(size)


def _parse(content: bytes) -> pydicom.Dataset:
    file = _CountedReads(content)
    filereader.read_preamble(file, force=False)
    meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise UnusableDicomError("a DICOMDIR: it lists other files and holds no film")
    syntax = meta.get("TransferSyntaxUID")
    if syntax not in uid.AllTransferSyntaxes:
        raise UnusableDicomError(f"{'an unknown' if syntax else 'no'} transfer syntax; expected one of the standard's")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(file.read(), MAX_BYTES + 1)
        if len(inflated) > MAX_BYTES:
            raise UnusableDicomError(f"a deflated file that inflates to more than {MAX_BYTES} bytes")
        if not inflater.eof:
            raise UnusableDicomError("a deflated file that is cut off")
        file = _CountedReads(inflated)
    header = filereader.read_dataset(
        *(file, syntax.is_implicit_VR, syntax.is_little_endian),
        stop_when=lambda tag, vr, length: tag > _PIXEL_DATA,
        specific_tags=_TAGS,
    )
    header.file_meta = pydicom.dataset.FileMetaDataset(meta)
    return header


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the pixels are stored: ``stored`` of ``allocated`` bits each, ``high`` the position of the highest."""

    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def bytes(self) -> int:
        """What the pixels take where they are not compressed."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def values(self) -> np.ndarray:
        """int64 [2**stored], the stored value of each pattern of bits."""
        patterns = np.arange(2**self.stored)
        return patterns - (2**self.stored) * (self.signed & (patterns >> (self.stored - 1)))


def _integer(header: pydicom.Dataset, name: str, allowed: range) -> int:
    value = header.get(name)
    if not isinstance(value, int) or value not in allowed:
        found = f"is {int(value)}" if isinstance(value, int) else "is missing or no number"
        raise UnusableDicomError(f"{name} {found}; expected {allowed.start} to {allowed[-1]}")
    return int(value)


def _layout(header: pydicom.Dataset, max_megapixels: float) -> _Layout:
    """What the header claims, refused unless it is a grey film of a size that may be allocated."""
    if "PixelData" not in header:
        raise UnusableDicomError("no PixelData: a report, a plan or another object without a film, or a file cut off")
    if header.get("NumberOfFrames") not in (None, 0, 1):
        raise UnusableDicomError("several frames; a film has one")
    photometric = header.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or header.get("SamplesPerPixel") != 1:
        known = photometric in list(pixels.common.PhotometricInterpretation)
        raise UnusableDicomError(
            f"PhotometricInterpretation is {photometric if known else 'missing or unknown'}; expected MONOCHROME1 or "
            "MONOCHROME2 with one sample a pixel: a colour image is no radiograph but a screenshot or a photograph"
        )
    rows, columns = (_integer(header, name, range(1, 2**16)) for name in ("Rows", "Columns"))
    if rows * columns > max_megapixels * 1e6:
        raise UnusableDicomError(f"the header claims more than {max_megapixels:g} megapixels")
    allocated = _integer(header, "BitsAllocated", range(8, 17, 8))
    stored = _integer(header, "BitsStored", range(1, allocated + 1))
    high = _integer(header, "HighBit", range(stored - 1, allocated))
    return _Layout(rows, columns, allocated, stored, high, bool(_integer(header, "PixelRepresentation", range(2))))


def _codes(header: pydicom.Dataset, layout: _Layout) -> np.ndarray:
    """uint8 or uint16 [h, w], the pattern of stored bits of each pixel: two's complement where they are signed."""
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        if len(header.PixelData or b"") < layout.bytes:
            raise UnusableDicomError(f"cut off: {len(header.PixelData or b'')} bytes of pixels, not {layout.bytes}")
        words, _ = pixels.get_decoder(syntax).as_array(header, **_OPTIONS)
        words = words.astype(f"u{layout.allocated // 8}", copy=False)
        return (words >> (layout.high + 1 - layout.stored)) & (2**layout.stored - 1)
    if syntax not in _BY_PYDICOM | _BY_IMAGECODECS:
        raise UnusableDicomError(f"compressed as {syntax.name}, which is not supported; decompress it first")
    frame = encaps.get_frame(header.PixelData, 0, number_of_frames=1)
    bits = _depth(frame, syntax, layout)
    if syntax in _BY_PYDICOM:
        decoded, _ = pixels.get_decoder(syntax).as_array(header, decoding_plugin=_BY_PYDICOM[syntax], **_OPTIONS)
    else:
        decoded = _by_imagecodecs(frame, syntax)
        if layout.signed:  # JPEG knows no sign: what it holds is the pattern of ``bits`` bits
            unused = 8 * decoded.itemsize - bits
            decoded = (decoded << unused).view(f"i{decoded.itemsize}") >> unused
    lowest = layout.signed * -(2 ** (layout.stored - 1))
    if decoded.shape != (layout.rows, layout.columns):
        raise UnusableDicomError("compressed pixels of another size than the header claims")
    if decoded.min() < lowest or decoded.max() >= lowest + 2**layout.stored:
        raise UnusableDicomError(f"compressed pixels that do not fit the {layout.stored} bits that BitsStored claims")
    return decoded.astype(f"u{layout.allocated // 8}", copy=False) & (2**layout.stored - 1)


def _by_imagecodecs(frame: bytes, syntax: uid.UID) -> np.ndarray:
    try:
        import imagecodecs  # an extra
    except ImportError:
        package = 'imagecodecs to read it: pip install "repgls-jax[dicom]"'
        raise UnusableDicomError(f"compressed as {syntax.name}; install {package}") from None
    return getattr(imagecodecs, _BY_IMAGECODECS[syntax])(frame)


def _depth(frame: bytes, syntax: uid.UID, layout: _Layout) -> int:
    """The bits of a compressed frame's pixels.

    Raises:
      UnusableDicomError: it would decode to more than the header claims: decoders believe what a frame says of itself.
    """
    if len(frame) > 2 * layout.bytes + 2**16:
        raise UnusableDicomError("compressed pixels that take more room than the pixels would")
    if syntax == uid.RLELossless:
        found = [(layout.allocated, layout.rows, layout.columns, 1)] if _rle_fits(frame, layout) else []
    else:
        found = _jpeg2000_frames(frame) if frame[:4] == b"\xff\x4f\xff\x51" else _jpeg_frames(frame)
    if len(found) != 1 or found[0][0] > layout.allocated or found[0][1:] != (layout.rows, layout.columns, 1):
        raise UnusableDicomError("compressed pixels of another size or depth than the header claims")
    return found[0][0]


def _rle_fits(frame: bytes, layout: _Layout) -> bool:
    """Whether each segment, one for each byte of a pixel, expands to a byte for each pixel, or to a run more."""
    count, *starts = struct.unpack_from("<16I", frame)
    if count != layout.allocated // 8:
        return False
    for at, end in itertools.pairwise([*starts[:count], len(frame)]):
        room = layout.rows * layout.columns + 128
        while at < end and room >= 0:
            run = frame[at]  # up to 127: a byte less than that many follow; 128: nothing; beyond: one, to be repeated
            room -= run + 1 if run < 128 else (257 - run) % 129
            at += run + 2 if run < 128 else 1 + (run > 128)
        if room < 0:
            return False
    return True


def _jpeg2000_frames(frame: bytes) -> list[tuple[int, int, int, int]]:
    """(bits, rows, columns, components) of a JPEG 2000 codestream, from its SIZ marker."""
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    components, bits, x_step, y_step = struct.unpack_from(">H3B", frame, 40)
    return [((bits & 0x7F) + 1, (bottom - top) // y_step, (right - left) // x_step, components)]


def _jpeg_frames(frame: bytes) -> list[tuple[int, int, int, int]]:
    """(bits, rows, columns, components) of each frame header of a JPEG or JPEG-LS stream before its first scan."""
    if b"\xff\xd9" not in frame[-10:]:  # the end of the image, and some padding
        raise UnusableDicomError("compressed pixels that are cut off")  # what is missing would come out grey
    found: list[tuple[int, int, int, int]] = []
    at = 2  # after the start of the image
    for _ in range(_MAX_SEGMENTS):
        while frame[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        prefix, marker, length = struct.unpack_from(">BBH", frame, at)
        if prefix != 0xFF or marker == 0xDA:
            break
        if marker in _JPEG_FRAMES:
            found.append(struct.unpack_from(">BHHB", frame, at + 4))
        at += 2 + length
    return found


def _count(codes: np.ndarray, n: int) -> np.ndarray:
    """int64 [n], how many pixels have each pattern; row by row, as counting widens what it counts to 64 bits."""
    counts = np.zeros(n, np.int64)
    for row in codes:
        counts += np.bincount(row, minlength=n)
    return counts


def _greys(header: pydicom.Dataset, layout: _Layout, counts: np.ndarray) -> np.ndarray:
    """float32 [2**stored], the grey in [0, 1] of each pattern of bits; ``counts`` says how many pixels have it."""
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        if name in header and len(header.get_item(name).value or ()) > _MAX_LUT_BYTES:
            raise UnusableDicomError(f"{name} has more than {_MAX_LUT_BYTES} bytes")
    padding = _padding(header, layout)
    seen = (counts > 0) & ~padding
    if not seen.any():
        raise UnusableDicomError("a film of nothing but pixel padding")
    values = np.asarray(pixels.apply_modality_lut(layout.values, header), np.float64)
    if not np.isfinite(values).all():
        raise UnusableDicomError("a rescale slope or intercept that is not finite")
    if (lut := header.get("VOILUTSequence")) and lut[0].get("LUTDescriptor") and lut[0].get("LUTData"):
        greys = _look_up(values, lut[0], header.file_meta.TransferSyntaxUID.is_little_endian)
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        greys = _window(values, header)
    else:
        greys = _stretch(values, np.where(padding, 0, counts))
    if not np.isfinite(greys).all():
        raise UnusableDicomError("a window that is not finite")
    if np.ptp(greys[seen]) == 0:
        raise UnusableDicomError("a blank film: all its pixels have the same grey once its LUT or window is applied")
    if header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE":
        greys = 1 - greys
    return np.where(padding, 0, greys).astype(np.float32)


def _padding(header: pydicom.Dataset, layout: _Layout) -> np.ndarray:
    """bool [2**stored], the patterns that mean "no pixel here"."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return np.zeros(2**layout.stored, bool)
    last = header.get("PixelPaddingRangeLimit")
    # Some files give them unsigned where the pixels are signed, or the reverse.
    dtype = np.dtype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    bounds = np.array([first, first if last is None else last], np.int64).astype(dtype).astype(np.int64)
    return (layout.values >= bounds.min()) & (layout.values <= bounds.max())


def _look_up(values: np.ndarray, lut: pydicom.Dataset, little_endian: bool) -> np.ndarray:
    """A VOI LUT's greys in [0, 1]. Our own: pydicom's wraps tables of 8 bits with more than 256 entries."""
    entries, first, bits = (int(value) for value in lut.LUTDescriptor)
    entries = entries % 2**16 or 2**16
    data: Any = lut.LUTData
    table = np.frombuffer(data, "<u2" if little_endian else ">u2") if isinstance(data, bytes) else np.array(data, "u2")
    if not 8 <= bits <= 16 or len(table) < entries or table[:entries].max() >= 2**bits:
        raise UnusableDicomError(f"a VOI LUT of {len(table)} entries that does not fit its descriptor")
    return table[np.clip(np.rint(values) - first, 0, entries - 1).astype(np.intp)] / (2**bits - 1)


def _window(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """The window's greys in [0, 1]. pydicom scales them to a range that follows from the header: here, 16 bits."""
    window = pydicom.Dataset()
    window.add(header["WindowCenter"])
    window.add(header["WindowWidth"])
    window.VOILUTFunction = header.get("VOILUTFunction") or "LINEAR"
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 16
    try:
        return pixels.apply_windowing(values, window) / (2**16 - 1)
    except ValueError:
        expected = "a width of 1 at least for LINEAR, above 0 for LINEAR_EXACT and SIGMOID"
        raise UnusableDicomError(f"a window that cannot be applied; expected {expected}") from None


def _stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Greys in [0, 1] that spread the pixels between two percentiles over the whole range."""
    low, high = np.percentile(values, PERCENTILES, weights=counts, method="inverted_cdf")
    if low == high:  # nearly all pixels have one value: what differs is all there is to see
        seen = values[counts > 0]
        low, high = seen.min(), seen.max()
    return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
