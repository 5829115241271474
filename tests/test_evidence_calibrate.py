import csv
import dataclasses
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.evidence import calibrate, calibrate_page, labels, reliability
from repgls_jax.reports import engine as engine_lib
from repgls_jax.reports import lexicon as lexicon_lib
from repgls_jax.reports import override as override_lib

UNION = findings_lib.UNION
ROOT = pathlib.Path(__file__).parent.parent
LEXICON = lexicon_lib.load()
SENTENCES = (
    "Atelectasis.",
    "Likely atelectasis.",
    "Probable pneumonia.",
    "Possible pneumothorax.",
    "No pleural effusion.",
    "No large pleural effusion.",
    "Possible atelectasis versus pneumonia.",
    "Findings may represent edema.",
    "Heart size is normal.",
    "Borderline heart size.",
    "Cannot exclude consolidation.",
    "Pulmonary vascular congestion.",
    "Likely nodule or mass.",
)


def simulate(seed, cues=300, most=60):
    """Cues of one category with a known P(present | cue): a shifted curve, and scatter about it."""
    rng = np.random.default_rng(seed)
    own = rng.choice([0.3, 0.5, 0.7, 0.8], cues)
    mean = special.expit(special.logit(own) - 0.8)
    truth = rng.beta(12 * mean, 12 * (1 - mean))
    n = rng.integers(0, most, cues)
    made = calibrate.Cues(tuple(f"possible:{i}" for i in range(cues)), ("possible",) * cues, own)
    return made, truth, n, rng.binomial(n, truth)


def test_the_fit_is_the_posterior_of_weighted_draws_from_the_prior():
    own, n, k = np.array([0.5, 0.8, 0.8]), np.array([4, 40, 0]), np.array([0, 20, 0])
    fitted = calibrate.fit(calibrate.Cues(("c:a", "c:b", "c:d"), ("c",) * 3, own), n, k)
    rng = np.random.default_rng(0)
    shift, strength = rng.normal(0, 1.5, 400_000), np.exp(rng.normal(np.log(10), 1.5, 400_000))
    shift, strength = (v[(strength > 1) & (strength < 1000)] for v in (shift, strength))
    mean = special.expit(special.logit(own) + shift[:, None])
    theta = rng.beta(mean * strength[:, None], (1 - mean) * strength[:, None])
    weight = np.exp(stats.binom.logpmf(k, n, theta.clip(1e-12, 1 - 1e-12)).sum(axis=1))
    weight /= weight.sum()
    np.testing.assert_allclose(fitted.p, weight @ theta, atol=0.01)
    assert fitted.shift["c"] == pytest.approx(weight @ shift, abs=0.05)
    assert fitted.strength["c"] == pytest.approx(np.exp(weight @ np.log(strength)), rel=0.08)
    spread = np.sqrt(weight @ theta**2 - (weight @ theta) ** 2)
    for i in range(3):
        total = fitted.p[i] * (1 - fitted.p[i]) / spread[i] ** 2 - 1
        ends = stats.beta.ppf([0.025, 0.975], fitted.p[i] * total, (1 - fitted.p[i]) * total)
        np.testing.assert_allclose([fitted.low[i], fitted.high[i]], ends, atol=0.02)


def test_intervals_hold_the_true_share_as_often_as_they_say():
    inside = total = jeffreys = several = 0
    for seed in range(4):
        cues, truth, n, k = simulate(seed)
        fitted = calibrate.fit(cues, n, k)
        inside += int(((fitted.low <= truth) & (truth <= fitted.high)).sum())
        total += len(truth)
        low, high = reliability.jeffreys(k, n)
        some = n >= 10
        jeffreys += int(((low <= truth) & (truth <= high))[some].sum())
        several += int(some.sum())
    assert stats.binomtest(inside, total, 0.95).pvalue > 1e-3, inside / total
    assert stats.binomtest(jeffreys, several, 0.95).pvalue > 1e-3, jeffreys / several


def test_shrinkage_beats_raw_shares_and_the_lexicon_where_labels_are_few():
    cues, truth, n, k = simulate(7, most=6)
    fitted = calibrate.fit(cues, n, k)
    rare = n > 0
    error = np.mean((fitted.p - truth)[rare] ** 2)
    assert error < 0.5 * np.mean((k[rare] / n[rare] - truth[rare]) ** 2)
    assert error < 0.5 * np.mean((cues.own - truth)[rare] ** 2)
    assert fitted.shift["possible"] == pytest.approx(-0.8, abs=0.25)


