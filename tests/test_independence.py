"""The phantom's writer and the extractor share nothing, or scoring one against the other would prove nothing."""

import ast
import collections
import pathlib

import numpy as np
import pytest

from repgls_jax import phantom as phantom_lib
from repgls_jax.findings import CHEXPERT
from repgls_jax.phantom import phrases
from repgls_jax.reports import engine

PACKAGE = pathlib.Path(phantom_lib.__file__).parents[1]


@pytest.mark.parametrize(("ours", "theirs"), [("phantom", "reports"), ("reports", "phantom")])
def test_neither_imports_the_other(ours, theirs):
    for file in (PACKAGE / ours).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any(theirs in name.split(".") for name in names), file


@pytest.fixture(scope="module")
def read():
    """Phrase -> certainties that the extractor reads in it, over 600 studies."""
    reader, config = engine.Engine(CHEXPERT), phantom_lib.PhantomConfig(seed=5)
    certainties = collections.defaultdict(list)
    for index in range(600):
        study = phantom_lib.generate(config, index)
        found = {e.finding: e.p for e in reader.read(study)}
        for finding, phrase in study["wording"].items():
            certainties[phrase].append(found.get(finding, np.nan))
    return certainties


def test_common_hedges_are_read_as_meant_and_some_are_unknown(read):
    meant = {phrase: p for phrase, p in phrases.hedge_phrases() if len(read[phrase]) >= 3}
    error = {
        phrase: abs(np.nanmedian(read[phrase]) - p) for phrase, p in meant.items() if np.isfinite(read[phrase]).any()
    }
    known = [phrase for phrase, e in error.items() if e <= 0.15]
    unknown = [phrase for phrase, e in error.items() if e > 0.3]
    assert len(known) >= 20, sorted(error.items())
    assert len(unknown) >= 5, sorted(error.items())


def test_plain_wording_is_read(read):
    assert np.mean(np.array(read["negate"]) <= 0.1) > 0.97
    assert np.mean(np.array(read["assert"]) >= 0.9) > 0.97
