"""A look at a build: counts against plain Python, pixels against numpy, odd films and copies planted and found."""

import collections
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from repgls_jax import data, phantom, sidecars
from repgls_jax.data import look, look_films, look_page, look_pixels
from repgls_jax.data.source import Quarantined
from repgls_jax.findings import CHEXPERT, STATES

ROOT = pathlib.Path(__file__).parents[1]
CANARY = "zebrafinch"
SIZE, C = 16, len(CHEXPERT)
COUNTS = {"train": 40, "valid": 9, "test": 14}


class Stub:
    """Random films with every field; ``films`` replaces the images of some, ``bad`` are quarantined."""

    vocabulary = CHEXPERT
    bits = 8

    def __init__(self, counts=COUNTS, films=None, bad=(), size=SIZE, simulated=False, boxes=False):
        self.counts, self.films, self.bad = counts, films or {}, bad
        self.image_size, self.simulated, self.boxes = size, simulated, boxes

    def splits(self):
        return dict(self.counts)

    def parameters(self):
        return {"size": self.image_size, "left_out": {"view LATERAL": 1234}}

    def record(self, split, i):
        if (split, i) in self.bad:
            return Quarantined(f"{split}-{i}", f"made bad {i % 2}")
        rng = np.random.default_rng([len(split), ord(split[1]), i])
        image = self.films.get((split, i), rng.integers(0, 256, (self.image_size,) * 2, np.uint8))
        made = {
            "image": image,
            "image_id": f"<{split}-{i}>",
            "patient_id": f"{split}-p{i // 2}",
            "study_id": f"{split}-s{i // 2}-{i % 2 if i % 3 else 0}",
            "view": ("PA", "AP", "")[i % 3],
            "sex": ("F", "M", "")[i % 3],
            "age": -1 if i % 5 == 0 else 7 * i % 103,
            "findings": f"Invented {CANARY}.",
            "impression": "",
            "report": "",
            "has_report": i % 4 != 0,
            "labels": rng.integers(-2, 2, C).astype(np.int8),
            "observed": np.ones(C, bool),
        }
        if self.boxes and i == 3:
            made |= {"boxes": [("Edema", 2.0, 4.0, 10.0, 8.0)], "placement": (0.5, 1, 2)}
            made["labels"][CHEXPERT.index("Edema")] = 1
        if self.simulated:
            made["labels"][:] = -2
            made |= {name: rng.random(C, np.float32) for name in ("contrast", "belief")}
            made |= {"truth": rng.integers(0, 2, C).astype(np.int8), "reader": np.int32(0)}
            made["masks"] = rng.integers(0, 2**C, (self.image_size,) * 2, np.uint16)
        return made


def built(folder, **options):
    source = Stub(**options)
    data.build_source(source, folder)
    kept = [(s, i) for s, n in source.splits().items() for i in range(n) if (s, i) not in source.bad]
    return source, [(split, source.record(split, i)) for split, i in kept]


