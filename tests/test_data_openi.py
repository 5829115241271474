"""Open-i: miniatures of the published archives and folders, and a server of this machine to fetch them from."""

import contextlib
import functools
import gzip
import http.server
import io
import pickle
import re
import tarfile
import threading

import pyarrow.parquet as pq
import pytest
from PIL import Image

from repgls_jax import data, findings
from repgls_jax.data import download, openi, openi_codes
from repgls_jax.data.openi import FILMS, PROJECTIONS, REPORTS, OpeniSource
from repgls_jax.extraction.source import Source as Reports
from repgls_jax.phantom import PhantomConfig, generate

SIDE = 64
CANARY = "Quibblewort effusion"
N = 8  # reports of two films each; one more has none
CODES = ("normal", "Opacity/lung/base/left", "Cardiomegaly/borderline", "Calcified Granuloma/lung/hilum")


@functools.cache
def film(i):
    return generate(PhantomConfig(image_size=SIDE), i)["image"]


def png(i):
    file = io.BytesIO()
    Image.fromarray(film(i)).save(file, "PNG")
    return file.getvalue()


def image_id(n, v):
    """The first report's films are named as the others' are not."""
    return f"CXR{n}_{'1_' * (n == 1)}IM-{n:04d}-{v + 1}001"


def xml(n, ids, codes):
    images = "".join(f'<parentImage id="{i}"><caption>Xray Chest</caption></parentImage>' for i in ids)
    majors = "".join(f"<major>{code}</major>" for code in codes)
    parts = {"COMPARISON": "None.", "FINDINGS": f"{CANARY} in {n}.", "IMPRESSION": "As above."}
    text = "".join(f'<AbstractText Label="{label}">{part}</AbstractText>' for label, part in parts.items())
    mesh = f"<MeSH>{majors}<automatic>Pneumothorax</automatic></MeSH>"
    return f'<eCitation><uId id="CXR{n}"/><Abstract>{text}</Abstract>{mesh}{images}</eCitation>'.encode()


def reports():
    found = {
        f"ecgen-radiology/{n}.xml": xml(n, [image_id(n, v) for v in (0, 1)], [CODES[n % 4]]) for n in range(1, N + 1)
    }
    return found | {f"ecgen-radiology/{N + 1}.xml": xml(N + 1, [], ["No Indexing"])}


def films():
    return {f"{image_id(n, v)}.png": png(2 * n + v) for n in range(1, N + 1) for v in (0, 1)}


