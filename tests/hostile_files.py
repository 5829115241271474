"""Files that mean harm, or were harmed: made by hand for a known weakness, or from a good one by a seeded mutation.

Each function takes a random generator, and returns the content and whether a reader must refuse it. Where it need not,
as a flipped bit may hit what nobody reads, either answer will do.
"""

import functools
import gzip
import io
import itertools
import struct
import tarfile
import zlib

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid

SIDE = 16
CANARY = "Quibblewort effusion"  # stands wherever report text or a patient's name may


def pixels(n):
    """A film that no other looks like."""
    return np.random.default_rng([7, n]).integers(0, 256, (SIDE, SIDE), np.uint8)


def png(n, shape=None):
    file = io.BytesIO()
    Image.fromarray(pixels(n) if shape is None else np.zeros(shape, np.uint8)).save(file, "PNG")
    return file.getvalue()


def jpeg(n, **options):
    file = io.BytesIO()
    Image.fromarray(pixels(n)).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def dicom(n, edit=lambda ds: None, syntax=uid.ExplicitVRLittleEndian):
    """Eight bits, shown as they are."""
    ds = pydicom.Dataset()
    ds.PatientName, ds.Modality = CANARY, "DX"
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.Rows, ds.Columns = SIDE, SIDE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.WindowCenter, ds.WindowWidth = 128, 256
    ds.PixelData = pixels(n).tobytes()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    edit(ds)
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def flipped(rng, content, start=0, most=6):
    """Some bits of the content the other way round."""
    out = bytearray(content)
    for at in rng.integers(start, len(out), rng.integers(1, most + 1)):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def mangled(rng, content, start=0):
    """A piece of the content left out, doubled, blanked, or replaced by noise."""
    a, b = sorted(int(at) for at in rng.integers(start, len(content), 2))
    pieces = (b"", content[a:b] * 2, bytes(b - a), rng.bytes(b - a), b"\xff" * (b - a))
    return content[:a] + pieces[rng.integers(len(pieces))] + content[b:]


def cut(rng, content, most=0.85):
    return content[: int(len(content) * rng.uniform(0, most))]


def chunk(kind, body=b"", length=None, crc=None):
    found = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", found)


def _raw_png(header, *chunks):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header)) + b"".join(chunks)


