"""The benchmark's pure parts: hospitals, conditions, arms, scores, verdict."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from repgls_jax import findings as findings_lib
from repgls_jax import phantom
from repgls_jax.benchmark import arms, conditions, given, hospital, scores, tables, verdict
from repgls_jax.methods import METHODS
from repgls_jax.policies import PolicyConfig
from repgls_jax.reports import engine

COUNTS = hospital.Counts(train=24, valid=8, test=12)


@pytest.fixture(scope="module")
def config():
    return phantom.PhantomConfig(seed=3, reader_noise=0.25, split=COUNTS.shares())


@pytest.fixture(scope="module")
def told(config):
    return hospital.read(config, hospital.studies(config, COUNTS), engine.Engine(hospital.VOCABULARY))


def test_every_method_has_an_arm_and_every_arm_its_budget():
    known = arms.arms()
    assert {arm.method for arm in known.values()} == set(METHODS)
    for name, arm in known.items():
        trials = arm.trials()
        assert arm.group in arms.GROUPS and arm.words, name
        assert len(trials) == arms.TRIALS == len({tuple(sorted(t.items())) for t in trials}), name
        assert not arm.control or known[arm.control].method.endswith("permuted"), name
        PolicyConfig(**{**arm.policy, "name": arm.method})
    assert set(arms.SHORT) <= set(known)


@pytest.mark.parametrize("name", conditions.CONDITIONS)
@pytest.mark.parametrize("half", conditions.HALVES)
def test_every_condition_is_a_hospital(name, half):
    record = conditions.CONDITIONS[name]
    made = conditions.phantom_of(record, half, 1, COUNTS, conditions.MAIN)
    assert made.evidence == half and record.note
    PolicyConfig(**record.policy, name="hard")


def test_patients_stay_in_one_part_and_films_know_nothing_of_readers(config):
    index = hospital.studies(config, COUNTS)
    labels, patient = hospital.truth(config, index)
    cut = np.cumsum(dataclasses.astuple(COUNTS))[:-1]
    parts = [set(p.tolist()) for p in np.split(patient, cut)]
    assert len(index) == 44 == len(labels)
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    other = dataclasses.replace(config, reader_noise=0.5, hedging=2.0, evidence="independent", mention_only=True)
    assert hospital.films_of(other) == hospital.films_of(config)
    np.testing.assert_array_equal(hospital.images(config, index[:2]), hospital.images(other, index[:2]))
    fields = {f.name for f in dataclasses.fields(phantom.PhantomConfig)}
    assert set(hospital.OF_FILMS) < fields


def test_reports_are_read_as_the_pipeline_reads_them(config, told):
    said, reports, evidence = told
    mentioned = ~np.isnan(said.p)
    assert mentioned.sum() == evidence.num_rows and reports.num_rows == len(said.p)
    np.testing.assert_array_equal(said.state != findings_lib.NOT_MENTIONED, mentioned)
    study = phantom.generate(config, int(hospital.studies(config, COUNTS)[5]))
    np.testing.assert_allclose(said.belief[5], study["belief"], rtol=1e-6)
    assert reports["report"][5].as_py() == study["report"]


def test_a_shifted_lexicon_moves_hedges_alone(told):
    said, truth = told[0], np.zeros(told[0].p.shape, np.int8)
    plain = conditions.columns(conditions.CONDITIONS["main"], said, truth)
    np.testing.assert_array_equal(plain["state"], said.state)
    np.testing.assert_allclose(plain["p"], np.where(said.state == -1, np.clip(said.p, 0.11, 0.89), said.p))
    up = conditions.columns(conditions.CONDITIONS["lexicon_up"], said, truth)
    np.testing.assert_array_equal(up["state"], plain["state"])
    hedged = said.state == findings_lib.UNCERTAIN
    assert hedged.any() and (up["p"][hedged] > plain["p"][hedged] - 1e-6).all()
    np.testing.assert_array_equal(up["p"][~hedged], plain["p"][~hedged])
    exact = conditions.columns(conditions.CONDITIONS["exact"], said, truth)
    np.testing.assert_array_equal(np.isnan(exact["p"][:, 1:]), np.isnan(said.meant[:, 1:]))
    np.testing.assert_array_equal(exact["p"][:, 0], plain["p"][:, 0])


def test_rates_are_those_of_the_arm(told):
    said = told[0]
    read = np.where(np.isnan(said.p), np.nan, 0.25).astype(np.float32)
    made = conditions.columns(conditions.CONDITIONS["main"], said, np.zeros(said.p.shape, np.int8), read)
    known, got = arms.arms(), {}
    for name in ("hard", "expert", "rgn", "permuted", "oracle"):
        arm = known[name]
        got[name] = given.rates(made, arm, PolicyConfig(**arm.policy, name=arm.method), seed=0)
        held = given.columns(made, arm, got[name])
        assert ("rate" in held) == (got[name] is not None)
        assert ("belief" in held) == (name == "oracle") and "read" not in held and "truth" not in held
    assert got["hard"] is None
    mentioned = ~np.isnan(said.p)
    assert (got["rgn"][mentioned] == 0.25).all() and (got["rgn"][~mentioned] == 0).all()
    np.testing.assert_allclose(np.sort(got["permuted"], axis=0), np.sort(got["expert"], axis=0))
    assert (got["permuted"] != got["expert"]).any()
    np.testing.assert_allclose(got["oracle"], np.minimum(0.95, 2 * np.minimum(said.belief, 1 - said.belief)), rtol=1e-5)
    ours = given.groups(said.p)
    assert ours.min() == -1 and ours.max() < given.GROUPS and ((ours == -1) == np.isnan(said.p)).all()


def test_an_arm_that_is_told_what_the_reader_believed_has_nothing_left_to_read(told):
    said = told[0]
    made = conditions.columns(conditions.CONDITIONS["main"], said, np.zeros(said.p.shape, np.int8))
    known = given.believed(made)
    np.testing.assert_array_equal(known["p"], said.belief)
    assert (known["state"] != findings_lib.NOT_MENTIONED).all()
    wanted = np.select([said.belief >= 0.9, said.belief <= 0.1], [1, 0], -1)
    assert (known["state"] == wanted).mean() > 0.999  # but for rounding at .1
    assert np.isnan(made["p"]).any() and {arm for arm, a in arms.arms().items() if a.believed} == {"oracle_likelihood"}


def test_scores_of_a_perfect_and_of_a_useless_model(told):
    rng = np.random.default_rng(0)
    said = told[0]
    truth = (rng.random(said.p.shape) < 0.3).astype(np.int8)
    valid = truth[:20], np.ones((20, 14), bool)
    perfect = np.where(truth == 1, 8.0, -8.0).astype(np.float32)
    row = scores.row(perfect, -perfect, perfect[:20], truth, said.state, said.p, valid)
    assert row["auroc"] == row["rare_auroc"] == row["auroc_plain"] == 1 and row["aurc"] == 0
    assert set(tables.METRICS) <= set(row)
    flat = scores.row(0 * perfect, 0 * perfect, 0 * perfect[:20], truth, said.state, said.p, valid)
    assert flat["auroc"] == 0.5 and flat["risk"][-1] == pytest.approx(1 - truth.mean())
    assert np.isnan(flat["hedge_spearman"])
    assert scores.RARE.sum() == 5


def test_differences_and_intervals_have_an_oracle():
    rng = np.random.default_rng(1)
    values = {name: (0.8 + 0.02 * rng.normal(size=6)).tolist() for name in "abc"}
    draws = {name: 0.8 + 0.01 * rng.normal(size=(6, 400)) for name in "ab"}
    d = verdict.difference(values, draws, "a", "b")
    each = np.array(values["a"]) - np.array(values["b"])
    low, high = stats.ttest_1samp(each, 0).confidence_interval(0.95)
    np.testing.assert_allclose([d.value, *d.seeds], [each.mean(), low, high], rtol=1e-12)
    np.testing.assert_allclose(d.patients, np.quantile((draws["a"] - draws["b"]).mean(0), [0.025, 0.975]))
    shown = tables.differences([d])[1]
    assert d.sign == 0 and shown[0] == "`a` less `b`" and shown[-1] == "not told apart"
    assert shown[1:3] == [f"{each.mean():+.4f}", f"[{low:+.4f}, {high:+.4f}]"]
    assert np.isnan(verdict.difference(values, draws, "a", "c").patients).all()
    assert np.isnan(verdict.t_interval([0.5])).all()


@pytest.mark.parametrize(("shift", "sign"), [(0.1, 1), (-0.1, -1)])
def test_a_clear_difference_is_told(shift, sign):
    rng = np.random.default_rng(2)
    base = 0.8 + 0.001 * rng.normal(size=5)
    values = {"a": (base + shift).tolist(), "b": (base + 0.001 * rng.normal(size=5)).tolist()}
    draws = {"a": np.full((5, 100), 0.8 + shift), "b": np.full((5, 100), 0.8)}
    assert verdict.difference(values, draws, "a", "b").sign == sign


def test_what_is_recovered_is_a_share_of_the_way():
    values = {"rates": [0.86, 0.87], "hard": [0.84, 0.85], "u_ones": [0.80, 0.81], "clean": [0.88, 0.89]}
    draws = {name: np.repeat(np.array(v)[:, None], 60, 1) for name, v in values.items()}
    differences, shares = verdict.claims(values, draws, {"rates": "hard"}, ("u_ones", "hard"))
    assert [d.second for d in differences] == ["hard", "u_ones", "hard"]
    (share,) = shares
    assert (share.start, share.goal) == ("hard", "clean")
    np.testing.assert_allclose([share.value, *share.seeds, *share.patients], 0.5, rtol=1e-9)
    worse = verdict.recovered({**values, "clean": [0.8, 0.8]}, {}, "rates", "hard", "clean")
    assert np.isnan(worse.value) and np.isnan(worse.seeds).all()
