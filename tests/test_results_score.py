"""Scores, tables, calibration."""

import json

import jax
import numpy as np
import pytest
from scipy import optimize

from repgls_jax.findings import Vocabulary
from repgls_jax.results import calibration, score, table

VOCABULARY = Vocabulary("four", 1, ("Edema", "Fracture", "Pneumonia", "Nodule"))
N = 60


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = (rng.random((N, 4)) < 0.4).astype(np.int8)
    p = (1 / (1 + np.exp(-rng.normal(size=(N, 4)) - labels))).astype(np.float32)
    mask = rng.random((N, 4)) < 0.9
    labels[:, 1], mask[:, 2] = 0, False  # Fracture: no positives. Pneumonia: no labels.
    labels[0, 3], mask[0, 3] = -2, False  # A state that must never be read.
    return p, labels, mask, [f"p{i // 2}" for i in range(N)]


@pytest.fixture(scope="module")
def results(case):
    return score.score(*case, VOCABULARY, replicates=100)


def test_results_are_json_and_repeat(case, results):
    text = json.dumps(results, allow_nan=False)
    assert text == json.dumps(score.score(*case, VOCABULARY, replicates=100), allow_nan=False)
    other = score.score(*case, VOCABULARY, replicates=100, seed=1)
    assert other["findings"]["Edema"]["auroc"]["value"] == results["findings"]["Edema"]["auroc"]["value"]
    assert other["findings"]["Edema"]["auroc"]["low"] != results["findings"]["Edema"]["auroc"]["low"]


def test_counts_and_what_is_not_defined(case, results):
    _, labels, mask, _ = case
    rows = results["findings"]
    assert results["images"] == N and results["patients"] == N // 2
    for j, finding in enumerate(VOCABULARY.findings):
        assert rows[finding]["n"] == mask[:, j].sum()
        assert rows[finding]["positives"] == (labels[:, j] * mask[:, j]).sum()
    empty = {"value": None, "low": None, "high": None, "replicates": 0}
    assert rows["Fracture"]["auroc"] == rows["Pneumonia"]["auroc"] == rows["Pneumonia"]["brier"] == empty
    assert rows["Fracture"]["brier"]["value"] is not None
    assert results["curves"]["Fracture"]["roc"] is None and results["curves"]["Pneumonia"]["reliability"] is None
    assert (results["mean"]["auroc"]["findings"], results["mean"]["brier"]["findings"]) == (2, 3)
    both = [rows[f]["auroc"]["value"] for f in ("Edema", "Nodule")]
    assert results["mean"]["auroc"]["value"] == pytest.approx(np.mean(both))
    for entry in (rows["Edema"]["auroc"], results["mean"]["auroc"]):
        assert entry["low"] < entry["value"] < entry["high"] and entry["replicates"] == 100


def test_without_replicates_there_are_no_intervals(case):
    results = score.score(*case, VOCABULARY, replicates=0)
    assert results["mean"]["auroc"]["low"] is None
    assert "[" not in table.format_text(results)


def test_bad_input_is_refused_with_everything_that_is_wrong(case):
    p, labels, mask, ids = case
    with pytest.raises(ValueError, match=r"probabilities has the shape \(60, 3\); expected \(60, 4\).*dtype int8"):
        score.score(p[:, :3], labels, mask.astype(np.int8), ids, VOCABULARY)
    with pytest.raises(ValueError, match=r"1 labels that count are neither 0 nor 1, the first -1"):
        score.score(
            p,
            np.where(np.arange(N)[:, None] == np.argmax(mask[:, 0]), [[-1, 0, 0, 0]], labels * 0),
            mask,
            ids,
            VOCABULARY,
        )
    with pytest.raises(ValueError, match=r"outside \[0, 1\], the first .*sigmoid"):
        score.score(p * 5, labels, mask, ids, VOCABULARY)
    with pytest.raises(ValueError, match="outside"):
        score.score(p * np.nan, labels, mask, ids, VOCABULARY)
    with pytest.raises(ValueError, match="no images"):
        score.score(p[:0], labels[:0], mask[:0], [], VOCABULARY)


def test_scoring_promotes_no_dtype_and_no_rank(case):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        empty = score.score(case[0], case[1], case[2] & False, case[3], VOCABULARY, replicates=0)
    assert empty["mean"]["auroc"] == {"value": None, "low": None, "high": None, "replicates": 0, "findings": 0}
    assert "Mean of 0 findings" in table.format_text(empty)


def test_tables_hold_every_finding_and_say_what_is_missing(results):
    text, markdown = table.format_text(results), table.format_markdown(results)
    for finding in VOCABULARY.findings:
        assert finding in text and f"| {finding} |" in markdown
    for made in (text, markdown):
        assert "n/a (0 positives)" in made and "n/a (no labels)" in made and "Mean of 2 findings" in made
        assert "nan" not in made.lower().replace("n/a", "") and "(3)" in made
    entry = results["findings"]["Edema"]["auroc"]
    assert f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}
    assert text.splitlines()[0].index("AUROC") == text.splitlines()[2].index(f"{entry['value']:.3f}")


def test_temperature_is_the_minimum_of_the_likelihood():
    rng = np.random.default_rng(5)
    true = rng.normal(size=(2000, 3)) * 1.5
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.int8)
    logits, mask = (true * np.array([3.0, 1.0, 0.5])).astype(np.float32), rng.random(true.shape) < 0.8

    def likelihood(a, j):
        z, y = logits[mask[:, j], j].astype(np.float64), labels[mask[:, j], j]
        return np.logaddexp(0, a * z).sum() - (y * a * z).sum()

    found = calibration.temperature(logits, labels, mask, per_finding=True)
    for j in range(3):
        best = optimize.minimize_scalar(
            likelihood, bounds=(0.05, 10), method="bounded", args=(j,), options={"xatol": 1e-9}
        )
        assert float(found[j]) == pytest.approx(1 / best.x, rel=1e-3)
    shared = calibration.temperature(logits, labels, mask)
    everything = optimize.minimize_scalar(
        lambda a: sum(likelihood(a, j) for j in range(3)), bounds=(0.05, 10), method="bounded", options={"xatol": 1e-9}
    )
    np.testing.assert_allclose(shared, 1 / everything.x, rtol=1e-3)


def test_temperature_stays_in_bounds_and_is_one_without_labels():
    logits, labels = np.array([[-2.0, 2.0, 1.0], [2.0, -2.0, 1.0]], np.float32), np.array([[0, 0, 0], [1, 1, 1]])
    mask = np.array([[True, True, False], [True, True, False]])
    found = np.asarray(calibration.temperature(jax.numpy.asarray(logits), labels, mask, per_finding=True))
    # Separable labels: as cold as float32 probabilities can tell. Contradicted ones: the hottest there is.
    assert 0.01 <= found[0] < 0.1
    np.testing.assert_allclose(found[1:], [100, 1], rtol=1e-5)