@functools.cache
def _bomb(n):
    """n zeros, packed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(n // 2**20)) + packer.flush()


_END = chunk(b"IEND")
_TINY = zlib.compress(bytes(SIDE * (SIDE + 1)))
_GREY = (SIDE, SIDE, 8, 0, 0, 0, 0)
FOREIGN = (
    b"",
    b"\0" * 200,
    b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    b"BM" + bytes(100),
    b"II*\0\x08\0\0\0" + bytes(50),
    b"%PDF-1.4\n",
    b"\x7fELF" + bytes(60),
    b"PK\x03\x04" + bytes(60),
    b"<svg xmlns='http://www.w3.org/2000/svg' width='100000' height='100000'/>",
    b"8BPS\0\x01" + bytes(40),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100000 100000\n",
    gzip.compress(bytes(100)),
    b"\xff\xd8",
    b"\x89PNG\r\n\x1a\n",
    bytes(128) + b"DICM",
    f"FINDINGS: {CANARY}.".encode(),
)


@functools.cache
def _bad_pngs():
    zeros = _bomb(64 * 2**20)
    return (
        _raw_png((100_000, 100_000, 8, 0, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png((2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 1), chunk(b"IDAT", _TINY), _END),
        _raw_png((9000, 9000, 8, 0, 0, 0, 0), chunk(b"IDAT", zeros), _END),
        _raw_png((7900, 7900, 8, 2, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png((0, SIDE, 8, 0, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png((0, 0, 8, 0, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png((SIDE, SIDE, 7, 0, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png((SIDE, SIDE, 8, 5, 0, 0, 0), chunk(b"IDAT", _TINY), _END),
        _raw_png(_GREY, chunk(b"IDAT", b"\0" * 50), _END),
        _raw_png(_GREY, chunk(b"IDAT", _TINY, length=2**31 - 1)),
        _raw_png(_GREY, chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"IDAT", _TINY[:20]), _END),
        _raw_png(_GREY, chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"IDAT", _TINY[:20]), _END),
        _raw_png(_GREY, *[chunk(b"tEXt", b"a\0" + bytes(900_000))] * 80, chunk(b"IDAT", _TINY), _END),
        _raw_png(_GREY, chunk(b"IHDR", bytes(13)), chunk(b"IDAT", _TINY), _END),
        _raw_png(_GREY, chunk(b"IDAT", _TINY, crc=1), _END),
        _raw_png(_GREY, _END),
        b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(300),
        *FOREIGN,
    )


def bad_png(rng):
    """A damaged PNG, or one that lies."""
    way = rng.integers(10)
    good = png(int(rng.integers(2**31)))
    if way < 3:
        made = _bad_pngs()
        k = rng.integers(len(made))
        return made[k], k not in (9, 11, 14)  # of pixels that are all there, neither length nor sum need be right
    if way < 5:
        return cut(rng, good), True
    return (flipped if way < 8 else mangled)(rng, good), False


def _segment(marker, body):
    return struct.pack(">BBH", 255, marker, min(len(body) + 2, 65535)) + body


def _resized(content, rows, columns):
    at = next(i for i in range(len(content)) if content[i] == 255 and content[i + 1] in (0xC0, 0xC1, 0xC2))
    return content[: at + 5] + struct.pack(">HH", rows, columns) + content[at + 9 :]


def bad_jpeg(rng):
    """A damaged JPEG, or one that lies."""
    way = rng.integers(10)
    good = jpeg(int(rng.integers(2**31)), progressive=bool(rng.integers(2)), optimize=bool(rng.integers(2)))
    if way < 3:
        tiff = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if rng.integers(2) else b"MM\0*\0\0\0\x08")
        made = (
            (_resized(good, 65500, 65500), True),
            (_resized(good, 8100, 8100), True),
            (_resized(good, 0, SIDE), True),
            (_resized(good, SIDE, 0), True),
            (_resized(good, 65500, 900), False),  # libjpeg fills up what is missing
            (good[:2] + _segment(0xE1, tiff + rng.bytes(200)) + good[2:], False),
            (good[:2] + _segment(0xE2, b"MPF\0" + tiff[6:] + rng.bytes(80)) + good[2:], False),
            (good[:2] + _segment(0xE2, b"ICC_PROFILE\0\x01\xff" + rng.bytes(80)) + good[2:], False),
            (good[:2] + _segment(0xED, b"Photoshop 3.0\x008BIM" + rng.bytes(80)) + good[2:], False),
            (good[:2] + _segment(0xEE, b"Adobe" + rng.bytes(7)) + good[2:], False),
            (good[:2] + _segment(0xE0, b"JFIF\0" + rng.bytes(2)) + good[2:], False),
            (good[:2] + _segment(0xFE, b"x" * 65000) * 60 + good[2:], False),
            (good[:2] + b"\xff\xd9", True),
            (b"\xff\xd8\xff" + rng.bytes(300), True),
            *((foreign, True) for foreign in FOREIGN),
        )
        return made[rng.integers(len(made))]
    if way < 5:
        return cut(rng, good, 0.6), True
    return (flipped if way < 8 else mangled)(rng, good, 2), False


def _pixel_frame(frame, syntax):
    def edit(ds):
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = pydicom.encaps.encapsulate([frame])
        ds["PixelData"].VR = "OB"

    return lambda n: dicom(n, edit, syntax)


def _with(**values):
    def edit(ds):
        for name, value in values.items():
            setattr(ds, name, value)

    return lambda n: dicom(n, edit)


def _nested(depth):
    body = b""
    for _ in range(depth):  # sequences of unknown length within sequences
        body = struct.pack("<HH2sHI", 0x0028, 0x3010, b"SQ", 0, 2**32 - 1) + b"\xfe\xff\x00\xe0" + b"\xff" * 4 + body
    return lambda n: _meta(n) + body


def _meta(n):
    """The preamble and the group of the file's own elements."""
    whole = dicom(n)
    length = struct.unpack_from("<I", whole, 140)[0]
    return whole[: 144 + length]


def _deflated(n):
    head = _meta(n).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    grown = struct.unpack_from("<I", head, 140)[0] + len(head) - len(_meta(n))
    at = head.index(b"1.2.840.10008.1.2.1.99")
    head = head[:140] + struct.pack("<I", grown) + head[144 : at - 2] + struct.pack("<H", 22) + head[at:]
    return head + _bomb(300 * 2**20)[2:-4]


