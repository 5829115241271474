"""Hostile files between good ones; a run with ten thousand: python tests/hostile.py."""

import io
import re
import struct
import tarfile
import tracemalloc
import zipfile

import hostile
import hostile_files as files
import hostile_layouts as layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repgls_jax import data
from repgls_jax.data import cells, download, images, ledger, official, rows
from repgls_jax.data.mimic_reports import Reports
from repgls_jax.data.nih import NihSource
from repgls_jax.data.openi import OpeniSource
from repgls_jax.data.source import Quarantined
from repgls_jax.data.table import TableSource

SECRET = "x" * 60 + files.CANARY
POOLS: list[pa.MemoryPool] = []  # kept for good: Arrow's threads may still free what they took from one

# A child that shares nothing but memory shows what the inputs take; it runs no JAX.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.mark.slow
def test_hundreds_of_hostile_files_lose_no_good_one(capfd):
    assert hostile.main(240, 0) == []
    told = capfd.readouterr()
    assert files.CANARY not in told.out + told.err and "Warning" not in told.err
    counts = {line.split()[0]: [float(n) for n in line.split()[1:]] for line in told.out.splitlines()[1:] if line}
    assert set(counts) == {*hostile.SHARES, "all"}
    assert all(row[0] > 0 and (row[4] > 0 or kind == "archive") for kind, row in counts.items())
    assert all(sum(row[1:4]) == row[0] for row in counts.values())
    assert counts["all"][1] > 120 and counts["all"][2] > 20


def test_a_run_that_loses_a_film_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile, "stored", lambda output: {})
    tally = hostile.Tally()
    (tmp_path / "in").mkdir()
    hostile.film_batch("png", np.random.default_rng(0), tmp_path, tally, "table", 8)
    assert tally.counts["wrong"] > 3 and "is lost" in tally.faults[0]


def films(n):
    return [layouts.Film(i, files.png(i)) for i in range(n)]


def test_a_film_of_any_type_may_have_boxes(tmp_path):
    layouts.as_nih(tmp_path, films(15))
    (tmp_path / "images" / "00000001_000.png").write_bytes(files.dicom(0))
    source = NihSource(source=tmp_path, image_size=16)
    found = [source.record(split, i) for split, n in source.splits().items() for i in range(n)]
    boxed = next(record for record in found if record["image_id"] == "00000001_000")
    assert (boxed["image"] == files.pixels(0)).all()
    assert boxed["boxes"] == [("Mass", *(value * 16 / 1024 for value in (100, 100, 300, 300)))]


def test_what_a_chunk_claims_is_not_allocated(tmp_path):
    (tmp_path / "a.png").write_bytes(files.png(0).replace(struct.pack(">I", 0) + b"IEND", b"\x7f\xff\xff\xffabcd"))
    tracemalloc.start()
    try:
        images.read(tmp_path / "a.png", 16, 64)
    except images.UnusableImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("body", ['a,1\nb,"2\nc,3\n', 'a,1\nb,2\nc,"', '"a,1\nb,2\n'])