def tgz(path, members, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def make(root, unpacked=False, projections=True):
    root.mkdir(parents=True, exist_ok=True)
    if unpacked:
        for folder, members in (("", reports()), ("NLMCXR_png/", films())):
            for name, content in members.items():
                (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
                (root / folder / name).write_bytes(content)
    else:
        tgz(root / REPORTS, reports())
        tgz(root / FILMS, films())
    if projections:
        rows = [
            f"{n},{image_id(n, v).removeprefix('CXR1_' if n == 1 else 'CXR')}.dcm.png,{('Frontal', 'Lateral')[v]}"
            for n in range(1, N + 1)
            for v in (0, 1)
        ]
        (root / PROJECTIONS).write_text("\n".join(["uid,filename,projection", *rows]))
    return root


def records(source):
    return {
        r["image_id"]: r for split, n in source.splits().items() for r in (source.record(split, i) for i in range(n))
    }


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_miniature_becomes_its_films_labels_and_reports(tmp_path, unpacked):
    source = OpeniSource(source=make(tmp_path / "openi", unpacked), image_size=SIDE)
    found = records(pickle.loads(pickle.dumps(source)))  # noqa: S301
    assert source.parameters()["left_out"] == {"report without a film": 1, "view LATERAL": N}
    assert set(found) == {image_id(n, 0) for n in range(1, N + 1)}
    for n in range(1, N + 1):
        record = found[image_id(n, 0)]
        assert (record["image"] == film(2 * n)).all()
        assert (record["patient_id"], record["study_id"], record["view"]) == (f"CXR{n}", f"CXR{n}", "FRONTAL")
        assert (record["findings"], record["impression"], record["report"]) == (f"{CANARY} in {n}.", "As above.", "")
        states = dict(zip(findings.UNION.findings, record["labels"], strict=True))
        expected = [{"No Finding": 1}, {"Lung Opacity": 1}, {"Cardiomegaly": -1}, {"Nodule": 1, "Lung Lesion": 1}][
            n % 4
        ]
        assert {f: s for f, s in states.items() if s != -2} == expected


def test_a_build_joins_with_what_is_extracted_from_the_same_reports(tmp_path):
    root = make(tmp_path / "openi")
    manifest = data.build("openi", tmp_path / "out", source=root, image_size=SIDE, views="all")
    assert sum(counts["images"] for counts in manifest["counts"].values()) == 2 * N
    built = {
        r["study_id"]: (r["findings"], r["impression"])
        for r in pq.read_table(tmp_path / "out/reports.parquet").to_pylist()
    }
    extracted = {r["study_id"]: (r["findings"], r["impression"]) for r in Reports(root / REPORTS).reports()}
    assert len(built) == N and built.items() <= extracted.items()
    assert CANARY not in (tmp_path / "out" / "manifest.json").read_text()


def test_reports_alone_are_counted_and_no_error(tmp_path):
    root = make(tmp_path / "openi")
    (root / FILMS).unlink()
    manifest = data.build("openi", tmp_path / "out", source=root, image_size=SIDE)
    assert manifest["source"]["left_out"] == {"film not there": 2 * N, "report without a film": N + 1}
    assert manifest["source"]["reports"] == N + 1 and manifest["counts"] == {}


def test_films_under_other_names_are_the_same_films(tmp_path):
    root = make(tmp_path / "openi", unpacked=True)
    (root / "NLMCXR_png").rename(root / "images")
    for path in list((root / "images").iterdir()):
        n = int(re.match(r"CXR(\d+)", path.name)[1])
        path.rename(path.with_name(path.name.removeprefix("CXR1_" if n == 1 else "CXR").replace(".png", ".dcm.png")))
    assert set(records(OpeniSource(source=root, image_size=SIDE))) == {image_id(n, 0) for n in range(1, N + 1)}


def test_without_projections_views_are_not_guessed(tmp_path):
    root = make(tmp_path / "openi", projections=False)
    with pytest.raises(ValueError, match=r"nothing says which films are frontal: put indiana_projections\.csv"):
        OpeniSource(source=root)
    assert sum(OpeniSource(source=root, views="all").splits().values()) == 2 * N


def test_a_bad_report_takes_only_its_own_films_along(tmp_path):
    root = make(tmp_path / "openi", unpacked=True)
    folder = root / "ecgen-radiology"
    (folder / "1.xml").write_bytes(b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + reports()["ecgen-radiology/1.xml"])
    (folder / "2.xml").write_bytes(reports()["ecgen-radiology/2.xml"][:-9])
    (folder / "3.xml").write_bytes(reports()["ecgen-radiology/4.xml"])
    (folder / "5.xml").write_bytes(reports()["ecgen-radiology/5.xml"].replace(b"CXR5", CANARY.encode(), 1))
    source = OpeniSource(source=root, image_size=SIDE)
    left_out = source.parameters()["left_out"]
    assert {n for reason, n in left_out.items() if reason.startswith("report: ")} == {1} and len(left_out) == 6
    assert CANARY not in str(source.parameters())
    assert {r["study_id"] for r in records(source).values()} == {f"CXR{n}" for n in (4, 6, 7, 8)}


def test_projections_are_checked_and_reports_needed(tmp_path):
    root = make(tmp_path / "openi")
    path = root / PROJECTIONS
    path.write_text(path.read_text().replace("Lateral", "Sideways", 1))
    with pytest.raises(ValueError, match=r"column 'projection', 1 values \(row 2: 'Sideways'\)"):
        OpeniSource(source=root)
    (root / REPORTS).unlink()
    with pytest.raises(FileNotFoundError, match="holds neither"):
        OpeniSource(source=root)


def test_codes_name_findings_and_say_what_is_plain():
    named = {finding for rules in openi_codes.CODES.values() for _, found in rules for finding in found}
    assert named == set(findings.UNION.findings)
    codes = [
        ["Cardiomegaly/borderline", "Cardiomegaly/mild"],
        ["Opacity/pleura", "Calcified Granuloma/liver", "Unheard Of", ""],
        ["Pulmonary Congestion/mild"],
        ["Nodule/lung/upper lobe/right"],
    ]
    states = openi_codes.labels(codes, findings.UNION)
    said = [{findings.UNION.findings[k]: int(s) for k, s in enumerate(row) if s != -2} for row in states]
    assert said == [{"Cardiomegaly": 1}, {}, {"Edema": -1}, {"Nodule": 1, "Lung Lesion": 1}]
    assert openi_codes.labels(codes, findings.NIH).shape == (4, len(findings.NIH))


# Unpacking


PNG = re.compile(r"\w+\.png")


def test_unpacking_takes_the_plain_files_that_are_named_and_nothing_else(tmp_path):
    names = {"../evil.png": b"1", "/tmp/evil2.png": b"2", "sub/good.png": b"3", "other.txt": b"4", "x/..png": b"5"}
    tgz(tmp_path / "a.tgz", names, links=[("link.png", "/etc/passwd"), ("sub", "/tmp")])
    assert download.unpack(tmp_path / "a.tgz", tmp_path / "in" / "films", PNG) == 3
    found = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*.png")}
    assert found == {"in/films/evil.png": b"1", "in/films/evil2.png": b"2", "in/films/good.png": b"3"}


def test_archives_that_are_cut_or_swell_leave_nothing(tmp_path, monkeypatch):
    tgz(tmp_path / "good.tgz", films())
    whole = (tmp_path / "good.tgz").read_bytes()
    monkeypatch.setattr(download, "_FLOOR", 2**20)
    tgz(tmp_path / "bomb.tgz", {"b.bin": bytes(2**24), "a.png": b""})
    cases = {"cut.tgz": whole[: len(whole) // 2], "none.tgz": gzip.compress(b"x" * 2000), "empty.tgz": b""}
    cases |= {"flipped.tgz": whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in (*cases, "bomb.tgz"):
        with pytest.raises(ValueError, match=r"is damaged|more than 20 times its size"):
            download.unpack(tmp_path / name, tmp_path / "films", re.compile(r"[-\w]+\.png"))
        assert not [p for p in tmp_path.iterdir() if p.is_dir()]


# Downloading


class Server(http.server.BaseHTTPRequestHandler):
    """Gives ``content`` (name -> bytes); ``cuts`` says after how many bytes the next answers break off."""

    def do_GET(self):
        body = self.content.get(self.path.rpartition("/")[2])
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if body is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if start >= len(body) and wanted:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.cuts.pop(0) if self.cuts else None])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(content, cuts=(), ranges=True):
    handler = type("Handler", (Server,), {"content": content, "cuts": list(cuts), "ranges": ranges, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke_off(tmp_path, ranges):
    body = bytes(range(256)) * 50
    path = tmp_path / "a.tgz"
    with serve({"a.tgz": body}, cuts=[1000, 3000], ranges=ranges) as (url, handler):
        for got in (1000, 4000 if ranges else 3000):
            with pytest.raises(ValueError, match=f"broke off after {got} bytes"):
                download.fetch(f"{url}/a.tgz", path)
            assert not path.exists()
        download.fetch(f"{url}/a.tgz", path)
        download.fetch(f"{url}/a.tgz", path)
        assert [wanted for _, wanted in handler.asked] == [None, "bytes=1000-", f"bytes={4000 if ranges else 3000}-"]
    assert path.read_bytes() == body and [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_a_part_that_is_whole_is_taken_and_one_that_is_too_long_is_not(tmp_path):
    body, path = b"x" * 500, tmp_path / "a.tgz"
    with serve({"a.tgz": body}) as (url, _):
        (tmp_path / "a.tgz.part").write_bytes(body + b"y")
        with pytest.raises(ValueError, match="the server answers 416"):
            download.fetch(f"{url}/a.tgz", path)
        (tmp_path / "a.tgz.part").write_bytes(body)
        download.fetch(f"{url}/a.tgz", path)
        assert path.read_bytes() == body
        with pytest.raises(ValueError, match="the server answers 404"):
            download.fetch(f"{url}/b.tgz", tmp_path / "b.tgz")
        with pytest.raises(ValueError, match="more than 100 bytes"):
            download.fetch(f"{url}/a.tgz", tmp_path / "c.tgz", max_bytes=100)
    with pytest.raises(ValueError, match=r"broke off after 0 bytes \(URLError\)"):
        download.fetch(f"{url}/a.tgz", tmp_path / "d.tgz")


def test_open_i_fetches_itself(tmp_path, monkeypatch):
    packed = make(tmp_path / "published")
    content = {name: (packed / name).read_bytes() for name in (REPORTS, FILMS)}
    root = tmp_path / "openi"
    with serve(content) as (url, handler):
        monkeypatch.setattr(openi, "URLS", {name: f"{url}/{name}" for name in content})
        for _ in range(2):
            source = OpeniSource(source=root, image_size=SIDE, views="all", download=True)
            assert sum(source.splits().values()) == 2 * N
        assert len(handler.asked) == 2
    assert (source.record("train", 0)["image"] > 0).any()