def test_many_labels_are_followed_and_a_cue_without_any_moves_with_its_category():
    cues = calibrate.Cues(("p:a", "p:b", "p:most", "q:a"), ("p", "p", "p", "q"), np.array([0.5, 0.5, 0.7, 0.9]))
    fitted = calibrate.fit(cues, np.array([20_000, 1, 0, 0]), np.array([4_000, 1, 0, 0]))
    assert fitted.p[0] == pytest.approx(0.2, abs=0.005)
    assert fitted.p[0] < fitted.p[1] < 1  # one label moves a rare cue, but not to its raw share of 1
    assert fitted.p[2] < 0.6 and fitted.p[2] > fitted.p[0]
    assert fitted.p[3] == 0.9 and np.isnan(fitted.low[3])  # nothing is known of its category
    assert (fitted.low < fitted.p)[:3].all() and (fitted.p < fitted.high)[:3].all()


@given(*(st.floats(0, 1) for _ in range(3)), st.floats(0.001, 0.999))
def test_readings_move_along_in_order_and_the_cues_own_exactly(p, q, own, new):
    assert override_lib.move(own, own, new) == new
    low, high = sorted((p, q))
    a, b = override_lib.move(low, own, new), override_lib.move(high, own, new)
    assert 0 <= a <= b + 2e-6 and b <= 1
    assert override_lib.move(own, own, own or 0.001) == (own or 0.001)
    if 0 < own < 1:  # nothing changes where the override says what the lexicon says
        assert override_lib.move(p, own, own) == pytest.approx(p, abs=2e-6)