def test_a_quote_that_is_never_closed_swallows_no_row_in_silence(tmp_path, body):
    (tmp_path / "t.csv").write_text("image,patient\n" + body)
    for read in (rows.read, lambda path: official.read(path, ("image", "patient"))):
        with pytest.raises(ValueError, match=r"ends within quotes|cannot be read"):
            read(tmp_path / "t.csv")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("ab\"',\n\r é", max_size=5), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_table_reads_as_the_standard_library_reads_it(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("x,y\n")
        for row in table:
            file.write(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n")
    assert [list(row.values()) for row in rows.read(path).to_pylist()] == table


def test_a_header_that_is_no_text_is_told_as_such(tmp_path):
    for start in (b"image,\xff\n", b"x" * 2**20, b"," * 5000, b""):
        (tmp_path / "t.csv").write_bytes(start + b"a,1\n")
        with pytest.raises(ValueError, match=r"table .*t\.csv") as caught:
            TableSource(source=tmp_path)
        assert not isinstance(caught.value, UnicodeError) and len(str(caught.value)) < 3000


def test_rows_and_bytes_are_limited(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("image\n" + "a\n" * 20)
    monkeypatch.setattr(cells, "MAX_ROWS", 20)
    assert rows.read(path).num_rows == 20
    pq.write_table(pa.table({"image": ["a"] * 21}), tmp_path / "t.parquet")
    path.write_text("image\n" + "a\n" * 21)
    for wrong in (path, tmp_path / "t.parquet"):
        with pytest.raises(ValueError, match=r"20 rows|limits are 20"):
            rows.read(wrong)
    monkeypatch.setattr(official, "MAX_TABLE_BYTES", 47)
    with pytest.raises(ValueError, match="more than 47 bytes"):
        official.read(path, ("image",))


def test_a_text_that_parquet_holds_once_is_counted_as_often_as_it_stands(tmp_path, monkeypatch):
    column = pa.array(["x" * 100_000] * 1000)  # the writer makes a dictionary of it
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    monkeypatch.setattr(rows, "MAX_TABLE_BYTES", 50_000_000)
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool := pa.proxy_memory_pool(before))
    POOLS.append(pool)
    try:
        with pytest.raises(ValueError, match="100000000 bytes unpacked"):
            rows.read(tmp_path / "t.parquet")
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 50_000_000


def test_parquet_with_bytes_that_are_no_text_is_refused(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<2i", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"image": broken}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        rows.read(tmp_path / "t.parquet")


def test_messages_do_not_repeat_long_cells_or_names(tmp_path):
    wrong = (
        "image,patient,study\n" + "".join(f"f{i}.png,{i},{SECRET}\n" for i in range(2)),  # a column mapped by mistake
        f"{SECRET},1\na,2\n",  # a table without a header
        f"image,patient,Edema\n{SECRET},1,1\n{SECRET},2,0\n",
        f"image,patient,split\na,{SECRET},train\nb,{SECRET},test\n",
    )
    for text in wrong:
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match="xxx") as caught:
            TableSource(source=tmp_path)
        assert files.CANARY not in str(caught.value)


def test_one_bad_name_costs_one_row_and_two_spellings_are_one_image(tmp_path):
    names = ("a.png", "./a.png", "b//c.png", ".", "..", "/", "\x01")
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "b" / "c.png"):
        path.write_bytes(files.png(0))
    (tmp_path / "t.csv").write_text("image,patient,split\n" + "".join(f"{name},p,train\n" for name in names))
    source = TableSource(source=tmp_path, image_size=16)
    found = [source.record(split, i) for split, n in source.splits().items() for i in range(n)]
    assert [r["image_id"] for r in found if not isinstance(r, Quarantined)] == ["a.png", "b/c.png"]
    assert len(found) == 6 and source.parameters()["duplicate_rows"] == 1


def test_another_image_below_images_is_another_data_set(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "t.csv").write_text("image,patient,split\na.png,1,test\n")
    seen = set()
    for n in (0, 1):
        (tmp_path / "images" / "a.png").write_bytes(files.png(n) + bytes(n))
        seen.add(TableSource(source=tmp_path).parameters()["images_sha256"])
    assert len(seen) == 2


def test_a_report_of_openi_has_its_own_films_once(tmp_path):
    layouts.as_openi(tmp_path, films(15))
    mine, other = "CXR1_IM-0001-1001", "CXR2_IM-0002-1001"
    path = tmp_path / "ecgen-radiology" / "1.xml"
    path.write_bytes(layouts.xml(1, [mine, other, "1_IM-0001-1001.dcm.png", "CXR" + "9" * 5000 + "_IM-1", mine]))
    source = OpeniSource(source=tmp_path, image_size=16)
    found = [source.record(split, i) for split, n in source.splits().items() for i in range(n)]
    assert [r["image_id"] for r in found if r["study_id"] == "CXR1"] == [mine]
    assert len({r["image_id"] for r in found}) == len(found) == 11


def test_places_of_an_archive_that_lie_beyond_all_files_are_refused(tmp_path):
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("s50000001.txt", "None.")
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 2)
    content[at + 30 : at + 32] = struct.pack("<H", len(extra))
    content[at + 42 : at + 46] = b"\xff" * 4
    name_end = at + 46 + len("s50000001.txt")
    content[name_end:name_end] = extra
    end = content.index(b"PK\5\6")
    content[end + 12 : end + 16] = struct.pack("<I", end - at)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be unpacked|no readable \.zip"):
        Reports.of(tmp_path, "r.zip").read("10000001", "50000001")


