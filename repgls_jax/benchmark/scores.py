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
from repgls_jax.results import selective as selective_lib

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
    wrong = (logits >= 0) != (truth == 1)
    made["risk"], made["aurc"] = selective(-np.abs(logits), wrong)
    made["aurc_rate"] = selective(rate, wrong)[1]
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


def selective(uncertainty: np.ndarray, wrong: np.ndarray) -> tuple[list[float], float]:
    """Mean over findings of the risk at each of :data:`COVERAGES`, and of the area under the risk-coverage curve.

    Args:
      uncertainty: [n, c].
      wrong: bool [n, c], calls that contradict the truth.
    """
    curves = [selective_lib.risks(wrong[:, k], uncertainty[:, k]) for k in range(wrong.shape[1])]
    risk = [float(np.mean([selective_lib.at(*curve, wanted) for curve in curves])) for wanted in COVERAGES]
    return risk, float(np.mean([selective_lib.area(*curve) for curve in curves]))
