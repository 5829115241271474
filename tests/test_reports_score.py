"""The engine on the development set: invented reports with the state and certainty that a reader would give.

Thresholds are what the engine reaches, rounded down, not what one would wish. The certainties of the set follow the
same anchors as the lexicon, so the error of p checks the rules of scope and sharing, not the table's numbers.
"""

import json
import pathlib

import numpy as np
import pytest

from repgls_jax import findings as findings_lib
from repgls_jax.reports import engine as engine_lib

CASES = [
    json.loads(line) for line in (pathlib.Path(__file__).parent / "data/report_cases.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[float | None, float | None]]:
    """(expected p, found p) of every finding that either side speaks of; None: not mentioned."""
    engine = engine_lib.Engine(findings_lib.UNION)
    result = []
    for case in CASES:
        found = {e.finding: e.p for e in engine.read(case) if e.finding != findings_lib.NO_FINDING}
        for finding in {**found, **case["expected"]}:
            result.append((case["expected"].get(finding), found.get(finding)))
    return result


def f1(pairs: list[tuple[float | None, float | None]], state: int | None) -> float:
    """Micro F1 of a state, or of being mentioned at all (state None)."""

    def holds(p: float | None) -> bool:
        return p is not None and (state is None or findings_lib.state_of(p) == state)

    both = sum(holds(a) and holds(b) for a, b in pairs)
    return 2 * both / (sum(holds(a) for a, _ in pairs) + sum(holds(b) for _, b in pairs))


def test_the_set_is_large_and_covers_every_finding():
    mentioned = {f for case in CASES for f in case["expected"]}
    assert len(CASES) >= 700
    assert mentioned == set(findings_lib.UNION.findings) - {findings_lib.NO_FINDING}


@pytest.mark.parametrize(
    ("state", "floor"),
    [(None, 0.99), (findings_lib.POSITIVE, 0.97), (findings_lib.NEGATIVE, 0.98), (findings_lib.UNCERTAIN, 0.97)],
)
def test_micro_f1(pairs, state, floor):
    assert f1(pairs, state) >= floor


def test_certainty_of_hedged_mentions(pairs):
    hedged = [(a, 0.0 if b is None else b) for a, b in pairs if a is not None and 0.1 < a < 0.9]
    expected, found = np.array(hedged).T
    ranks = [np.unique(v, return_inverse=True)[1] for v in (expected, found)]
    assert len(hedged) >= 500
    assert np.abs(expected - found).mean() <= 0.04
    assert np.corrcoef(*ranks)[0, 1] >= 0.8


def test_the_score_can_fail():
    wrong = [(a, 1.0) for a, _ in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]]
    assert f1(wrong, findings_lib.NEGATIVE) == 0
    assert f1(wrong, findings_lib.UNCERTAIN) == 0