_DICOMS = (
    _with(Rows=65535, Columns=65535),
    _with(Rows=65535, Columns=900),
    _with(Rows=0),
    _with(BitsAllocated=32, BitsStored=32, HighBit=31),
    _with(BitsStored=9),
    _with(HighBit=3),
    _with(NumberOfFrames=50_000),
    _with(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
    _with(PhotometricInterpretation=CANARY.upper()[:16]),
    _with(PixelRepresentation=7),
    _with(PixelData=b""),
    _with(PixelPaddingValue=0, PixelPaddingRangeLimit=255),
    _with(WindowWidth=0),
    _with(WindowCenter=1e30),
    _with(RescaleSlope=0, RescaleIntercept=0),
    _pixel_frame(_resized(jpeg(1), 65500, 65500), uid.JPEGBaseline8Bit),
    _pixel_frame(jpeg(1)[:200], uid.JPEGBaseline8Bit),
    _pixel_frame(b"\xff\x4f\xff\x51" + struct.pack(">HH4I", 41, 0, 2**31, 2**31, 0, 0) + bytes(60), uid.JPEG2000),
    _pixel_frame(struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 100_000, uid.RLELossless),
    _pixel_frame(struct.pack("<16I", 15, *[2**32 - 1] * 15), uid.RLELossless),
    _pixel_frame(bytes(100), uid.MPEG2MPML),
    _nested(5_000),
    _deflated,
)


def bad_dicom(rng):
    """A damaged DICOM file, or one that lies."""
    way, n = rng.integers(10), int(rng.integers(2**31))
    if way < 4:
        k = rng.integers(len(_DICOMS) + len(FOREIGN))
        return (_DICOMS[k](n) if k < len(_DICOMS) else FOREIGN[k - len(_DICOMS)]), True
    good = dicom(n)
    if way < 6:
        return cut(rng, good, (len(good) - 1) / len(good)), True
    return (flipped if way < 8 else mangled)(rng, good, 128), False


def bad_table(rng, content):
    """A damaged CSV table, and the rows (from 1) that were touched; None if it can be no table."""
    lines = content.split(b"\n")
    way, k = rng.integers(14), int(rng.integers(1, max(2, len(lines) - 1)))
    line, commas = lines[k], lines[k].count(b",")
    if way < 4:
        out = flipped(rng, content)
        starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
        touched = {
            row
            for row in range(len(lines))
            if content[starts[row] : starts[row + 1]] != out[starts[row] : starts[row + 1]]
        }
        return out, touched
    if way < 6:
        end = int(rng.integers(len(content)))
        return content[:end], set(range(content[:end].count(b"\n"), len(lines)))
    hostile = [
        b"../" * 8 + b"etc/passwd",
        b"/etc/passwd",
        b"\0",
        b"a\0.png",
        b"\x1b[2J\x07",
        b"\xff\xfe",
        b"x" * 100_000,
    ]
    hostile += [b'"', b"'", b"=cmd|' /C calc'!A0", b"\xe2\x80\xae", b"-1e999", b"nan", b"", b'"' + b"x,\n" * 50 + b'"']
    cells = line.split(b",")
    if way < 10:
        cells[rng.integers(len(cells))] = hostile[rng.integers(len(hostile))]
        lines[k] = b",".join(cells)
        return b"\n".join(lines), {k}
    if way == 10:  # another row is there twice, or says otherwise of the same film
        return b"\n".join([*lines[: k + 1], flipped(rng, line, most=2) if line else line, *lines[k + 1 :]]), {k}
    if way == 11:
        made = (gzip.compress(content), b"", b"\n\n", rng.bytes(500), FOREIGN[4], b"," * 100_000, b"x" * 300_000)
        return made[rng.integers(len(made))], None
    if way == 12:
        rows = [b",".join(row.split(b",")[::-1]) for row in lines]  # a header that quotes, columns the other way
        return b"\n".join(rows), set()
    return b"\n".join([*lines[: k + 1], b"," * (commas + 3), *lines[k + 1 :]]), {k}


def bad_xml(rng, good):
    """A damaged report of Open-i, or one that means harm; in the end a bytes object of any kind."""
    entity = b'<!DOCTYPE a [<!ENTITY b "c">' + b"".join(
        b'<!ENTITY b%d "%s">' % (i, b"&b%d;" % (i - 1) * 10 if i else b"lol") for i in range(9)
    )
    made = (
        entity + b"]><eCitation>&b8;</eCitation>",
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><eCitation><uId id="CXR1"/>&x;</eCitation>',
        b"<a>" * 100_000 + b"</a>" * 100_000,
        good.replace(b'uId id="CXR', b'uId id="../CXR'),
        good.replace(b'uId id="CXR', b'uId id="CXR' + b"9" * 6000),
        good.replace(b"<eCitation>", b'<?xml version="1.0" encoding="utf-7"?><eCitation>'),
        good.replace(b"<eCitation>", b"<eCitation>" + b"<parentImage/>" * 10_000) + b"<",
        b" " * 5_000_000,
        *FOREIGN,
    )
    way = rng.integers(10)
    if way < 3:
        return made[rng.integers(len(made))], True
    if way < 5:
        return cut(rng, good, 0.95), True
    return (flipped if way < 8 else mangled)(rng, good), False


@functools.cache
def pax(size):
    """A .tgz whose first member has a header of ``size`` bytes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    made = io.BytesIO()
    with gzip.open(made, "wb", 1) as packer:
        packer.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(size // 2**20):  # in pieces, as the run's own memory is measured
            packer.write(bytes(2**20))
    return made.getvalue()
