"""Vocabularies, aliases and states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repgls_jax import findings


def test_vocabularies_are_complete():
    assert [len(findings.VOCABULARIES[name]) for name in ("chexpert", "nih", "union")] == [14, 14, 21]
    for name, vocabulary in findings.VOCABULARIES.items():
        assert vocabulary.name == name and len(set(vocabulary.findings)) == len(vocabulary)
        assert set(vocabulary.findings) <= set(findings.UNION.findings)
        assert all(findings.canonical(f) == f for f in vocabulary.findings)
    assert all(target in findings.UNION.findings for target in findings.ALIASES.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Effusion", "Pleural Effusion"), ("Pleural_Thickening", "Pleural Thickening"), ("pneumothorax", "Pneumothorax")],
)
def test_names_of_other_data_sets(name, expected):
    assert findings.canonical(name) == expected


def test_unknown_findings_are_named():
    with pytest.raises(ValueError, match=r"'Gout' is not in the vocabulary 'chexpert'.*Fracture"):
        findings.CHEXPERT.index("Gout")
    with pytest.raises(ValueError, match=r"'cad'.*chexpert, nih, union"):
        findings.vocabulary("cad")
    with pytest.raises(ValueError, match=r"file x holds .*Mass.*this run uses .*No Finding"):
        findings.require_same(findings.CHEXPERT.findings, findings.NIH.findings, "file x")


@given(st.floats(0, 1))
def test_states_follow_the_certainty_and_its_mirror(p):
    swapped = {findings.POSITIVE: findings.NEGATIVE, findings.NEGATIVE: findings.POSITIVE, findings.UNCERTAIN: -1}
    assert findings.state_of(1 - p) == swapped[findings.state_of(p)] or abs(min(p, 1 - p) - 0.1) < 1e-5


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_no_certainty(p):
    with pytest.raises(ValueError, match="expected a probability"):
        findings.state_of(p)