def study_rows(override=None, times=40):
    """Evidence of invented reports, a sentence or two each: study -> list of Evidence."""
    reader = engine_lib.Engine(UNION, LEXICON, override)
    texts = [SENTENCES[i % len(SENTENCES)] + " " * (i // len(SENTENCES) % 2) for i in range(times * len(SENTENCES))]
    return {f"canary{i}": reader.read({"impression": text}) for i, text in enumerate(texts)}, reader.version


def write_evidence(path, studies, version):
    columns = {name: [] for name in sidecars.EVIDENCE.names}
    for study, found in studies.items():
        for e in found:
            known = {"study_id": study, "finding": e.finding, "state": e.state, "p": e.p, "cue": e.cue}
            known["version"] = version
            for name in columns:
                text = sidecars.EVIDENCE.field(name).type == "string"
                columns[name].append(known.get(name, "" if text else 0))
    sidecars.write(path, columns, sidecars.EVIDENCE, UNION)
    return path


def write_labels(path, studies, seed=0):
    """Labels drawn with P = .6 p + .05, blank for one mention in ten."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["study_id", *UNION.findings, "age"])
        writer.writeheader()
        for study, found in studies.items():
            row = {"study_id": study, "age": 50, **dict.fromkeys(UNION.findings, 0)}
            row |= {e.finding: "" if rng.random() < 0.1 else int(rng.random() < 0.6 * e.p + 0.05) for e in found}
            writer.writerow(row)
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    studies, version = study_rows()
    return write_evidence(folder / "evidence.parquet", studies, version), write_labels(folder / "labels.csv", studies)


def test_an_override_goes_through_the_engine_as_it_was_fitted(site, tmp_path):
    result = calibrate_page.run(*site, tmp_path, replicates=40)
    override = override_lib.load(tmp_path / "lexicon_override.csv", LEXICON)
    fitted = {row["cue"]: row["p"] for row in result["cues"]}
    before, _ = study_rows(times=1)
    after, version = study_rows(override, times=1)
    own, exact = override_lib.own_p(LEXICON), 0
    for study, found in after.items():
        others = []
        for e, old in zip(found, before[study], strict=True):
            assert old.said is None and e.state == old.state and e.cue == old.cue
            if e.finding == findings_lib.NO_FINDING:
                normal = e
                continue
            key = override_lib.key(old.cue, old.p)
            others.append(e.p)
            if key not in fitted:  # no plain use of its category has a label
                assert e == old
                continue
            assert e.said == old.p
            if abs(old.p - own[key]) < 1e-6:
                exact += 1
                assert e.p == fitted[key]
            else:
                assert e.p == override_lib.move(old.p, own[key], fitted[key]) != old.p
        assert normal.p == pytest.approx(1 - max(others), abs=1e-6)
    assert exact > 8
    assert version.endswith(f"+override.{override.digest}")
    assert pickle.loads(pickle.dumps(override)) == override  # noqa: S301  (our own object)
    # Calibrating what is already calibrated would measure the override, not the wording.
    again = write_evidence(tmp_path / "again.parquet", after, version)
    with pytest.raises(ValueError, match="made with an override"):
        calibrate_page.run(again, site[1], tmp_path)


def test_certainties_move_in_the_scores_as_they_do_in_the_engine(site, tmp_path):
    mentions, _ = labels.join(*site, LEXICON)
    n, k = calibrate.counts(mentions)
    rows = calibrate.table(mentions.cues, calibrate.fit(mentions.cues, n, k), n, k)
    text = "cue,p\n" + "".join(f"{row['cue']},{row['p']}\n" for row in rows)
    override = override_lib.parse(text, LEXICON, "test")
    stay = dict(zip(mentions.cues.ids, mentions.cues.own, strict=True))
    new = np.array([override.moves.get(name, (0, p))[1] for name, p in stay.items()])
    studies, _ = study_rows(override)
    by_pair = {}
    for found in studies.values():
        for e in found:
            said = e.p if e.said is None else e.said
            by_pair[override_lib.key(e.cue, said), round(said, 6)] = e.p
    moved = calibrate.moved(mentions, new)
    keys = [(mentions.cues.ids[c], round(p, 6)) for c, p in zip(mentions.cue, mentions.p, strict=True)]
    np.testing.assert_allclose(moved, [by_pair[key] for key in keys], atol=2e-6)


def test_the_default_engine_is_untouched():
    plain, override = engine_lib.Engine(UNION, LEXICON), override_lib.parse("cue,p\nbare,0.9\n", LEXICON, "test")
    other = engine_lib.Engine(UNION, LEXICON, override)
    assert "override" not in plain.version and plain.version != other.version
    changed = other.read({"impression": "Atelectasis. No effusion."})
    kept = {e.finding: e for e in plain.read({"impression": "Atelectasis. No effusion."})}
    assert {e.finding: e.p for e in changed} == {"No Finding": 0.1, "Atelectasis": 0.9, "Pleural Effusion": 0.0}
    assert changed[2] == kept["Pleural Effusion"]  # cues that the override does not name stay


def test_every_fault_of_an_override_is_listed_at_once(tmp_path):
    some = next(c.id for c in LEXICON.cues.values() if c.category == "probable")
    text = f"cue,p\n{some},0.7\n{some},0.6\nnosuch:cue,0.5\nbare,1\nbare:sign,x\n"
    with pytest.raises(ValueError) as error:
        override_lib.parse(text, LEXICON, "mine.csv")
    said = str(error.value)
    assert "4 faults" in said and "mine.csv" in said
    assert all(part in said for part in ("line 3", "stands twice", "line 4", "nosuch:cue", "line 5", "line 6", "'x'"))
    with pytest.raises(ValueError, match="lacks the columns"):
        override_lib.parse("id,value\n", LEXICON, "mine.csv")
    with pytest.raises(ValueError, match="no rows"):
        override_lib.parse("cue,p\n", LEXICON, "mine.csv")
    with pytest.raises(FileNotFoundError, match="none"):
        override_lib.load(tmp_path / "none.csv", LEXICON)
    (tmp_path / "large.csv").write_bytes(b"cue,p\n" + b"x" * override_lib.MAX_BYTES)
    (tmp_path / "wide.csv").write_text("cue,p\n" + "x" * 200_000)
    with pytest.raises(ValueError, match="plain CSV"):
        override_lib.load(tmp_path / "wide.csv", LEXICON)
    with pytest.raises(ValueError, match="bytes"):
        override_lib.load(tmp_path / "large.csv", LEXICON)


def test_labels_are_read_by_alias_and_their_faults_hold_no_value(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffstudy_id,Effusion,Pleural_Thickening,remark\r\na,1,,CANARY\r\nb,0.0, 1.0 ,\r\n", "utf-8")
    ids, names, values, others = labels.read(path)
    assert (ids, names, others) == (["a", "b"], ("Pleural Effusion", "Pleural Thickening"), ["remark"])
    np.testing.assert_array_equal(values, [[1, -1], [0, 1]])
    for text, said in (
        ("study_id,Edema\na,CANARY\nb,-1\n", "line 2, Edema; line 3, Edema"),
        ("study_id,Edema\na,1\na,0\n", "2 rows of 1 studies"),
        ("study_id,Edema,Mass\na,1,0,CANARY\nb,1\n", "line 2, 4 cells under 3 names; line 3, 2 cells"),
        ('study_id,Edema,remark\na,1,"CANARY\nb,1,\nc,1,\n', "plain CSV"),
        ("study_id,Edema,study_id\na,1,b\n", "expected one study_id"),
        ("study_id,Effusion,Pleural Effusion\na,1,1\n", "two columns for Pleural Effusion"),
        ("study_id,impression\na,CANARY\n", "expected one study_id and one for each finding"),
        ("", "expected one study_id"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said) as error:
            labels.read(path)
        assert "CANARY" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        labels.read(tmp_path / "none.csv")


def test_mentions_are_counted_with_their_labels(tmp_path):
    studies, version = study_rows(times=1)
    evidence = write_evidence(tmp_path / "e.parquet", studies, version)
    texts = dict(zip(studies, SENTENCES, strict=True))
    bare, likely = (next(s for s, t in texts.items() if t == want) for want in SENTENCES[:2])
    path = tmp_path / "labels.csv"
    path.write_text(f"study_id,Atelectasis,Edema,age\n{bare},1,1,3\n{likely},,0,4\nelse,1,1,5\n")
    mentions, counted = labels.join(evidence, path, LEXICON)
    assert mentions.cues.ids[mentions.cue[0]] == "bare" and mentions.present.tolist() == [1]
    assert counted == {
        "studies": 2,
        "labelled_only": 1,
        "read_only": len(SENTENCES) - 2,
        "mentions": 1,
        "unlabelled": 1,
        "silent": 2,
        "silent_present": 1,
        "passed_over": ["age"],
    }
    # Only uses at a cue's own p are fitted; a shared or qualified one is scored alone.
    other = {s: t for s, t in texts.items() if "versus" in t or "No large" in t}
    path.write_text("study_id,Pneumonia,Effusion\n" + "".join(f"{s},1,1\n" for s in (*other, likely)))
    mentions, _ = labels.join(evidence, path, LEXICON)
    assert mentions.plain.tolist() == (mentions.p.round(6) == mentions.cues.own[mentions.cue]).tolist()
    assert 0 < mentions.plain.sum() < len(mentions.p)
    for among in (None, np.ones(len(mentions.p), bool)):
        assert calibrate.counts(mentions, among)[0].sum() == mentions.plain.sum()
    path.write_text("study_id,Edema\nelse,1\n")
    with pytest.raises(ValueError, match="no mention"):
        labels.join(evidence, path, LEXICON)
    path.write_text(f"study_id,normal\n{bare},1\n")
    with pytest.raises(ValueError, match="only No Finding"):
        labels.join(evidence, path, LEXICON)
    old = write_evidence(tmp_path / "old.parquet", studies, version.replace(LEXICON.digest, "0" * len(LEXICON.digest)))
    with pytest.raises(ValueError, match="another lexicon"):
        labels.join(old, path, LEXICON)


def test_levels_of_a_model_stand_for_their_mean_and_all_count(tmp_path):
    studies, _ = study_rows(times=4)
    levels = {}
    for i, (study, found) in enumerate(studies.items()):
        p = 0.7 if i % 2 else 0.9
        levels[study] = [dataclasses.replace(e, cue="level:likely", p=p) for e in found if e.finding == "Atelectasis"]
    evidence = write_evidence(tmp_path / "e.parquet", levels, "model")
    mentions, _ = labels.join(evidence, write_labels(tmp_path / "l.csv", studies), LEXICON)
    at = mentions.cues.ids.index("level:likely")
    assert mentions.plain.all() and mentions.cues.category[at] == "level"
    assert mentions.cues.own[at] == pytest.approx(mentions.p.mean())
    (tmp_path / "lexicon_override.csv").write_text("of a calibration before")
    result = calibrate_page.run(evidence, tmp_path / "l.csv", tmp_path, replicates=40)
    assert [row["cue"] for row in result["cues"]] == ["level:likely"]
    assert not (tmp_path / "lexicon_override.csv").exists()
    assert "no override is written" in calibrate_page.text(result)


def test_out_of_fold_certainties_have_not_seen_their_own_labels(site):
    mentions, _ = labels.join(*site, LEXICON)
    first = calibrate.out_of_fold(mentions)
    one = mentions.study == mentions.study[0]
    flipped = np.where(one, 1 - mentions.present, mentions.present).astype(np.int8)
    second = calibrate.out_of_fold(dataclasses.replace(mentions, present=flipped))
    np.testing.assert_array_equal(first[one], second[one])
    assert (first != second).any()


def test_a_cue_that_depends_on_the_finding_is_named(site):
    mentions, _ = labels.join(*site, LEXICON)
    where = mentions.finding == mentions.findings.index("Atelectasis")
    bare = mentions.cue == mentions.cues.ids.index("bare")
    study = np.arange(60)
    finding = np.where(study % 2, mentions.findings.index("Atelectasis"), mentions.findings.index("Edema"))
    assert (where & bare).any()
    ones = np.ones(60, bool)
    parts = {"finding": finding, "study": study, "p": np.ones(60), "plain": ones, "hedged": ~ones}
    cue = np.full(60, mentions.cues.ids.index("bare"))
    split = dataclasses.replace(mentions, cue=cue, present=(study % 2).astype(np.int8), **parts)
    assert calibrate.uneven(split) == [("bare", "Edema", 0.0, "Atelectasis", 1.0)]
    even = dataclasses.replace(split, present=(study // 2 % 2).astype(np.int8))
    assert calibrate.uneven(even) == []


def test_scores_agree_with_scikit_learn_and_a_plain_loop():
    rng = np.random.default_rng(3)
    p = rng.choice([0.0, 0.05, 0.3, 0.5, 0.75, 1.0], 500)
    y = (rng.random(500) < 0.8 * p).astype(int)
    better = 0.8 * p
    study = rng.integers(0, 200, 500)
    (one, two), brier, ece = reliability.score([p, better], y, study, replicates=200)
    assert one.brier.value == pytest.approx(metrics.brier_score_loss(y, p))
    expected = sum(
        abs(p[use].mean() - y[use].mean()) * use.mean()
        for b in range(10)
        if (use := (p * 10 + 1e-6).astype(int).clip(max=9) == b).any()
    )
    assert one.ece.value == pytest.approx(expected)
    assert brier.value == pytest.approx(two.brier.value - one.brier.value)
    assert brier.low < brier.value < brier.high < 0 and ece.high < 0
    (alone,), *_ = reliability.score([p], y, np.arange(500), replicates=2_000)
    half = 1.96 * ((p - y) ** 2).std() / np.sqrt(500)
    assert (alone.brier.high - alone.brier.low) / 2 == pytest.approx(half, rel=0.1)
    low, high = reliability.jeffreys(np.array([0, 3, 7]), np.array([7, 7, 7]))
    assert (low[0], high[2]) == (0, 1) and high[0] == pytest.approx(stats.beta.ppf(0.975, 0.5, 7.5))
    assert one.brier.low < one.brier.value < one.brier.high
    assert one.n.sum() == 500 and (one.low <= one.share).all() and (one.share <= one.high).all()
    _, same, nothing = reliability.score([p, p], y, study, replicates=40)
    assert (same.low, same.high, nothing.low, nothing.high) == (0, 0, 0, 0)
    # Rows of one study move together: copies of a study's rows are no new information.
    (wide,), *_ = reliability.score([np.repeat(p, 4)], np.repeat(y, 4), np.repeat(study, 4), replicates=200)
    assert wide.brier.high - wide.brier.low == pytest.approx(one.brier.high - one.brier.low, rel=1e-6)


def test_the_command_writes_its_files_and_the_page_names_no_study(site, tmp_path):
    script = ROOT / "data_prep/calibrate_hedges.py"
    flags = [f"--evidence={site[0]}", f"--labels={site[1]}", f"--output={tmp_path}", "--replicates=40"]
    done = subprocess.run([sys.executable, script, *flags], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Brier" in done.stdout and "canary" not in done.stdout + done.stderr
    page = (tmp_path / "calibration.html").read_text()
    assert "canary" not in page and "<script" not in page and "<svg" in page
    with (tmp_path / "lexicon_override.csv").open() as file:
        assert tuple(next(csv.reader(file))) == override_lib.COLUMNS
    assert "canary" not in (tmp_path / "calibration.json").read_text()
    command = [sys.executable, script, flags[0], "--labels=none", flags[2]]
    failed = subprocess.run(command, check=False, capture_output=True)
    assert failed.returncode == 1 and b"calibrate_hedges: labels none" in failed.stderr
