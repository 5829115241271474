"""One run's predictions against the truth: metrics, strata, calibration and selective risk.

Everything is a mean over findings of what is defined for them; a stratum that holds one class of a finding says nothing
of it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

from repgls_jax import findings as findings_lib
from repgls_jax.benchmark.hospital import VOCABULARY
from repgls_jax.phantom import population
from repgls_jax.results import bootstrap, calibration, metrics

RARE = np.array([population.PREVALENCE.get(name, 1.0) <= 0.06 for name in VOCABULARY.findings])
COVERAGES = tuple(np.round(np.arange(0.05, 1.0001, 0.05), 2).tolist())


def row(
    logits: np.ndarray,
    rate: np.ndarray,
    valid_logits: np.ndarray,
    truth: np.ndarray,
    state: np.ndarray,
    p: np.ndarray,
    valid: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """All figures of one run.

    Args:
      logits: [t, c] float32 of the test studies.
      rate: [t, c] float32, what the second head takes for the report's rate.
      valid_logits: [v, c] float32.
      truth: [t, c] of 0 and 1.
      state: [t, c] label states of the test reports; they are for strata alone.
      p: [t, c] certainty in the test reports, NaN where a finding is not mentioned.
      valid: labels and mask [v, c] of the noisy validation labels, for the temperature.

    Returns:
      name -> number or list: auroc, auprc, brier, ece (means over findings); the same with "rare_" and "frequent_"
      in front for the AUROC; brier_scaled, ece_scaled and temperature; auroc_plain, auroc_hedged, auroc_blank (test
      entries by what their report says); risk (list over :data:`COVERAGES`), aurc and aurc_rate; hedge_auroc and
      hedge_spearman of the second head; auroc_findings (list in the vocabulary's order). NaN where undefined.
    """
    everything = np.ones(truth.shape, bool)
    temperature = float(calibration.temperature(jnp.asarray(valid_logits), *(jnp.asarray(x) for x in valid))[0])
    values = _measure(logits, truth, everything)
    scaled = _measure(logits / temperature, truth, everything)
    mentioned = state != findings_lib.NOT_MENTIONED
    hedged = state == findings_lib.UNCERTAIN
    made: dict[str, Any] = {name: _mean(values[name]) for name in metrics.METRICS}
    made |= {"rare_auroc": _mean(values["auroc"][RARE]), "frequent_auroc": _mean(values["auroc"][~RARE])}
    made |= {f"{name}_scaled": _mean(scaled[name]) for name in ("brier", "ece")}
    made["temperature"] = temperature
    for name, mask in (("plain", mentioned & ~hedged), ("hedged", hedged), ("blank", ~mentioned)):
        made[f"auroc_{name}"] = _mean(bootstrap.exact(logits, truth, mask, ("auroc",))["auroc"])
    error = ((logits >= 0) != (truth == 1)).astype(np.float64)
    made["risk"] = selective_risk(np.abs(logits), error).tolist()
    made["aurc"] = area(np.abs(logits), error)
    made["aurc_rate"] = area(-rate, error)
    made["hedge_auroc"] = _mean(bootstrap.exact(rate, hedged, mentioned, ("auroc",))["auroc"])
    made["hedge_spearman"] = _spearman(rate[mentioned], np.minimum(2 * p[mentioned], 2 * (1 - p[mentioned])))
    made["auroc_findings"] = values["auroc"].tolist()
    return made


def _measure(logits: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    probability = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return bootstrap.exact(probability, truth, mask)


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ordered = len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(stats.spearmanr(a, b)[0]) if ordered else float("nan")


def _risks(confidence: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Error among the k surest entries of each finding, [n, c] for k = 1..n; ties keep the order of the studies."""
    order = np.argsort(-confidence, axis=0, kind="stable")
    wrong = np.cumsum(np.take_along_axis(error, order, axis=0), axis=0)
    return wrong / np.arange(1, len(error) + 1)[:, None]


def selective_risk(confidence: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Risk-coverage curve (El-Yaniv and Wiener, JMLR 2010): mean over findings of the error among the surest share.

    Args:
      confidence: [n, c], the surer the larger.
      error: [n, c] of 0 and 1.

    Returns:
      float64 [len(COVERAGES)].
    """
    risks = _risks(confidence, error)
    at = np.maximum(np.ceil(np.array(COVERAGES) * len(risks) - 1e-9).astype(int), 1) - 1
    return risks[at].mean(axis=1)


def area(confidence: np.ndarray, error: np.ndarray) -> float:
    """Area under the risk-coverage curve, the mean over all coverages k / n, and over findings."""
    return float(_risks(confidence, error).mean())
