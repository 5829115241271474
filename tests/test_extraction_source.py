"""Reports on disk: tables, folders and archives, read in a fixed order; what is damaged or hostile is set aside."""

import csv
import gzip
import io
import os
import pathlib
import random
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repgls_jax.extraction import archives, source

CANARY = "zebrafinch"
MIMIC = {
    "files/p10/p1000/s52.txt": "FINDINGS: No edema.\r\nIMPRESSION: Normal.",
    "files/p10/p1000/s7.txt": "\ufeffNo mass.",
    "files/p11/p1100/s007.txt": "Mass.",
    "files/p11/index.txt": f"not a report, {CANARY}",
    "LICENSE.txt": CANARY,
    "__MACOSX/._s7.txt": CANARY,
}
MIMIC_REPORTS = [
    {"study_id": "52", "report": "FINDINGS: No edema.\r\nIMPRESSION: Normal."},
    {"study_id": "7", "report": "No mass."},
    {"study_id": "007", "report": "Mass."},
]


def openi(uid: str, findings: str = "", impression: str = "", more: str = "") -> str:
    parts = (("COMPARISON", "None."), ("INDICATION", CANARY), ("FINDINGS", findings), ("IMPRESSION", impression))
    texts = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in parts)
    return f'<?xml version="1.0"?>{more}<eCitation><uId id="{uid}"/><Abstract>{texts}</Abstract></eCitation>'


OPENI = {
    "ecgen-radiology/10.xml": openi("CXR10", "No mass &amp; no edema.", "Normal."),
    "ecgen-radiology/2.xml": openi("CXR2", "", "Clear &lt;lungs&gt;."),
}
OPENI_REPORTS = [
    {"study_id": "CXR10", "findings": "No mass & no edema.", "impression": "Normal."},
    {"study_id": "CXR2", "findings": "", "impression": "Clear <lungs>."},
]