def test_counts_are_those_of_plain_python(tmp_path):
    bad = {("train", 3), ("train", 5), ("train", 8), ("test", 1)}
    _, records = built(tmp_path / "b", bad=bad)
    found = look.look(tmp_path / "b", films=1).numbers
    for split in COUNTS:
        mine = [r for s, r in records if s == split]
        entry = found["splits"][split]
        assert entry["films"] == len(mine) == found["sampled"][split]
        studies = {r["study_id"]: r["has_report"] for r in reversed(mine)}
        assert (entry["studies"], entry["studies_with_report"]) == (len(studies), sum(studies.values()))
        patients = collections.Counter(r["patient_id"] for r in mine)
        assert entry["patients"] == len(patients) and entry["films_per_patient"]["most"] == max(patients.values())
        for name in ("view", "sex"):
            wanted = collections.Counter(r[name] or "unknown" for r in mine)
            assert {v: of[split] for v, of in found[{"view": "views"}.get(name, name)].items()} == wanted
        ages = [r["age"] for r in mine if r["age"] >= 0]
        assert found["age"][split]["known"] == len(ages)
        assert found["age"][split]["by_decade"] == [sum(min(a // 10, 9) == k for a in ages) for k in range(10)]
        for k, finding in enumerate(CHEXPERT.findings):
            states = collections.Counter(STATES[int(r["labels"][k])] for r in mine)
            assert found["findings"][finding][split] == {words: states[words] for words in STATES.values()}
    assert found["quarantine"] == {
        "made bad 1": {"train": 2, "valid": 0, "test": 1},
        "made bad 0": {"train": 1, "valid": 0, "test": 0},
    }


def test_pixels_are_measured_as_numpy_does(tmp_path):
    rng = np.random.default_rng(0)
    padded = np.zeros((SIZE, SIZE), np.uint8)
    padded[3:11, 5:9] = rng.integers(1, 256, (8, 4))
    padded[4, 6], padded[5:7, 7] = 0, 255
    films = {("train", 0): padded, ("train", 1): np.zeros((SIZE, SIZE), np.uint8)}
    _, records = built(tmp_path / "b", films=films)
    chosen = [5, 0, 1]
    measured = look_pixels.measure(tmp_path / "b" / "shards", "train", chosen)
    for k, i in enumerate(chosen):
        film = records[i][1]["image"]
        inner = padded[3:11, 5:9] if i == 0 else film
        assert measured.mean[k] == pytest.approx(inner.mean(), rel=1e-5)
        assert measured.spread[k] == pytest.approx(inner.std(), rel=1e-5)
        assert measured.black[k] == pytest.approx((inner == 0).mean())
        assert measured.white[k] == pytest.approx((inner == 255).mean())
        assert measured.padding[k] == pytest.approx(1 - inner.size / film.size)
        assert measured.aspect[k] == inner.shape[1] / inner.shape[0]
        grey = inner[(inner > 0) & (inner < 255)]
        assert measured.histogram[k].tolist() == np.histogram(grey, 64, (0, 256))[0].tolist()
    levels = np.r_[3, [4] * 62, 3]
    total = look_pixels.density(measured.histogram) @ levels
    assert total == pytest.approx(100)
    flat = look_pixels.density(levels[None].astype(np.uint32))
    np.testing.assert_allclose(flat, 100 / 254)


@pytest.fixture(scope="module")
def chests():
    """150 phantom films of 64 pixels, uint8."""
    config = phantom.PhantomConfig(image_size=64, seed=3)
    return [phantom.generate(config, 3 * i)["image"] for i in range(150)]


def placed(chests, counts):
    films, rest = {}, iter(chests)
    return films | {(split, i): next(rest) for split, n in counts.items() for i in range(n)}


def test_planted_odd_films_are_flagged_and_no_others(tmp_path, chests):
    counts = {"train": 110, "test": 40}
    films = placed(chests, counts)
    white = np.full((64, 64), 255, np.uint8)
    white[:2] = films["test", 4][:2]
    planted = {
        ("train", 7): (255 - films["train", 7], "inverted"),
        ("test", 3): (np.full((64, 64), 90, np.uint8), "empty"),
        ("test", 4): (white, "nearly all white"),
        ("test", 9): (np.ascontiguousarray(films["test", 9][::-1]), "unlike the others"),
        ("train", 50): (np.zeros((64, 64), np.uint8), "empty"),
    }
    films |= {place: film for place, (film, _) in planted.items()}
    built(tmp_path / "b", counts=counts, films=films, size=64)
    found = look.look(tmp_path / "b")
    flagged = {film["image_id"]: film["flag"] for film in found.numbers["flagged"]}
    upside_down = "<test-9>"
    assert flagged.pop(upside_down) in ("unlike the others", "inverted")
    assert flagged == {f"<{s}-{i}>": flag for (s, i), (_, flag) in planted.items() if (s, i) != ("test", 9)}
    assert sum(found.numbers["flags"].values()) == len(planted) == len(found.flagged)


def test_a_build_of_nothing_but_black_films_can_be_looked_at(tmp_path):
    films = {(split, i): np.zeros((SIZE, SIZE), np.uint8) for split, n in COUNTS.items() for i in range(n)}
    built(tmp_path / "b", films=films)
    found = look.look(tmp_path / "b")
    assert found.numbers["flags"] == {"empty": sum(COUNTS.values())} and not found.pairs
    assert "Odd films" in look_page.render(found)


def test_a_view_has_its_own_typical_film(tmp_path, chests):
    counts = {"train": 110, "test": 40}
    films = placed(chests, counts)
    ap = [(split, i) for split, i in films if i % 3 == 1]
    films |= {place: np.rot90(films[place]).copy() for place in ap}  # Stub's rule: these are the AP films
    films["test", 6] = np.rot90(films["test", 6]).copy()
    built(tmp_path / "b", counts=counts, films=films, size=64)
    assert [film["image_id"] for film in look.look(tmp_path / "b").numbers["flagged"]] == ["<test-6>"]


def test_copies_are_found_and_nothing_else(tmp_path, chests):
    counts = {"train": 90, "valid": 10, "test": 30}
    films = placed(chests, counts)
    smaller = np.zeros((64, 64), np.uint8)
    smaller[:, 4:60] = Image.fromarray(films["train", 20]).resize((56, 64), Image.Resampling.BILINEAR)
    noise = np.random.default_rng(0).integers(-6, 7, (64, 64))
    films["test", 1] = films["train", 10]
    films["test", 2] = np.maximum(smaller, 1) * (smaller.any(axis=0))[None].astype(np.uint8)
    films["valid", 3] = np.clip(0.8 * films["train", 30] + 20 + noise, 0, 255).astype(np.uint8)
    films["train", 41] = films["train", 40]
    films["train", 50] = films["test", 20] = np.zeros((64, 64), np.uint8)  # empty, not copies
    built(tmp_path / "b", counts=counts, films=films, size=64)
    numbers = look.look(tmp_path / "b").numbers
    pairs = {tuple(p["image_ids"]): p["verdict"] for p in numbers["closest"] if p["verdict"] != "different"}
    assert pairs == {
        ("<train-10>", "<test-1>"): "identical",
        ("<train-20>", "<test-2>"): "same picture",
        ("<train-30>", "<valid-3>"): "same picture",
    }
    assert numbers["copies_across_splits"] == {"identical": 1, "nearly": 2}
    assert numbers["copies_within_splits"] == 1
    assert any("3 pairs of films in different splits are one picture" in said for said in look_page.warnings(numbers))


def test_closest_pairs_are_those_of_every_pair(monkeypatch):
    monkeypatch.setattr(look_pixels, "_BLOCK", 7)
    rng, k = np.random.default_rng(1), 60
    thumb = rng.integers(0, 256, (k, look_pixels.THUMB, look_pixels.THUMB)).astype(np.uint8)
    blank = np.zeros(k, np.float32)
    pixels = look_pixels.Pixels(np.zeros((k, 64)), blank, blank, blank, blank, blank, blank, thumb, np.arange(k))
    splits, views = np.repeat([0, 1, 2], (30, 13, 17)), np.repeat(["PA"], k)
    found = look_pixels.close_pairs(pixels, views, splits, 1000)
    beyond = thumb.reshape(k, -1) - np.median(thumb.reshape(k, -1), axis=0)
    r = np.corrcoef(beyond)
    wanted = sorted(
        ((max((r[a, b], -a, a) for a in range(k) if splits[a] < splits[b])[::2][::-1], b) for b in range(30, k)),
        key=lambda pair: -pair[0][1],
    )
    assert [(a, b) for a, b, _ in found] == [(a, b) for (a, _), b in wanted]
    np.testing.assert_allclose([value for *_, value in found], [value for (_, value), _ in wanted], atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_outline_encloses_exactly_the_mask(seed):
    mask = np.random.default_rng(seed).random((9, 13)) < (0.1, 0.5, 0.9, 0, 1)[seed]
    turns = np.zeros((9, 14), int)
    for x, start, end in re.findall(r"M(\d+) (\d+)V(\d+)", look_page.outline(mask)):
        turns[int(start) : int(end), int(x)] += 1
    assert ((np.cumsum(turns, axis=1) % 2)[:, :13] == mask).all()
    turns = np.zeros((10, 13), int)
    for start, y, end in re.findall(r"M(\d+) (\d+)H(\d+)", look_page.outline(mask)):
        turns[int(y), int(start) : int(end)] += 1
    assert ((np.cumsum(turns, axis=0) % 2)[:9] == mask).all()


def test_films_of_a_sheet_have_the_state_and_those_with_boxes_come_first(tmp_path):
    _, records = built(tmp_path / "b", boxes=True)
    by_id = {r["image_id"]: r for _, r in records}
    found = look.look(tmp_path / "b", films=4)
    for k, finding in enumerate(CHEXPERT.findings):
        for value, words in look_films.SHOWN.items():
            films = found.sheets[finding][words]
            held = {r["patient_id"] for _, r in records if r["labels"][k] == value}
            assert len(films) == min(4, len(held))
            assert len({by_id[f.image_id]["patient_id"] for f in films}) == len(films)
            for film in films:
                assert by_id[film.image_id]["labels"][k] == value
                assert (film.image == by_id[film.image_id]["image"]).all() and film.mask is None
    boxed = [film for film in found.sheets["Edema"]["positive"] if film.boxes]
    assert {film.image_id for film in boxed} == {"<train-3>", "<valid-3>", "<test-3>"}
    assert found.sheets["Edema"]["positive"][:3] == boxed and boxed[0].boxes == ((2.0, 4.0, 6.0, 6.0),)
    page = look_page.render(found)
    assert page.count("<rect") >= 3 and '<rect x="2.0" y="4.0" width="4.0" height="2.0"/>' in page


def test_masks_are_those_of_the_finding_and_truth_tells_where_nothing_else_does(tmp_path):
    _, records = built(tmp_path / "b", simulated=True)
    by_id = {r["image_id"]: r for _, r in records}
    found = look.look(tmp_path / "b", films=2)
    assert "truth" in found.numbers["build"]["told_by"]
    for k, finding in enumerate(CHEXPERT.findings):
        for value, words in ((1, "positive"), (0, "negative")):
            for film in found.sheets[finding][words]:
                assert by_id[film.image_id]["truth"][k] == value
                assert (film.mask == (by_id[film.image_id]["masks"] >> k & 1).astype(bool)).all()
        assert not found.sheets[finding]["uncertain"]


def evidence(path, rows):
    names = ("study_id", "finding", "state")
    columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    for field in sidecars.EVIDENCE:
        blank = "" if field.type == "string" else 0
        columns.setdefault(field.name, [blank] * len(rows))
    sidecars.write(path, columns, sidecars.EVIDENCE, CHEXPERT)
    return path


def test_reports_tell_where_there_are_reports_and_labels_elsewhere(tmp_path):
    _, records = built(tmp_path / "b")
    k = CHEXPERT.index("Edema")
    said = {r["study_id"]: (-1, 0, 1)[n % 3] for n, (_, r) in enumerate(records) if n % 2}
    path = evidence(tmp_path / "e.parquet", [(study, "Edema", state) for study, state in said.items()])
    found = look.look(tmp_path / "b", path, films=1).numbers
    wanted = collections.Counter(
        (split, STATES[said.get(r["study_id"], -2) if r["has_report"] else int(r["labels"][k])]) for split, r in records
    )
    assert found["findings"]["Edema"] == {s: {w: wanted[s, w] for w in STATES.values()} for s in COUNTS}
    stranger = evidence(tmp_path / "other.parquet", [("nobody", "Edema", 1)])
    with pytest.raises(ValueError, match="no row for any study of the build"):
        look.look(tmp_path / "b", stranger)


def test_pixels_are_sampled_with_the_seed_and_the_page_says_so(tmp_path):
    built(tmp_path / "b")
    first, again, other = (look.look(tmp_path / "b", pixels=10, films=2, seed=seed) for seed in (0, 0, 1))
    assert first.numbers["sampled"] == {"train": 10, "valid": 9, "test": 10}
    assert first.numbers["intensity"]["split"]["train"]["films"] == 10
    assert first.numbers["splits"]["train"]["films"] == 40
    assert look_page.render(first) == look_page.render(again)
    assert first.numbers["intensity"]["split"]["train"] != other.numbers["intensity"]["split"]["train"]
    assert first.numbers["intensity"]["split"]["valid"] == other.numbers["intensity"]["split"]["valid"]
    assert "10 of 40 films in train" in look_page.render(first)
    assert "view LATERAL (1,234)" in look_page.render(first)


@pytest.mark.slow
def test_script_writes_a_page_without_report_text(tmp_path):
    built(tmp_path / "b", bad={("train", 1)})
    command = [sys.executable, "data_prep/look.py", f"--data={tmp_path / 'b'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page, numbers = ((tmp_path / "out" / name).read_text() for name in ("look.html", "look.json"))
    assert CANARY not in page + numbers + done.stdout + done.stderr
    assert json.loads(numbers)["splits"]["train"]["films"] == 39 and re.search(r"train +39", done.stdout)
    assert "&lt;train-0&gt;" in page and "<train-" not in page  # ids are text, whatever they hold
    assert "default-src 'none'" in page and "<script" not in page
    assert not [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if link[0] != "#" and "data:" not in link]
    wrong = [*command[:2], f"--data={tmp_path / 'none'}", command[3]]
    refused = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith("look: ")