def test_a_header_of_a_tar_file_does_not_fill_the_memory(tmp_path):
    (tmp_path / "a.tgz").write_bytes(files.pax(48 * 2**20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="is damaged"):
        download.unpack(tmp_path / "a.tgz", tmp_path / "out", re.compile(".*"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_long_names_in_a_tar_file_are_no_bomb(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for i in range(30):
            info = tarfile.TarInfo(f"{'d' * 200}/{'e' * 200}/{i}.png")
            info.size = 300_000
            archive.addfile(info, io.BytesIO(bytes([i]) * 300_000))
    assert download.unpack(tmp_path / "a.tgz", tmp_path / "out", re.compile(r"\d+\.png")) == 30
    assert (tmp_path / "out" / "7.png").read_bytes() == bytes([7]) * 300_000


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(8, 64))
def test_a_crop_is_the_square_in_the_middle(tmp_path_factory, width, height, size):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width), np.uint8)
    path = tmp_path_factory.mktemp("film") / "f.png"
    Image.fromarray(pixels).save(path)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    middle = pixels[top : top + side, left : left + side]
    expected = np.asarray(Image.fromarray(middle).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images.read(path, size, 1, fit="crop"), expected)
    scale, dx, dy = images.placement(width, height, size, "crop")
    np.testing.assert_allclose([left * scale + dx, top * scale + dy], 0, atol=1e-9)
    np.testing.assert_allclose([(left + side) * scale + dx, (top + side) * scale + dy], size)


def test_boxes_follow_a_crop_and_end_at_its_edge():
    def placed(*corners):
        ids = dict.fromkeys(("image_id", "patient_id", "study_id"), "a") | {"has_report": False}
        placement = images.placement(400, 200, 100, "crop")
        image = np.zeros((100, 100), np.uint8)
        row = ledger.row(ids | {"image": image, "boxes": [("Mass", *corners)], "placement": placement})
        return [[box[name] for name in ("x0", "y0", "x1", "y1")] for box in row["boxes"]]

    assert placed(150, 50, 250, 100) == [[25, 25, 75, 50]]
    assert placed(50, 0, 150, 300) == [[0, 0, 25, 100]]
    assert placed(0, 0, 100, 200) == placed(300, 0, 390, 50) == []


@pytest.mark.parametrize("name", list(layouts.LAYOUTS))
def test_every_builder_crops(tmp_path, name):
    made = films(15)
    for film in made:
        wide = np.hstack([np.full((16, 8), 255, np.uint8), files.pixels(film.n), np.full((16, 8), 255, np.uint8)])
        file = io.BytesIO()
        Image.fromarray(wide).save(file, "PNG")
        film.content = file.getvalue()
    (tmp_path / "in").mkdir()
    layouts.LAYOUTS[name](tmp_path / "in", made)
    options = layouts.OPTIONS.get(name, {}) | {"source": tmp_path / "in", "image_size": 16}
    manifest = data.build(name, tmp_path / "out", fit="crop", workers=1, **options)
    found = hostile.stored(tmp_path / "out")
    assert len(found) == 15 and all((found[film.image_id] == files.pixels(film.n)).all() for film in made)
    assert manifest["source"]["fit"] == "crop"
    with pytest.raises(ValueError, match="expected pad or crop"):
        data.build(name, tmp_path / "other", fit="fill", **options)


def test_views_of_any_number_take_little_room_in_the_manifest(tmp_path):
    made = films(200)
    path = layouts.as_nih(tmp_path, made)[0]
    lines = path.read_text().splitlines()
    odd = [
        line.removesuffix("PA") + ("PA" if i < 15 else f"view number {i} {SECRET}") for i, line in enumerate(lines[1:])
    ]
    path.write_text("\n".join([lines[0], *odd]))
    left_out = NihSource(source=tmp_path).parameters()["left_out"]
    assert sum(left_out.values()) == 185 and left_out["views that are rarer"] == 155 and len(left_out) == 31
    assert all(len(reason) < 30 for reason in left_out)