def as_folder(path: pathlib.Path, files: dict[str, str | bytes]) -> pathlib.Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def as_zip(path: pathlib.Path, files: dict[str, str | bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def as_tar(path: pathlib.Path, files: dict[str, str | bytes]) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = {"folder": as_folder, "r.zip": as_zip, "r.tar.gz": as_tar, "r.TGZ": as_tar}


def read(path: pathlib.Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    opened = source.Source(path)
    reports = list(opened.reports())
    assert opened.fraction == 1
    assert CANARY not in str(opened.quarantine)
    return reports, dict(opened.quarantine)


@pytest.mark.parametrize("name", ["folder", "r.zip"])
def test_mimic_texts_are_found_among_other_files_and_sorted_by_path(tmp_path, name):
    shuffled = list(MIMIC.items())
    random.Random(0).shuffle(shuffled)
    assert read(MAKERS[name](tmp_path / name, dict(shuffled))) == (MIMIC_REPORTS, {})


@pytest.mark.parametrize("name", MAKERS)
def test_openi_is_read_from_a_folder_and_from_archives(tmp_path, name):
    files = OPENI | {"ecgen-radiology/note.txt": CANARY, "._2.xml": CANARY}
    assert read(MAKERS[name](tmp_path / name, files)) == (OPENI_REPORTS, {})


@pytest.mark.parametrize("name", ["folder", "r.zip"])
def test_other_texts_are_named_by_their_file(tmp_path, name):
    files = {"b/study 1.txt": "No mass.", "a.TXT": "Mass.", "c/a.txt": "again", "notes.md": CANARY}
    reports, quarantine = read(MAKERS[name](tmp_path / name, files))
    assert reports == [{"study_id": "a", "report": "Mass."}, {"study_id": "study 1", "report": "No mass."}]
    assert quarantine == {"file c/a.txt": "study_id stands more than once; the first is kept"}


def test_what_links_and_pipes_hide_is_not_waited_for(tmp_path):
    folder = as_folder(tmp_path / "f", {"s1.txt": "Mass.", "s4.txt": "x" * 50})
    (folder / "s2.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "s3.txt")
    (folder / "s5.txt").symlink_to("/dev/zero")
    (folder / "s6.txt").symlink_to(folder / "s1.txt")
    (folder / "loop").symlink_to(folder)
    reports, quarantine = read(folder)
    assert [report["study_id"] for report in reports] == ["1", "4", "6"]
    assert quarantine == {f"file s{i}.txt": "not a plain file" for i in (2, 3, 5)} | {
        "folder loop": "a link to a folder, which is not followed"
    }


def test_a_name_or_text_that_is_not_utf8_is_set_aside(tmp_path):
    folder = as_folder(tmp_path / "f", {"good.txt": "Mass.", "bad.txt": b"caf\xe9 " + CANARY.encode()})
    pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("Mass.")
    reports, quarantine = read(folder)
    assert [report["study_id"] for report in reports] == ["good"]
    assert list(quarantine.values()) == ["bytes that are not UTF-8"] * 2
    source.write_quarantine(tmp_path / "o", list(quarantine.items()))
    assert "udcff" in (tmp_path / "o.quarantine.csv").read_text()


BAD_XML = {
    "dtd": (openi("x", CANARY, more='<!DOCTYPE a [<!ENTITY b "b">]>'), "document type"),
    "external": (openi("x", more='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "document type"),
    "entity": (openi("x", f"{CANARY} &unknown;"), "undefined entity"),
    "cut": (openi("x", CANARY)[:-20], "no element found|unclosed token"),
    "empty": ("", "no element found"),
    "text": (CANARY, "syntax error"),
    "nul": (openi("x", f"{CANARY}\0"), "invalid token"),
    "latin": (openi("x").encode() + b"\xff", "junk|invalid token|not well-formed"),
    "codec": (f'<?xml version="1.0" encoding="{CANARY}"?><a/>', "encoding"),
    "other": ("<html/>", "not a report of Open-i"),
    "no id": ("<eCitation><uId/></eCitation>", "not a report of Open-i"),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_xml_that_is_damaged_or_suspect_is_refused_without_its_text(tmp_path, case):
    content, message = BAD_XML[case]
    data = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(ValueError, match=message) as error:
        archives.parse_openi(data)
    assert CANARY not in str(error.value)
    assert read(as_tar(tmp_path / "r.tgz", {"1.xml": data} | OPENI))[0] == OPENI_REPORTS


def test_deeply_nested_xml_is_read_without_a_crash():
    depth = 100_000
    report = archives.parse_openi(openi("CXR1", "<b>" * depth + "Mass." + "</b>" * depth).encode())
    assert report["findings"] == "Mass."


def test_caps_on_size_number_and_swelling(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 2_000)
    monkeypatch.setattr(archives, "_FLOOR", 100_000)
    long = random.Random(0).randbytes(2_000).hex()
    for name in ("folder", "r.zip"):
        reports, quarantine = read(MAKERS[name](tmp_path / name, {"s1.txt": long, "s2.txt": "Mass."}))
        assert (reports, quarantine) == (
            [{"study_id": "2", "report": "Mass."}],
            {"file s1.txt": "longer than 2000 bytes"},
        )
    assert read(as_tar(tmp_path / "long.tgz", {"1.xml": long} | OPENI))[0] == OPENI_REPORTS
    _, quarantine = read(as_zip(tmp_path / "bomb.zip", {"s1.txt": b" " * 10**7, "s2.txt": "Mass."}))
    assert "swell" in quarantine["file s1.txt"]
    with pytest.raises(ValueError, match="unpacks to more than"):
        read(as_tar(tmp_path / "bomb.tgz", {"1.xml": b" " * 10**7}))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    for name in ("folder", "many.zip", "many.tgz"):
        make = MAKERS.get(name, as_zip if name.endswith("zip") else as_tar)
        with pytest.raises(ValueError, match="more than 1 files"):
            read(make(tmp_path / name, OPENI))


def test_a_member_that_cannot_be_unpacked_is_set_aside(tmp_path):
    path = as_zip(tmp_path / "r.zip", {"s1.txt": f"{CANARY} " * 50, "s2.txt": "Mass."})
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF  # inside the first member's compressed text
    path.write_bytes(data)
    reports, quarantine = read(path)
    assert [report["study_id"] for report in reports] == ["2"]
    assert "cannot be unpacked" in quarantine["file s1.txt"]


@pytest.mark.parametrize("name", ["r.zip", "r.tgz"])
def test_mangled_archives_give_reports_or_reasons_and_never_a_crash(tmp_path, name):
    """Every byte of the archive changed in turn, and every length of it: a ValueError, or rows that add up."""
    make = MAKERS.get(name, as_tar)
    path = make(tmp_path / name, OPENI)
    whole = path.read_bytes()
    broken = [whole[:n] for n in range(0, len(whole), 3)]
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        broken.append(bytes(changed))
    refused = 0
    for data in broken:
        path.write_bytes(data)
        try:
            rows = list(archives.rows(path))
        except ValueError as error:
            refused += 1
            assert CANARY not in str(error)
        else:
            assert 1 <= len(rows) <= len(OPENI)
    assert refused > len(broken) / 4


def test_a_tar_whose_checksum_does_not_hold_is_refused(tmp_path):
    path = as_tar(tmp_path / "r.tgz", OPENI)
    # Some writers pad much; the checksum then stands behind everything that tar reads.
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1_000_000)))
    path.write_bytes(data)
    assert read(path) == (OPENI_REPORTS, {})
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


@pytest.mark.parametrize("name", ["folder", "r.zip", "r.tgz"])
def test_nothing_to_read_is_an_error(tmp_path, name):
    make = MAKERS.get(name, as_tar)
    with pytest.raises(ValueError, match=r"no report|no \.xml"):
        read(make(tmp_path / name, {"readme.md": "hello"}))


def test_a_row_with_a_bare_comma_is_set_aside_not_cut(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(f"study_id,impression\na,No mass, possible {CANARY}\nb,Mass.\n")
    assert read(path) == (
        [{"study_id": "b", "impression": "Mass."}],
        {"line 2": "more than the header's 2 fields; put text with commas in quotes"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'study_id,report\nz,Mass.\na,"{CANARY} is never closed\nb,Mass.\nc,Mass.\n', "after line 2: unexpected end"),
        (f"study_id,report,report\na,{CANARY},Mass.\n", "several columns report"),
        (f"study_id,study_id,report\na,b,{CANARY}\n", "several columns study_id"),
    ],
)
def test_a_table_in_which_reports_could_be_lost_is_refused(tmp_path, text, message):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("report", [[CANARY], ["Mass."]]),
        ("report", [{"text": CANARY}, {"text": "Mass."}]),
        ("report", [1.5, float("nan")]),
        ("study_id", [1.0, 2.0]),
    ],
)
def test_parquet_columns_that_are_no_text_are_refused(tmp_path, name, column):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"study_id": ["a", "b"], "report": ["Mass.", CANARY]} | {name: column}), path)
    with pytest.raises(ValueError, match=f"has {name} as .*expected text") as error:
        read(path)
    assert CANARY not in str(error.value)


