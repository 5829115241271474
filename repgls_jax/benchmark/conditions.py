"""Conditions: what the hospitals are like, and what is done to the labels that their reports give.

Every condition comes in two halves, by where the reader's evidence comes from: independent of the film given the truth,
or derived from the film. The ranking of methods turns on it, and real readers lie between.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from repgls_jax import findings as findings_lib
from repgls_jax import phantom
from repgls_jax.benchmark import hospital
from repgls_jax.train import labels as labels_lib

HALVES = ("independent", "image")
# Fixed by what it does to labels and to the two bounds, before any rate was tried; see docs/benchmark.md.
MAIN = {"reader_noise": 0.25}


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition, as a change of the main one.

    Attributes:
      note: one line for tables and pages.
      phantom: fields of PhantomConfig that differ from the main condition's.
      policy: fields of PolicyConfig that every method takes.
      shift: added to the certainty of hedged wording, as by a lexicon that is not calibrated to these readers.
      exact: the certainty that each phrase was written for takes the place of the extractor's reading.
      n: training studies, as many as a hospital has for 0; more than it has make a larger one.
    """

    note: str
    phantom: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shift: float = 0.0
    exact: bool = False
    n: int = 0


CONDITIONS: dict[str, Condition] = {
    "main": Condition("the main condition"),
    "hedging_half": Condition("over-confident readers: certainty in words is sharper than belief", {"hedging": 0.5}),
    "hedging_double": Condition("under-confident readers: certainty in words is flatter than belief", {"hedging": 2.0}),
    "noise_low": Condition("readers see well", {"reader_noise": 0.12}),
    "noise_high": Condition("readers see badly", {"reader_noise": 0.4}),
    "bias_none": Condition("no reader over- or under-calls", {"reader_bias": 0.0}),
    "bias_strong": Condition("readers over- and under-call three times as much", {"reader_bias": 1.5}),
    "blanks_left_out": Condition("what is not mentioned is left out", policy={"blank": "ignore"}),
    "mention_only": Condition("absent findings are seldom denied; blanks count as negative", {"mention_only": True}),
    "mention_only_left_out": Condition(
        "absent findings are seldom denied; blanks are left out", {"mention_only": True}, {"blank": "ignore"}
    ),
    "lexicon_up": Condition("hedges are read .15 too sure", shift=0.15),
    "lexicon_down": Condition("hedges are read .15 too doubtful", shift=-0.15),
    "exact": Condition("extraction without error", exact=True),
    "n_500": Condition("500 training studies", n=500),
    "n_1000": Condition("1,000 training studies", n=1000),
    "n_5000": Condition("5,000 training studies", n=5000),
    "n_20000": Condition("20,000 training studies", n=20000),
    "balanced": Condition("all findings equally common", {"imbalance": 0.0, "prevalence_scale": 0.4}),
    "long_tail": Condition("a longer tail of rare findings", {"imbalance": 1.7}),
    "prevalence_half": Condition("half the prevalence", {"prevalence_scale": 0.5}),
    "prevalence_double": Condition("twice the prevalence", {"prevalence_scale": 2.0}),
}


def phantom_of(
    condition: Condition, half: str, seed: int, counts: hospital.Counts, main: Mapping[str, Any]
) -> phantom.PhantomConfig:
    """The hospital of one seed.

    Args:
      condition: one of :data:`CONDITIONS`.
      half: one of :data:`HALVES`.
      seed: of the phantom.
      counts: of its studies.
      main: fields of the main condition.
    """
    fields = {**main, **condition.phantom, "evidence": half, "seed": seed, "split": counts.shares()}
    return phantom.PhantomConfig(**fields)


def columns(
    condition: Condition, told: hospital.Told, truth: np.ndarray, rates: np.ndarray | None = None
) -> labels_lib.Columns:
    """Label columns as :func:`repgls_jax.train.labels.columns` gives them, of studies that all have a report.

    Args:
      condition: says which certainty is read.
      told: what the reports say.
      truth: int8 [n, c].
      rates: float32 [n, c] of the RGN, NaN where it read nothing; None where it is not asked for.

    Returns:
      state, p, observed, truth and belief; and ``read``, the RGN's rates, if they are given.
    """
    p = told.p.copy()
    if condition.exact:  # "No Finding" follows from the others by the extractor's rule; readers seldom say it
        drawn = np.array([name != findings_lib.NO_FINDING for name in hospital.VOCABULARY.findings])
        p[:, drawn] = told.meant[:, drawn]
    hedged = findings_lib.states_of(p) == findings_lib.UNCERTAIN
    # Short of certain: a lexicon that is off by .15 still knows a hedge from an assertion.
    p = np.where(hedged, np.clip(p + condition.shift, 0.11, 0.89), p).astype(np.float32)
    made = {
        "state": findings_lib.states_of(p),
        "p": p,
        "observed": np.ones(p.shape, bool),
        "truth": truth,
        "belief": told.belief,
    }
    return made if rates is None else {**made, "read": rates}
