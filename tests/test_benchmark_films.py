"""Real films under a simulated reader: the reader is calibrated, folds keep patients together, runs are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repgls_jax import findings
from repgls_jax.benchmark import crossvalidation, films
from repgls_jax.benchmark.runs import Schedule
from repgls_jax.train.journal import Journal


@pytest.mark.parametrize("prevalence", [0.05, 0.3])
def test_the_reader_is_calibrated_and_errs_as_its_hedges_say(prevalence):
    random = np.random.default_rng(0)
    truth = (random.random((400_000, 1)) < prevalence).astype(np.int8)
    told = films.read(truth, films.Reading(distance=1.5, silence=0.0), 1)
    belief = told["belief"][:, 0]
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (belief >= low) & (belief < low + 0.1)
        error = 4 * np.sqrt(0.25 / inside.sum())
        assert abs(truth[inside, 0].mean() - belief[inside].mean()) < error
    assert set(np.unique(told["p"])) == set(films.LEVELS.astype(np.float32))


def test_states_follow_the_wording_and_silence_falls_on_what_is_denied():
    truth = np.zeros((5_000, 2), np.int8)
    truth[:1_000, 0] = 1
    told = films.read(truth, films.Reading(silence=1.0), 0)
    state, p = told["state"], told["p"]
    assert np.array_equal(np.isnan(p), state == findings.NOT_MENTIONED)
    assert np.all(p[state == findings.POSITIVE] >= 0.9)
    assert np.all((p[state == findings.UNCERTAIN] > 0.1) & (p[state == findings.UNCERTAIN] < 0.9))
    assert not np.any(state == findings.NEGATIVE)
    assert np.any(films.read(truth, films.Reading(silence=0.0), 0)["state"] == findings.NEGATIVE)


@given(st.integers(2, 6), st.integers(0, 2**31), st.integers(6, 40))
def test_a_patient_is_in_one_fold(count, seed, patients):
    ids = np.random.default_rng(seed).integers(0, patients, 200).astype(str)
    if len(np.unique(ids)) < count:
        return
    fold = films.folds(ids, count, seed)
    assert set(fold) == set(range(count))
    assert all(len(set(fold[ids == one])) == 1 for one in np.unique(ids))


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="2 patients cannot be dealt into 3 folds"):
        films.folds(np.array(["a", "b", "a"]), 3, 0)


@pytest.mark.slow
def test_every_film_is_predicted_out_of_fold_and_what_is_done_is_kept(tmp_path):
    random = np.random.default_rng(0)
    truth = (random.random((48, 2)) < 0.4).astype(np.int8)
    images = random.integers(0, 255, (48, 32, 32, 1), np.uint8)
    patients = np.repeat(np.arange(24), 2).astype(str)
    plan = crossvalidation.Plan("tiny/16", Schedule(1, 8), 2, films.Reading())
    told = crossvalidation.out_of_fold(plan, "permuted", 0, images, truth, patients, tmp_path, Journal(None, None))
    assert told.shape == truth.shape and np.all((told > 0) & (told < 1))
    made = sorted(tmp_path.glob("*.npy"))
    assert len(made) == 2
    again = crossvalidation.out_of_fold(plan, "permuted", 0, images * 0, truth, patients, tmp_path, Journal(None, None))
    assert np.array_equal(told, again)
    for name in ("rgn", "nosuch"):
        with pytest.raises(ValueError, match=name):
            crossvalidation.out_of_fold(plan, name, 0, images, truth, patients, tmp_path, Journal(None, None))