def test_a_parquet_file_with_two_columns_of_a_name_or_damaged_pages_is_refused(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table([["a"], [CANARY], ["b"]], names=["study_id", "report", "report"]), path)
    with pytest.raises(ValueError, match="several columns report"):
        read(path)
    ids, texts = [str(i) for i in range(2_000)], [f"{CANARY} {i} mass" for i in range(2_000)]
    pq.write_table(pa.table({"study_id": ids, "report": texts}), path, row_group_size=1_000)
    data = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[place : place + 500] = bytes(500)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged after row 1000") as error:
        read(path)
    assert CANARY not in str(error.value)


def test_a_study_id_that_is_text_is_set_aside(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(f'study_id,report\n"{CANARY}\nx",Mass.\n{CANARY * 50},Mass.\nb,Mass.\n')
    reports, quarantine = read(path)
    assert [report["study_id"] for report in reports] == ["b"]
    assert len(quarantine) == 2


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_of_any_text_type_with_one_row_that_is_not_utf8(tmp_path, kind):
    path = tmp_path / "r.parquet"
    texts = pa.array([b"Mass.", None, f"{CANARY} ".encode() + b"\xff"], pa.binary())
    if pa.types.is_dictionary(kind):
        texts = texts.slice(0, 2).cast(pa.string()).dictionary_encode()
        ids = pa.array([1, 2])
    else:
        if kind != pa.binary():
            offsets = pa.large_binary() if kind == pa.large_string() else pa.binary()
            texts = pa.Array.from_buffers(kind, 3, texts.cast(offsets).buffers())
        ids = pa.array([1, 2, 3])
    pq.write_table(pa.table({"study_id": ids, "report": texts}), path)
    reports, quarantine = read(path)
    assert reports == [{"study_id": "1", "report": "Mass."}, {"study_id": "2", "report": ""}]
    assert quarantine == ({} if pa.types.is_dictionary(kind) else {"row 3": "bytes that are not UTF-8"})


def test_batches_hold_fewer_reports_where_these_are_long(monkeypatch):
    reports = [{"study_id": str(i), "report": "x" * (400 if i == 2 else 1)} for i in range(7)]
    monkeypatch.setattr(source, "MAX_BATCH", 300)
    sizes = [len(batch) for batch in source.in_batches(iter(reports), 4)]
    assert sizes == [3, 4]
    assert [r for batch in source.in_batches(iter(reports), 4) for r in batch] == reports


def test_ids_are_joined_without_the_blanks_around_them(tmp_path):
    (tmp_path / "r.csv").write_text("study_id,findings\n s1,No mass.\ns1 ,Mass.\ns2,Mass.\n")
    reader = source.Source(tmp_path / "r.csv")
    assert [report["study_id"] for report in reader.reports()] == ["s1", "s2"]
    assert [reason for _, reason in reader.quarantine] == ["study_id stands more than once; the first is kept"]


def test_the_process_keeps_its_limit_of_csv_fields_while_files_are_read(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("study_id,findings\n" + "".join(f"s{i},Clear.\n" for i in range(5)))
    limit = csv.field_size_limit()
    first, second = (source.Source(path).reports() for _ in range(2))
    next(first), next(second)
    assert csv.field_size_limit() == limit
    list(first), list(second)
    assert csv.field_size_limit() == limit
