"""Scores of maps against cases worked out by hand, an oracle in numpy, and chance."""

import numpy as np
import pytest

from repgls_jax.saliency import scores, summary


def one(values, mask):
    found = scores.score(np.asarray(values, np.float32)[None], np.asarray(mask, bool)[None])
    return {name: np.asarray(x)[0] for name, x in found.items()}


def test_cases_worked_out_by_hand():
    values = np.zeros((2, 5))
    values[0] = [5, 4, 3, 2, 1]
    mask = np.zeros((2, 5))
    mask[0, 1:4] = 1
    found = one(values, mask)
    assert found["pointing"] == 0  # the highest is beside the lesion
    assert found["energy"] == pytest.approx(9 / 15)
    # The three highest are 5, 4, 3: two of them inside, three in the lesion, four in either.
    assert found["iou_area"] == pytest.approx(2 / 4)
    # Half of the ten pixels are the five of the first row.
    assert found["iou"][scores.SHARES.index(0.5)] == pytest.approx(3 / 5)
    assert found["empty"] == 0
    # Two that tie for the highest, one of them inside.
    values[0] = [4, 4, 0, 0, 0]
    found = one(values, mask)
    assert found["pointing"] == pytest.approx(1 / 2)
    assert found["energy"] == pytest.approx(1 / 2)
    # One more of the eight zeros, of which two are inside: 1 + 2/8 inside of 3 + 3.
    assert found["iou_area"] == pytest.approx(1.25 / (6 - 1.25))


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_a_map_that_is_the_same_everywhere_scores_what_chance_does(level):
    mask = np.zeros((10, 10))
    mask[:2, :5] = 1
    found = one(np.full((10, 10), level), mask)
    for metric in ("pointing", "energy"):
        assert found[metric] == pytest.approx(0.1)
    assert found["iou_area"] == pytest.approx(1 / 19)
    assert found["empty"] == (level == 0)


def test_the_lesion_itself_scores_one():
    mask = np.random.default_rng(0).random((12, 12)) < 0.2
    found = one(mask, mask)
    for metric in ("pointing", "energy", "iou_area"):
        assert found[metric] == pytest.approx(1, abs=1e-6)


def test_scores_are_those_of_numpy():
    rng = np.random.default_rng(1)
    values, masks = rng.random((6, 9, 9)), rng.random((6, 9, 9)) < 0.3
    found = scores.score(values, masks)
    for i in range(6):
        order = np.argsort(-values[i].ravel())
        inside = masks[i].ravel()[order]
        assert found["pointing"][i] == inside[0]
        assert found["energy"][i] == pytest.approx(values[i][masks[i]].sum() / values[i].sum(), abs=1e-5)
        wanted = []
        for share in scores.SHARES:
            count = max(1, round(share * 81))
            hit = inside[:count].sum()
            wanted.append(hit / (count + inside.sum() - hit))
        np.testing.assert_allclose(found["iou"][i], wanted, atol=1e-6)


def scored(seed=0, m=60):
    rng = np.random.default_rng(seed)

    def row(shift):
        base = {name: np.clip(rng.random(m) + shift, 0, 1) for name in ("pointing", "iou_area", "energy")}
        return base | {"iou": rng.random((m, len(scores.SHARES))) + shift, "empty": np.zeros(m)}

    return summary.Scored(rng.integers(0, 2, m), rng.integers(0, 20, m), {"a": row(0.3), "prior": row(0.0)})


def test_summary_is_a_plain_mean_and_its_interval_draws_patients():
    pairs = scored()
    shares = summary.choose_shares(pairs, 3)
    found = summary.summarise(pairs, shares, ["X", "Y", "Z"], 500, seed=3)
    assert list(found["findings"]) == ["X", "Y"]  # no film shows Z
    x = pairs.finding == 0
    entry = found["findings"]["X"]["rows"]["a"]
    assert entry["energy"]["value"] == pytest.approx(pairs.rows["a"]["energy"][x].mean())
    best = pairs.rows["a"]["iou"][x].mean(axis=0)
    assert entry["share"] == scores.SHARES[best.argmax()]
    assert entry["iou"]["value"] == pytest.approx(best.max())
    less = entry["energy"]["less_prior"]
    gap = pairs.rows["a"]["energy"][x].mean() - pairs.rows["prior"]["energy"][x].mean()
    assert less["value"] == pytest.approx(gap)
    assert less["low"] < gap < less["high"]
    # By hand: whole patients with replacement.
    rng, patients = np.random.default_rng(0), np.unique(pairs.patient)
    means = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero((pairs.patient == p) & x) for p in rng.choice(patients, len(patients))])
        means.append(pairs.rows["a"]["energy"][rows].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert entry["energy"]["low"] == pytest.approx(low, abs=0.03)
    assert entry["energy"]["high"] == pytest.approx(high, abs=0.03)
    both = [found["findings"][name]["rows"]["a"]["pointing"]["value"] for name in "XY"]
    assert found["mean"]["rows"]["a"]["pointing"]["value"] == pytest.approx(np.mean(both))


def test_one_patient_drawn_whole_leaves_no_spread():
    pairs = scored()
    alone = summary.Scored(pairs.finding, np.zeros(60, int), pairs.rows)
    found = summary.summarise(alone, summary.choose_shares(alone, 2), ["X", "Y"], 100)
    entry = found["findings"]["X"]["rows"]["a"]["pointing"]
    assert entry["low"] == pytest.approx(entry["value"]) == entry["high"]


def test_tables_have_every_finding_and_row():
    pairs = scored()
    found = summary.summarise(pairs, summary.choose_shares(pairs, 2), ["X", "Y"], 0)
    tables = summary.tables(found, {"a": "A", "prior": "Prior"})
    assert set(tables) == set(summary.METRICS) == set(summary.TITLES)
    assert [row[0] for row in tables["pointing"]] == ["Finding", "X", "Y", "Mean of 2"]
    assert "[" not in tables["pointing"][1][2]  # no bootstraps, no interval
    text = summary.markdown(found, {"a": "A", "prior": "Prior"}, ["Said first."])
    assert text.startswith("Said first.\n\n## Pointing game")


def test_joined_parts_keep_their_pairs():
    a, b = scored(0), scored(1, 7)
    both = summary.join([a, b])
    assert len(both.finding) == len(both.patient) == 67
    assert both.rows["a"]["iou"].shape == (67, len(scores.SHARES))
    np.testing.assert_array_equal(both.rows["prior"]["energy"][60:], b.rows["prior"]["energy"])
