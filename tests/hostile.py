"""Builds from thousands of hostile files with good ones in between, and counts what became of both.

  python tests/hostile.py --count=10000 --seed=0

Prints a row a kind of input: how many there were, how many a build quarantined (with its reason in the manifest, or
counted as left out), how many made it refuse the whole with a message, and how many were readable after all; how many
good films were there, and how many were lost or came out with other pixels (must be 0); the process's largest memory.
A process of its own does the work, which the system stops when it wants more than 4 GiB beyond what Python takes.
"""

import argparse
import concurrent.futures
import contextlib
import gzip
import io
import json
import pathlib
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter

import hostile_files as files
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hostile_layouts import GOOD_EVERY, LAYOUTS, NAMES, OPTIONS, Film, as_table, misplace, table
from PIL import Image

from repgls_jax import data
from repgls_jax.data import shards

ROOM = 4 * 2**30  # bytes of address space beyond what the process has when it begins
SHARES = {  # of the inputs
    "png": 0.18, "jpeg": 0.18, "dicom": 0.18, "path": 0.08, "csv": 0.15, "archive": 0.03, "xml": 0.1,
    "shard": 0.1,
}  # fmt: skip
CODECS = {
    "png": (files.png, files.bad_png),
    "jpeg": (files.jpeg, files.bad_jpeg),
    "dicom": (files.dicom, files.bad_dicom),
}


class Tally:
    """How many of each column there were, and what was wrong, in words."""

    def __init__(self):
        self.counts, self.faults, self.refusal = Counter(), [], ""

    def add(self, column, n=1):
        self.counts[column] += n

    def wrong(self, what):
        self.add("wrong")
        self.faults.append(what)


def stored(output):
    """image_id -> pixels of a build."""
    found = {}
    for split in data.read_manifest(output)["counts"]:
        records = shards.Records(output / "shards", split)
        found |= {record["image_id"]: record["image"][..., 0] for record in (records[i] for i in range(len(records)))}
    return found


def build(name, root, output, tally, what):
    """The manifest and the films of a build, or None if it was refused."""
    try:
        manifest = data.build(name, output, source=root, image_size=files.SIDE, workers=1, **OPTIONS.get(name, {}))
    except (ValueError, OSError) as error:  # what the command tells in a line; anything else ends this run
        if files.CANARY in str(error) or isinstance(error, UnicodeError) or len(str(error)) > 4000:
            tally.wrong(f"{what}: refused with {type(error).__name__}, {str(error)[:200]!r}")
        tally.add("refused")
        tally.refusal = str(error)
        return None
    if files.CANARY in json.dumps(manifest):
        tally.wrong(f"{what}: report text in the manifest")
    return manifest, stored(output)


def check(films, found, tally, what, touched=frozenset()):
    """Counts the good films that are there as they were written; those ``touched`` may be absent."""
    for film in films:
        if film.good:
            image = found.get(film.image_id)
            tally.add("good", film.n not in touched)
            expected = (
                np.asarray(Image.open(io.BytesIO(film.content)))
                if film.content[:2] == b"\xff\xd8"
                else files.pixels(film.n)
            )
            if (image is None and film.n not in touched) or (image is not None and not np.array_equal(image, expected)):
                tally.wrong(f"{what}: good film {film.image_id} is {'lost' if image is None else 'another'}")


def film_batch(kind, rng, root, tally, builder, count):
    """Bad films in the place of good ones."""
    good, bad = CODECS[kind]
    films = []
    while count > 0 or len(films) < 3 * GOOD_EVERY:
        n = len(films)
        film = Film(n, good(n))
        if n % GOOD_EVERY and count > 0:
            film.content, film.must = bad(rng)
            film.good = False
            count -= 1
        films.append(film)
    LAYOUTS[builder](root / "in", films)
    judge(films, builder, root, tally, f"{kind} {builder}")


def judge(films, builder, root, tally, what):
    """Builds, and compares film by film with what had to become of it."""
    bad = [film for film in films if not film.good]
    tally.add("inputs", len(bad))
    made = build(builder, root / "in", root / "out", tally, what)
    if made is None:
        tally.wrong(f"{what}: one bad film made the build refuse all: {tally.refusal[:300]}")
        return
    manifest, found = made
    check(films, found, tally, what)
    reasons = {item["item"]: item["reason"] for item in manifest["quarantine"]["items"]}
    left_out = sum(manifest["source"].get("left_out", {}).values())
    kept = [film for film in bad if film.image_id in found]
    for film in kept:
        if film.must:
            tally.wrong(f"{what}: kept {film.path.name}, which had to be refused")
    gone = len(reasons) + left_out
    if gone + len(found) != len(films) or not all(reasons.values()):
        tally.wrong(f"{what}: {len(films)} films, of which {len(found)} are stored and {gone} accounted for")
    tally.add("quarantined", len(bad) - len(kept))
    tally.add("readable", len(kept))


def path_batch(kind, rng, root, tally, builder, count):
    """Names that lead elsewhere, and links, folders and pipes in the place of films."""
    films = [Film(n, files.png(n)) for n in range(max(3, -(-count // 4)) * GOOD_EVERY)]
    LAYOUTS[builder](root / "in", films)
    chosen = [film for film in films if film.n % GOOD_EVERY][:count]
    named = builder == "table" and rng.integers(2)
    rows = {}
    for film in chosen:
        film.good, film.must = False, True
        if named:
            film.image_id = NAMES[rng.integers(len(NAMES))]
            rows[film.n] = film.image_id if film.image_id not in rows.values() else f"none/{film.n}.png"
            film.image_id = rows[film.n]
        else:
            misplace(rng, film, root)
    if named:
        (root / "outside").mkdir()
        (root / "outside" / "film.png").write_bytes(files.png(0))
        listed = [{"image": rows.get(f.n, f.image_id), "patient": f.patient, "split": f.split} for f in films]
        table(root / "in" / "t.csv", listed)
    judge(films, builder, root, tally, f"{kind} {builder}")


def named(builder, path, film):
    """What the rows of a table that are about a film, or its study, have in them."""
    if builder == "mimic_cxr" and "chexpert" in path.name:
        return f"5{film.patient:07d}"
    return film.image_id[3:] if builder == "openi" else film.image_id


def table_input(kind, rng, root, tally, builder, count):
    """A damaged table: the films of the rows that it left alone are kept, or the whole is refused."""
    tally.add("inputs")
    films = [Film(n, files.png(n)) for n in range(3 * GOOD_EVERY)]
    tables = LAYOUTS[builder](root / "in", films)
    path = tables[rng.integers(len(tables))]
    content, rows = files.bad_table(rng, path.read_bytes())
    lines = path.read_text().split("\n")
    packed = builder != "table" and rows is not None and rng.integers(4) == 0 and path.suffix == ".csv"
    path.unlink()
    if builder == "table" and rng.integers(3) == 0:
        pq.write_table(pa.csv.read_csv(pa.BufferReader("\n".join(lines).encode())), path.with_suffix(".parquet"))
        path, rows = path.with_suffix(".parquet"), None
        harm = (files.flipped, files.mangled, files.cut)[rng.integers(3)]
        path.write_bytes(harm(rng, path.read_bytes()))
    elif packed:  # and the archive harmed once more
        squeezed = gzip.compress(content)
        path.with_name(f"{path.name}.gz").write_bytes(squeezed[: len(squeezed) - int(rng.integers(0, 20))])
    else:
        path.write_bytes(content)
    hit = [lines[row] for row in rows or () if row < len(lines)]
    touched = {film.n for film in films if any(named(builder, path, film) in line for line in hit)}
    if rows is None or 0 in rows:  # the header
        touched |= {film.n for film in films}
    made = build(builder, root / "in", root / "out", tally, f"csv {builder} {path.name}")
    if made is not None:
        check(films, made[1], tally, f"csv {builder} {path.name} {sorted(rows or ())}", touched)
        tally.add("quarantined" if len(made[1]) < len(films) else "readable")


def xml_batch(kind, rng, root, tally, builder, count):
    """Bad reports of Open-i among good ones, in a folder or an archive."""
    films = [Film(n, files.png(n)) for n in range((count + 8) * GOOD_EVERY)]
    LAYOUTS["openi"](root / "in", films)
    folder = root / "in" / "ecgen-radiology"
    bad = {}
    for number in range(9, 9 + count):
        path = folder / f"{number}.xml"
        content, must = files.bad_xml(rng, path.read_bytes())
        path.write_bytes(content)
        bad[number] = must
    if rng.integers(2):
        with tarfile.open(root / "in" / "NLMCXR_reports.tgz", "w:gz") as archive:
            archive.add(folder, "ecgen-radiology")
        shutil.rmtree(folder)
    tally.add("inputs", count)
    made = build("openi", root / "in", root / "out", tally, "xml")
    if made is None:
        tally.wrong(f"xml: one bad report made the build refuse all: {tally.refusal[:300]}")
        return
    manifest, found = made
    kept = {number for number in bad if any(f.image_id in found for f in films if f.patient + 1 == number)}
    check([film for film in films if film.patient + 1 not in bad], found, tally, "xml")
    counted = sum(n for why, n in manifest["source"]["left_out"].items() if why.startswith("report"))
    if counted < count - len(kept):
        tally.wrong(f"xml: {count - len(kept)} reports are gone and {counted} counted")
    if any(bad[number] for number in kept):
        tally.wrong("xml: a report was used that had to be refused")
    tally.add("quarantined", count - len(kept))
    tally.add("readable", len(kept))


def archive_input(kind, rng, root, tally, builder, count):
    """A damaged archive: of MIMIC's reports, of Open-i's, or of its films."""
    tally.add("inputs")
    films = [Film(n, files.png(n)) for n in range(3 * GOOD_EVERY)]
    builder = ("mimic_cxr", "openi")[rng.integers(2)]
    LAYOUTS[builder](root / "in", films)
    folder = root / "in" / "files"
    if builder == "mimic_cxr":
        path = root / "in" / "mimic-cxr-reports.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for report in sorted(folder.rglob("s*.txt")):
                archive.write(report, report.relative_to(root / "in"))
    else:
        name, packed = (("ecgen-radiology", "NLMCXR_reports.tgz"), ("NLMCXR_png", "NLMCXR_png.tgz"))[rng.integers(2)]
        path = root / "in" / packed
        with tarfile.open(path, "w:gz") as archive:
            archive.add(root / "in" / name, name)
        shutil.rmtree(root / "in" / name)
    way, content = rng.integers(8), path.read_bytes()
    bomb = files.pax(256 * 2**20) if way == 0 and rng.integers(4) == 0 else content[: len(content) // 2]
    path.write_bytes(bomb if way == 0 else (files.flipped if way < 6 else files.mangled)(rng, content))
    made = build(builder, root / "in", root / "out", tally, f"archive {path.name}")
    if made is not None:
        # A film whose report cannot be read is quarantined; all others are as they were.
        gone = {f.n for f in films if f.image_id not in made[1]} if builder == "mimic_cxr" else set()
        check(films, made[1], tally, f"archive {path.name}", gone)
        quarantined = made[0]["quarantine"]["count"]
        if quarantined != len(gone):
            tally.wrong(f"archive {path.name}: {len(gone)} films are gone, {quarantined} of them counted")
        tally.add("quarantined" if gone else "readable")


def shard_batch(kind, rng, root, tally, builder, count):
    """Damaged files of shards, of records or of pixels: each record comes as it was written, or with an error."""
    films = [Film(n, files.png(n)) for n in range(3 * 4 * GOOD_EVERY)]
    as_table(root / "in", films)
    data.build("table", root / "out", source=root / "in", image_size=files.SIDE, workers=1)
    folder = root / "out" / "shards"
    whole = [(path, path.read_bytes()) for path in sorted(folder.glob("*test*-of-*"))]
    records = shards.Records(folder, "test")
    before = [records[i] for i in range(len(records))]
    del records
    for _ in range(count):
        tally.add("inputs")
        (path, content), way = whole[rng.integers(len(whole))], rng.integers(12)
        if way < 2:
            bad = content[: rng.integers(len(content))]
        elif way == 2:
            bad = (files.png(1), b"", bytes(len(content)), rng.bytes(len(content)), content + b"x")[rng.integers(5)]
        else:
            bad = (files.flipped if way < 8 else files.mangled)(rng, content)
        path.write_bytes(bad)
        read_shard(folder, before, tally)
        path.write_bytes(content)


def read_shard(folder, before, tally):
    """Reads all records of a damaged split in both ways."""
    try:
        records, pictures = shards.Records(folder, "test"), shards.Images(folder, "test")
    except (shards.DamagedShardError, ValueError):
        tally.add("refused")
        return
    damaged = 0
    for i, record in enumerate(before):
        try:
            found, picture = records[i], pictures.read([i])[0]
        except shards.DamagedShardError:
            damaged += 1
            continue
        tally.add("good")
        if not all(np.array_equal(found[name], record[name]) for name in record) or (picture != record["image"]).any():
            tally.wrong(f"shard: record {i} came out as another")
    tally.add("quarantined" if damaged else "readable")


BATCHES = {
    "png": (film_batch, 24), "jpeg": (film_batch, 24), "dicom": (film_batch, 24), "path": (path_batch, 12),
    "csv": (table_input, 1), "xml": (xml_batch, 24), "archive": (archive_input, 1), "shard": (shard_batch, 60),
}  # fmt: skip


def run(kind, count, seed, k):
    """The ``k``-th batch of a kind, of at most ``count`` inputs: its :class:`Tally`, and the peak of memory in MiB."""
    rng, tally = np.random.default_rng([seed, list(SHARES).index(kind), k]), Tally()
    batch, size = BATCHES[kind]
    with tempfile.TemporaryDirectory() as root:
        (pathlib.Path(root) / "in").mkdir()
        batch(kind, rng, pathlib.Path(root), tally, list(LAYOUTS)[k % len(LAYOUTS)], min(size, count))
    return tally, peak()


def peak():
    """The most memory that this process has held since it was last asked, in MiB."""
    found = next(
        line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return int(found.split()[1]) / 1024


def confine():
    """Limits the memory of this process."""
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))


def run_all(pool, kind, count, seed):
    """All batches of a kind, of ``count`` inputs together; what a batch raises is wrong."""
    total, most, k = Tally(), 0.0, 0
    while total.counts["inputs"] < count:
        size = min(BATCHES[kind][1], count - total.counts["inputs"])
        done = pool.submit(run, kind, size, seed, k)
        if (error := done.exception()) is not None:
            total.add("inputs", size)
            where = traceback.format_exception(error)[0].strip().splitlines()
            total.wrong(f"{kind} batch {k}: {type(error).__name__}: {str(error)[:200]!r}\n  " + "\n  ".join(where[-7:]))
            if isinstance(error, concurrent.futures.BrokenExecutor):
                return total, most  # crashed, or killed
        else:
            tally, memory = done.result()
            total.counts += tally.counts
            total.faults += tally.faults
            most = max(most, memory)
        k += 1
    return total, most


def main(count, seed, kinds=tuple(SHARES)):
    """Runs all kinds and prints the table; returns what was wrong, in words."""
    columns = ("inputs", "quarantined", "refused", "readable", "good", "wrong")
    print(f"{'kind':12}" + "".join(f"{name:>12}" for name in columns) + f"{'peak MiB':>10}{'seconds':>9}")
    total, faults = Counter(), []
    for kind in kinds:
        began = time.monotonic()
        with concurrent.futures.ProcessPoolExecutor(1, initializer=confine) as pool:
            tally, most = run_all(pool, kind, max(1, round(count * SHARES[kind])), seed)
        row = "".join(f"{tally.counts[name]:12}" for name in columns)
        print(f"{kind:12}{row}{most:10.0f}{time.monotonic() - began:9.1f}", flush=True)
        total += tally.counts
        faults += tally.faults
    print(f"{'all':12}" + "".join(f"{total[name]:12}" for name in columns))
    print(*faults[:40], sep="\n")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(SHARES))
    chosen = parser.parse_args()
    sys.exit(bool(main(chosen.count, chosen.seed, chosen.kinds.split(","))))
